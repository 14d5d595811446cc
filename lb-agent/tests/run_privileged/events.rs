//! What an edge tells of its past, and why each backend gets clients or none.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::Stdio,
    sync::mpsc::{Receiver, channel},
    thread,
};

use lb_agent::events::{Event, Kind, Page};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    edge::{ADMIN, Edge},
    network::{wait_for, wait_until},
    sidecar::{Web, config, two_serve},
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

fn page(edge: &Edge, query: &str) -> Page {
    let (head, body) = edge.netns.http(ADMIN, &format!("/v1/events?{query}")).unwrap();
    assert!(head.contains(" 200 "), "{head}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Waits for an event of a kind that comes after `since`.
fn event(edge: &Edge, since: u64, kind: Kind, backend: Option<&str>) -> Event {
    wait_for("the event", || {
        let events = page(edge, &format!("since={since}&limit=1000")).events.into_iter();
        events.rev().find(|it| it.kind == kind && it.backend.as_deref() == backend)
    })
}

fn why(edge: &Edge) -> Vec<String> {
    edge.status().services[0].backends.iter().map(|it| it.why.clone()).collect()
}

#[test]
fn what_happens_is_told_in_order_and_by_the_next_agent_too() {
    let mut edge = Edge::new();
    let one = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let two = Web::start(&edge.server, "10.2.0.3:9000", "b3");
    let serving = config(&edge, "", &TWO);
    edge.start(&serving);
    event(&edge, 0, Kind::AgentStarted, None);
    event(&edge, 0, Kind::BackendUp, Some("b3"));
    wait_until("both serve", || why(&edge) == ["serves", "serves"]);

    drop(two);
    let down = event(&edge, 0, Kind::BackendDown, Some("b3"));
    assert!(down.text.contains("refused") && down.service.as_deref() == Some("chat"), "{down:?}");
    assert!(why(&edge)[1].starts_with("down: connect: Connection refused"), "{:?}", why(&edge));
    drop(one);
    let panic = event(&edge, down.id, Kind::PanicBegan, None);
    assert!(panic.id > down.id && panic.time >= down.time);
    wait_until("both get clients all the same", || {
        why(&edge).iter().all(|why| why.starts_with("gets clients though down: "))
    });
    let _one = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    event(&edge, panic.id, Kind::PanicEnded, None);

    edge.save(&serving.replace("name = \"b3\"", "name = \"b3\"\ndrain = true"));
    let began = event(&edge, panic.id, Kind::DrainBegan, Some("b3"));
    event(&edge, panic.id, Kind::ConfigLoaded, None);
    edge.save(&serving.replace("name = \"b3\"", "name = \"b 3\""));
    let refused = event(&edge, began.id, Kind::ConfigRefused, None);
    assert!(refused.text.contains("b 3"), "{}", refused.text);
    edge.save(&serving);
    event(&edge, began.id, Kind::DrainEnded, Some("b3"));

    let worker = *two_serve(&edge).first().unwrap();
    kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL).unwrap();
    let ended = event(&edge, refused.id, Kind::WorkerEnded, None);
    assert!(ended.text.contains(&format!("pid {worker}")), "{}", ended.text);
    event(&edge, ended.id, Kind::WorkerStarted, None);

    // Page by page it is the same, and nothing twice.
    let whole = page(&edge, "since=0&limit=1000");
    let (mut since, mut pieces) = (0, Vec::new());
    while pieces.len() < whole.events.len() {
        let piece = page(&edge, &format!("since={since}&limit=3")).events;
        since = piece.last().unwrap().id;
        pieces.extend(piece);
    }
    assert_eq!(pieces, whole.events);
    assert_eq!(page(&edge, "limit=1").events, whole.events[whole.events.len() - 1..]);

    edge.signal(Signal::SIGKILL);
    edge.wait();
    edge.start(&serving);
    let started = event(&edge, since, Kind::AgentStarted, None);
    assert!(started.text.contains("of an earlier agent"), "{}", started.text);
}

#[test]
fn who_follows_is_told_of_the_next_agent_too_and_of_nothing_twice() {
    let mut edge = Edge::new();
    let _one = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let _two = Web::start(&edge.server, "10.2.0.3:9000", "b3");
    let serving = config(&edge, "", &TWO);
    edge.start(&serving);
    event(&edge, 0, Kind::BackendUp, Some("b3"));
    let arguments = "events --follow --json --limit 1000 --config";
    let mut command = edge.command(&format!("{arguments} {}", edge.config_file().display()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follower = command.spawn().unwrap();
    let (out, err) = (follower.stdout.take().unwrap(), follower.stderr.take().unwrap());
    let (told, notes) = (reader(out), reader(err));
    let (mut seen, mut noted) = (Vec::new(), Vec::new());
    let id = |line: &String| serde_json::from_str::<Event>(line).unwrap().id;
    let newest = |edge: &Edge| page(edge, "limit=1").newest.unwrap();
    let last = newest(&edge);
    wait_until("it has come to the last one", || {
        seen.extend(told.try_iter());
        seen.last().map(id) >= Some(last)
    });

    edge.signal(Signal::SIGKILL);
    edge.wait();
    wait_until("it says that it waits", || {
        noted.extend(notes.try_iter());
        noted.iter().any(|note| note.contains("waits for the agent"))
    });
    edge.start(&serving);
    let started = event(&edge, last, Kind::AgentStarted, None);
    edge.save(&serving.replace("name = \"b3\"", "name = \"b3\"\ndrain = true"));
    let began = event(&edge, started.id, Kind::DrainBegan, Some("b3"));
    wait_until("it goes on", || {
        seen.extend(told.try_iter());
        seen.last().map(id) >= Some(began.id)
    });
    noted.extend(notes.try_iter());
    assert!(noted.iter().any(|note| note.contains("another agent goes on")), "{noted:?}");
    follower.kill().unwrap();
    follower.wait().unwrap();

    let ids: Vec<_> = seen.iter().map(id).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    let of_now: Vec<_> = page(&edge, "since=0&limit=1000").events.iter().map(|it| it.id).collect();
    // What the first one had still to tell is no business of the second's.
    let shown: Vec<_> = ids.into_iter().filter(|id| *id >= of_now[0]).collect();
    assert_eq!(shown, of_now[..shown.len()], "all that the second agent has to tell");
}

/// The lines of a pipe as they come.
fn reader(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (to, from) = channel();
    thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
    });
    from
}
