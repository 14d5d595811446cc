use std::time::Duration;

use super::*;
use crate::config::{Asked, Config};

fn config() -> Config {
    let text = r#"
        [edge]
        name = "e"
        interfaces = ["eth0"]
        source_addresses = ["10.2.0.1"]
        hash_seed = "s"
        [[service]]
        name = "chat"
        listen = ["203.0.113.10:80"]
        backend = [{ name = "a", address = "10.2.0.2:9000" }, { name = "b", address = "10.2.0.3:9000" }]
        [[service]]
        name = "rooms"
        mode = "l7"
        listen = ["203.0.113.11:80"]
        drain = { deadline = "20s", rate = 80 }
        backend = [{ name = "c", address = "10.2.0.2:9001", drain = true },
                   { name = "d", address = "10.2.0.3:9001" }]
        "#;
    crate::config::parse("edge.toml", text).unwrap().0
}

/// A service with three pools.
const POOLS: &str = r#"
    [edge]
    name = "e"
    interfaces = ["eth0"]
    hash_seed = "s"
    [[service]]
    name = "rooms"
    mode = "l7"
    listen = ["203.0.113.11:80"]
    backend = [{ name = "c", address = "10.2.0.2:1" }]
    pool = [{ name = "canary", backend = [{ name = "d", address = "10.2.0.3:1" }] },
            { name = "third", backend = [{ name = "x", address = "10.2.0.4:1" }] }]
    route = [{ pools = { canary = 1, third = 1 } }]
    "#;

/// What a file and overrides are, after some changes at 1,000 ms.
#[derive(Default)]
struct Edge(Overrides);

impl Edge {
    fn ask(&mut self, at: (&str, &str), change: &Change) -> Result<Config, Refusal> {
        let (file, mut next) = (config(), self.0.clone());
        let config = next.change((&file, &self.in_force()), at, change, 1_000)?;
        self.0 = next;
        Ok(config)
    }

    fn in_force(&self) -> Config {
        self.0.clone().applied(&config(), 1_000).0
    }
}

fn backend<'a>(config: &'a Config, service: &str, name: &str) -> &'a crate::config::Backend {
    let service = config.services.iter().find(|it| it.name == service).unwrap();
    service.backends.iter().find(|it| it.name == name).unwrap()
}

fn new(name: &str, address: &str) -> NewBackend {
    let (name, address) = (name.to_owned(), address.parse().unwrap());
    NewBackend { name, address, weight: None, zone: None, pool: None }
}

const AS_CONFIGURED: PaceAsk = PaceAsk { deadline: None, rate: None };

#[test]
fn a_drain_gives_up_a_backend_of_either_mode_at_the_pace_that_was_asked_for() {
    let mut edge = Edge::default();
    let pace = PaceAsk { deadline: Some(5_000), rate: Some(7) };
    let config = edge.ask(("chat", "a"), &Change::Drain(pace)).unwrap();
    let a = backend(&config, "chat", "a");
    let asked = Asked { since: 1_000, deadline: Duration::from_secs(5), rate: 7 };
    assert_eq!((a.drain, a.weight, a.asked), (true, 0, Some(asked)));
    assert_eq!(backend(&config, "chat", "b").asked, None);

    let config = edge.ask(("rooms", "d"), &Change::Drain(pace)).unwrap();
    let d = backend(&config, "rooms", "d");
    assert_eq!((d.drain, d.weight), (true, 100), "clients that belong to it still come");
    assert_eq!(config.services[1].l7().unwrap().drain.rate, 7, "the service's pace is the slowest");
    let config = edge.ask(("rooms", "d"), &Change::Undrain).unwrap();
    assert_eq!(config.services[1], super::tests::config().services[1]);
    let config = edge.ask(("chat", "a"), &Change::Undrain).unwrap();
    assert_eq!(config, super::tests::config());
    assert!(edge.0.is_empty() && edge.0.revision == 4);
}

