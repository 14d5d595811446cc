//! Ids over reloads and restarts.

use super::*;

fn named(name: &str, listener: &str, backends: &[&str]) -> ServiceInput {
    service(name, &[listener], backends)
}

fn ids_of(agent: &Agent, name: &str) -> (u16, Vec<u16>) {
    let id = agent.ids.service(name).unwrap();
    let of = |entry: (u16, u16, SocketAddr)| (entry.1 == id).then_some(entry.0);
    (id, agent.ids.backends().filter_map(of).collect())
}

#[test]
fn ids_survive_a_restart_whatever_the_order() {
    let a = named("a", "203.0.113.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
    let b = named("b", "203.0.113.2:80", &["10.0.0.1:80"]);
    let mut agent = Agent::new();
    agent.reach(&input(vec![a.clone(), b.clone()]));
    let before = (ids_of(&agent, "a"), ids_of(&agent, "b"));
    agent.restart();
    let ops = agent.reach(&input(vec![b, a]));
    assert_eq!((ids_of(&agent, "a"), ids_of(&agent, "b")), before);
    assert!(matches!(ops.as_slice(), [MapOp::SetEdge(_)]), "{ops:?}");
}

#[test]
fn a_renamed_service_is_known_by_its_listeners() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![named("old", "203.0.113.1:80", &["10.0.0.1:80"])]));
    let ops = agent.reach(&input(vec![
        named("other", "203.0.113.2:80", &["10.0.0.2:80"]),
        named("new", "203.0.113.1:80", &["10.0.0.1:80"]),
    ]));
    assert_eq!(ids_of(&agent, "new"), (1, vec![1]));
    assert_eq!(ids_of(&agent, "other"), (2, vec![2]));
    assert!(ops.iter().all(|op| op.service() != Some(1)), "{ops:?}");
}

#[test]
fn a_name_outranks_a_listener_that_moved() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![
        service("a", &["203.0.113.1:80", "203.0.113.1:81"], &["10.0.0.1:80"]),
        named("b", "203.0.113.2:80", &["10.0.0.2:80"]),
    ]));
    agent.reach(&input(vec![
        named("a", "203.0.113.2:80", &["10.0.0.1:80"]),
        service("b", &["203.0.113.1:80", "203.0.113.1:81"], &["10.0.0.2:80"]),
    ]));
    assert_eq!(ids_of(&agent, "a"), (1, vec![1]));
    assert_eq!(ids_of(&agent, "b"), (2, vec![2]));
}

#[test]
fn a_removed_backend_keeps_its_id_until_released_and_comes_back_with_it() {
    let with = |backends: &[&str]| input(vec![named("a", "203.0.113.1:80", backends)]);
    let mut agent = Agent::new();
    agent.reach(&with(&["10.0.0.1:80", "10.0.0.2:80"]));
    agent.reach(&with(&["10.0.0.1:80", "10.0.0.3:80"]));
    assert_eq!(ids_of(&agent, "a"), (1, vec![1, 3]), "2 may still have flows");
    agent.reach(&with(&["10.0.0.1:80", "10.0.0.2:80"]));
    assert_eq!(ids_of(&agent, "a"), (1, vec![1, 2]), "back with its id");
    agent.reach(&with(&["10.0.0.1:80"]));
    agent.restart();
    agent.reach(&with(&["10.0.0.1:80"]));
    let retired: Vec<u16> = agent.ids.retired_backends().map(|(id, ..)| id).collect();
    assert_eq!(retired, [2, 3], "a restart forgets no flow");
    assert_eq!(agent.ids.release(|id| id == 3), [2]);
    agent.reach(&with(&["10.0.0.1:80", "10.0.0.4:80"]));
    assert_eq!(ids_of(&agent, "a"), (1, vec![1, 4]), "2 waits behind all others");
}

#[test]
fn released_ids_are_used_again_the_oldest_first() {
    let with = |n: u16| input(vec![named("a", "203.0.113.1:80", &[&format!("10.0.0.1:{n}")])]);
    let mut agent = Agent::new();
    let mut seen = Vec::new();
    for n in 1..200 {
        agent.reach(&with(n));
        seen.push(ids_of(&agent, "a").1[0]);
        agent.ids.release(|_| false);
    }
    let in_turn: Vec<u16> = (1..200).map(|n| (n - 1) % 64 + 1).collect();
    assert_eq!(seen, in_turn);
}

#[test]
fn a_service_id_is_free_when_its_backends_are() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![named("a", "203.0.113.1:80", &["10.0.0.1:80"])]));
    agent.reach(&input(vec![]));
    agent.ids.release(|_| true);
    agent.reach(&input(vec![named("a", "203.0.113.9:80", &["10.0.0.1:80"])]));
    assert_eq!(ids_of(&agent, "a"), (1, vec![1]), "its flows are still its own");
    agent.reach(&input(vec![]));
    agent.ids.release(|_| false);
    agent.reach(&input(vec![named("a", "203.0.113.9:80", &["10.0.0.1:80"])]));
    assert_eq!(ids_of(&agent, "a"), (2, vec![2]));
}

#[test]
fn without_listeners_in_the_maps_a_service_is_known_by_its_backends() {
    let mut agent = Agent::new();
    let relayed = |name, listener, backend| ServiceInput {
        forward: Forward::Relay,
        ..named(name, listener, &["10.0.0.1:80", backend])
    };
    let a = relayed("a", "203.0.113.1:80", "10.0.0.2:80");
    let b = relayed("b", "203.0.113.2:80", "10.0.0.3:80");
    agent.reach(&input(vec![a.clone(), b.clone()]));
    let before = (ids_of(&agent, "a"), ids_of(&agent, "b"));
    agent.restart();
    agent.reach(&input(vec![b.clone(), a]));
    assert_eq!((ids_of(&agent, "a"), ids_of(&agent, "b")), before);
    // While the agent runs, who is gone is gone.
    agent.reach(&input(vec![b]));
    agent.reach(&input(vec![named("c", "203.0.113.9:80", &["10.0.0.1:80", "10.0.0.2:80"])]));
    assert_eq!(ids_of(&agent, "c"), (3, vec![5, 6]));
}

#[test]
fn running_out_of_ids_changes_nothing_and_says_what_to_do() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![named("a", "203.0.113.1:80", &["10.0.0.1:80"])]));
    let many: Vec<_> = (1..=9)
        .map(|n| named(&format!("s{n}"), &format!("203.0.113.{n}:81"), &["10.0.0.1:80"]))
        .collect();
    let message = agent.ids.assign(&many).unwrap_err().to_string();
    assert_eq!(
        message,
        "service \"s8\": no id is free: the map SERVICES holds 8 services, 1 of them removed from \
         the config but with flows that go on; wait until these end, or make the maps anew with \
         `lb-agent unload` and a restart"
    );
    assert_eq!(ids_of(&agent, "a"), (1, vec![1]));

    let backends: Vec<String> = (1..=65).map(|n| format!("10.0.0.1:{n}")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let message =
        agent.ids.assign(&[named("a", "203.0.113.1:80", &backends)]).unwrap_err().to_string();
    assert!(message.starts_with("service \"a\": backend 10.0.0.1:64: no id is free"), "{message}");
}