#[test]
fn a_drain_of_the_file_is_called_off_and_maintenance_leaves_nobody() {
    let mut edge = Edge::default();
    let config = edge.ask(("rooms", "c"), &Change::Undrain).unwrap();
    assert!(!backend(&config, "rooms", "c").drain);
    let config = edge.ask(("rooms", "c"), &Change::Maintenance(AS_CONFIGURED)).unwrap();
    let c = backend(&config, "rooms", "c");
    let asked = Asked { since: 1_000, deadline: Duration::ZERO, rate: 80 };
    assert_eq!((c.drain, c.weight, c.asked), (true, 0, Some(asked)));
}

#[test]
fn a_weight_holds_until_it_is_that_of_the_file_again() {
    let mut edge = Edge::default();
    let config = edge.ask(("chat", "a"), &Change::Weight(7)).unwrap();
    assert_eq!(backend(&config, "chat", "a").weight, 7);
    edge.ask(("chat", "a"), &Change::Weight(100)).unwrap();
    assert!(edge.0.is_empty());
    let refusal = edge.ask(("chat", "a"), &Change::Weight(1_001)).unwrap_err();
    assert_eq!(refusal.kind, Kind::Invalid);
    assert!(refusal.error.contains("1001") && refusal.remedy.contains("0 to 1000"), "{refusal}");
}

#[test]
fn backends_come_and_go_and_come_back() {
    let mut edge = Edge::default();
    let config = edge.ask(("chat", "e"), &Change::Add(new("e", "10.2.0.9:9000"))).unwrap();
    assert_eq!(backend(&config, "chat", "e").address, "10.2.0.9:9000".parse().unwrap());
    let config = edge.ask(("chat", "e"), &Change::Weight(3)).unwrap();
    assert_eq!(backend(&config, "chat", "e").weight, 3);
    let config = edge.ask(("chat", "a"), &Change::Remove).unwrap();
    assert_eq!(config.services[0].backends.len(), 2);
    let refusal = edge.ask(("chat", "a"), &Change::Undrain).unwrap_err();
    assert!(refusal.error.contains("taken out at runtime"), "{refusal}");
    let refusal = edge.ask(("chat", "a"), &Change::Add(new("a", "10.2.0.77:9000"))).unwrap_err();
    assert!(refusal.error.contains("10.2.0.2:9000"), "{refusal}");
    edge.ask(("chat", "a"), &Change::Add(new("a", "10.2.0.2:9000"))).unwrap();
    edge.ask(("chat", "e"), &Change::Remove).unwrap();
    assert!(edge.0.is_empty());
    edge.ask(("chat", "a"), &Change::Remove).unwrap();
    let refusal = edge.ask(("chat", "b"), &Change::Remove).unwrap_err();
    assert_eq!(refusal.kind, Kind::Conflict);
    assert!(refusal.error.contains("the only one of service \"chat\""), "{refusal}");
    edge.ask(Default::default(), &Change::Forget).unwrap();
    assert!(edge.0.is_empty());
}

#[test]
fn a_backend_joins_the_pool_that_it_is_for() {
    let file = crate::config::parse("edge.toml", POOLS).unwrap().0;
    let add = |overrides: &mut Overrides, name: &str, address: &str, pool: &str| {
        let pool = (!pool.is_empty()).then(|| pool.to_owned());
        let change = Change::Add(NewBackend { pool, ..new(name, address) });
        let in_force = overrides.clone().applied(&file, 1_000).0;
        overrides.change((&file, &in_force), ("rooms", name), &change, 1_000).map(drop)
    };
    let mut overrides = Overrides::default();
    add(&mut overrides, "e", "10.2.0.5:1", "canary").unwrap();
    add(&mut overrides, "f", "10.2.0.6:1", "default").unwrap();
    add(&mut overrides, "g", "10.2.0.7:1", "").unwrap();
    let kept: Overrides =
        serde_json::from_str(&serde_json::to_string(&overrides).unwrap()).unwrap();
    let (config, dropped) = kept.clone().applied(&file, 1_000);
    assert_eq!(dropped, []);
    let pools: Vec<_> =
        config.services[0].backends.iter().map(|it| (it.name.as_str(), it.pool)).collect();
    assert_eq!(pools, [("c", 0), ("f", 0), ("g", 0), ("d", 1), ("e", 1), ("x", 2)]);

    let refusal = add(&mut overrides, "h", "10.2.0.8:1", "canari").unwrap_err();
    assert_eq!(refusal.kind, Kind::Unknown);
    assert_eq!(
        refusal.to_string(),
        "service \"rooms\" has no pool \"canari\": did you mean \"canary\"?"
    );
    // One of the file's that was taken out comes back to its own pool, and to no other.
    let in_force = config;
    overrides.change((&file, &in_force), ("rooms", "d"), &Change::Remove, 1_000).unwrap();
    let refusal = add(&mut overrides.clone(), "d", "10.2.0.3:1", "default").unwrap_err();
    assert_eq!(refusal.kind, Kind::Conflict);
    assert!(refusal.error.contains("is in another pool than \"default\""), "{refusal}");
    add(&mut overrides, "d", "10.2.0.3:1", "").unwrap();
    assert_eq!(backend(&overrides.clone().applied(&file, 1_000).0, "rooms", "d").pool, 1);

    // The pool goes from the file, and its backend with it.
    let file = POOLS.replace("canary", "other");
    let file = crate::config::parse("edge.toml", &file).unwrap().0;
    let (config, dropped) = kept.clone().applied(&file, 1_000);
    assert!(config.services[0].backends.iter().all(|it| it.name != "e"));
    assert!(dropped[0].to_string().contains("the service has no such pool now"), "{dropped:?}");
}

#[test]
fn the_only_one_of_a_pool_stays_though_others_of_its_service_serve() {
    let file = crate::config::parse("edge.toml", POOLS).unwrap().0;
    let remove = |overrides: &mut Overrides, name: &str| {
        let in_force = overrides.clone().applied(&file, 1_000).0;
        overrides.change((&file, &in_force), ("rooms", name), &Change::Remove, 1_000)
    };
    for (name, pool) in [("c", "default"), ("d", "canary")] {
        let refusal = remove(&mut Overrides::default(), name).unwrap_err();
        assert_eq!(refusal.kind, Kind::Conflict);
        let error =
            format!("backend {name:?} is the only one of pool {pool:?} of service \"rooms\"");
        assert_eq!(refusal.error, error);
    }
    let mut overrides = Overrides::default();
    let new = NewBackend { pool: Some("canary".to_owned()), ..new("e", "10.2.0.5:1") };
    overrides.change((&file, &file), ("rooms", "e"), &Change::Add(new), 1_000).unwrap();
    let config = remove(&mut overrides, "d").unwrap();
    assert!(config.services[0].backends.iter().all(|it| it.name != "d"));
}

#[test]
fn a_change_that_would_be_dropped_is_refused() {
    let mut edge = Edge::default();
    edge.ask(("chat", "a"), &Change::Remove).unwrap();
    edge.ask(("chat", "c"), &Change::Add(new("c", "10.2.0.2:9000"))).unwrap();
    edge.ask(("chat", "b"), &Change::Remove).unwrap();
    // It waits for b to go, who waits for c to come, and its turn is before both.
    let before = edge.0.clone();
    let refusal = edge.ask(("chat", "aa"), &Change::Add(new("aa", "10.2.0.3:9000"))).unwrap_err();
    assert_eq!((refusal.kind, &edge.0), (Kind::Conflict, &before));
    assert!(refusal.error.contains("\"aa\"") && refusal.error.contains("has its address"));
}

#[test]
fn who_may_not_join_is_told_why_and_what_to_write() {
    for (name, address, kind, part) in [
        ("b 1", "10.2.0.9:1", Kind::Invalid, "\"b 1\" is not a name"),
        ("e", "10.2.0.9:0", Kind::Invalid, "has port 0"),
        ("e", "127.0.0.1:80", Kind::Invalid, "is a loopback address"),
        ("e", "203.0.113.11:81", Kind::Invalid, "has a VIP"),
        ("e", "10.2.0.1:9000", Kind::Invalid, "has a source address"),
        ("e", "[2001:db8::2]:9000", Kind::Invalid, "its IP version is another"),
        ("e", "10.2.0.2:9000", Kind::Conflict, "is that of backend \"a\""),
        ("a", "10.2.0.9:9000", Kind::Conflict, "a backend \"a\" already"),
    ] {
        let mut edge = Edge::default();
        let refusal = edge.ask(("chat", name), &Change::Add(new(name, address))).unwrap_err();
        assert!(refusal.error.contains(part), "{refusal}");
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert!(!refusal.remedy.is_empty() && edge.0.is_empty());
    }
}

#[test]
fn unknown_names_bring_up_the_nearest() {
    let mut edge = Edge::default();
    let refusal = edge.ask(("chta", "a"), &Change::Undrain).unwrap_err();
    assert_eq!((refusal.kind, refusal.remedy.as_str()), (Kind::Unknown, "did you mean \"chat\"?"));
    let refusal = edge.ask(("chat", "nobody"), &Change::Undrain).unwrap_err();
    assert_eq!(refusal.remedy, "there are \"a\", \"b\"");
}

#[test]
fn an_edge_is_announced_to_drain_and_drains_at_its_own_pace() {
    let mut edge = Edge::default();
    let pace = PaceAsk { deadline: Some(9_000), rate: Some(3) };
    let config = edge.ask(("", ""), &Change::DrainEdge(EdgeDrainAsk { grace: 500, pace })).unwrap();
    assert!(!config.edge.drain);
    assert_eq!(edge.0.edge_drain_begins(), Some(1_500));
    let (config, _) = edge.0.clone().applied(&super::tests::config(), 1_500);
    let drain = config.services[1].l7().unwrap().drain;
    assert!(config.edge.drain);
    assert_eq!((drain.deadline, drain.rate), (Duration::from_secs(9), 3));
    edge.ask(("", ""), &Change::UndrainEdge).unwrap();
    assert!(edge.0.is_empty());
}

#[test]
fn an_edge_that_drains_already_is_not_announced_to() {
    let mut file = config();
    file.edge.drain = true;
    let ask = |overrides: &mut Overrides, change: &Change, now| {
        let in_force = overrides.clone().applied(&file, now).0;
        overrides.change((&file, &in_force), ("", ""), change, now).unwrap().edge.drain
    };
    let grace = Change::DrainEdge(EdgeDrainAsk { grace: 500, pace: AS_CONFIGURED });
    let mut overrides = Overrides::default();
    assert!(ask(&mut overrides, &grace, 1_000), "as the file says");
    assert_eq!(overrides.edge_drain_begins(), Some(1_000));
    assert!(ask(&mut overrides, &grace, 2_000), "as was asked for before");
    assert_eq!(overrides.edge_drain_begins(), Some(1_000));
    // One that serves though the file says otherwise has clients to announce it to.
    assert!(!ask(&mut overrides, &Change::UndrainEdge, 3_000));
    assert!(!ask(&mut overrides, &grace, 4_000));
    assert_eq!(overrides.edge_drain_begins(), Some(4_500));
}

#[test]
fn what_the_file_has_no_more_is_dropped_and_told() {
    let mut edge = Edge::default();
    edge.ask(("chat", "a"), &Change::Weight(7)).unwrap();
    edge.ask(("chat", "e"), &Change::Add(new("e", "10.2.0.9:9000"))).unwrap();
    edge.ask(("rooms", "d"), &Change::Weight(7)).unwrap();
    let mut file = config();
    file.services.remove(1);
    file.services[0].backends[0].name = "e".to_owned();
    let (config, dropped) = edge.0.applied(&file, 1_000);
    assert_eq!(config, file);
    assert!(edge.0.is_empty());
    for part in ["\"a\"", "\"e\"", "the file has a backend of this name", "no such service"] {
        assert!(dropped.iter().any(|it| it.to_string().contains(part)), "{part}: {dropped:?}");
    }
}

#[test]
fn differences_are_those_between_the_file_and_what_runs() {
    let mut edge = Edge::default();
    assert_eq!(Difference::all(&config(), &config(), &edge.0), []);
    edge.ask(("chat", "a"), &Change::Weight(7)).unwrap();
    edge.ask(("chat", "e"), &Change::Add(new("e", "10.2.0.9:9000"))).unwrap();
    edge.ask(("chat", "b"), &Change::Remove).unwrap();
    let all = Difference::all(&config(), &edge.in_force(), &edge.0);
    let all: Vec<_> = all.iter().map(|it| (it.key.as_str(), it.running.as_str())).collect();
    assert_eq!(all, [("weight", "7"), ("backend", "taken out"), ("backend", "10.2.0.9:9000")]);
}
