use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};

use super::{frame::Maker, *};
use crate::{
    events::{Events, Kind, News},
    run::{status::Status, view::View},
};

fn backend(name: &str, connections: u64) -> Value {
    json!({
        "name": name, "address": "10.2.0.2:9000", "weight": 100, "effective_weight": 100, "share": {},
        "health": {
            "state": "up", "since_seconds": 7.25, "probes": 3, "failures": 1, "history": "x01",
            "last": { "ok": true, "latency_ms": 0.3333, "ago_seconds": 0.125 },
        },
        "connections": connections, "why": "serves",
        "traffic": {
            "to_backend_packets": 1, "to_backend_bytes": 10, "to_client_packets": 2, "to_client_bytes": 20,
            "picked": 5, "opened": 5, "closed": 1, "reset": 0,
        },
        "requests": { "picked": 2, "failed": 1, "bytes_in": 100, "bytes_out": 200 },
    })
}

/// An edge with these services: name, mode, connections of the one backend.
fn status(services: &[(&str, &str, u64)]) -> Status {
    let services = services.iter().map(|(name, mode, connections)| {
        let mut service = json!({
            "name": name, "mode": mode, "affinity": "none", "fail_open": false, "turned_away": false,
            "listeners": [{ "address": "203.0.113.10:80", "on_host": true }],
            "outcomes": { "events": {}, "drops": { "a": 1, "b": 2 } },
            "backends": [backend("a", *connections)],
        });
        if *mode == "l7" {
            service["connections"] = (connections + 3).into();
            service["spliced"] = 4.into();
        }
        service
    });
    let services: Vec<_> = services.collect();
    serde_json::from_value(json!({
        "edge": "edge-1", "version": "1", "pid": 1, "ready": true, "uptime_seconds": 9, "program_id": 1,
        "adopted": false, "config_generation": 1, "interfaces": [], "services": services,
        "outcomes": { "events": {}, "drops": { "a": 10 } }, "tables": [],
        "flows": { "expired": 0, "closed": 0, "orphans": 0, "reset": 0, "unsent_resets": 0 },
    }))
    .unwrap()
}

/// The name of the event, and what it says.
fn read(bytes: &Bytes) -> (String, Value) {
    let text = std::str::from_utf8(bytes).unwrap();
    let text = text.strip_prefix("retry: 2000\n").unwrap_or(text);
    let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    let data = data.strip_suffix("\n\n").unwrap();
    assert!(!data.contains('\n'), "a line feed ends it: {data}");
    (name.to_owned(), serde_json::from_str(data).unwrap())
}

fn names(message: &Value) -> Vec<&str> {
    let services = message["services"].as_array().unwrap().iter();
    services.map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn who_comes_gets_everything_and_then_what_changes() {
    let (mut maker, events) = (Maker::default(), Events::default());
    events.add(News::new(Kind::AgentStarted, "a line\nand another"));
    let one = maker.make(&status(&[("chat", "l4", 7), ("web", "l7", 8)]), &events, 1_000).unwrap();
    let (name, state) = read(&one.after(None));
    assert_eq!((name.as_str(), names(&state)), ("state", vec!["chat", "web"]));
    assert_eq!((&state["at"], &state["edge"]["drops"]), (&json!(1_000), &json!(16)));
    assert_eq!(state["events"][0]["text"], "a line\nand another");
    let [chat, web] = [0, 1].map(|n| &state["services"][n]);
    assert_eq!(chat["paths"], json!({ "l4": 7, "relay": 0, "splice": 0 }));
    assert_eq!(web["paths"], json!({ "l4": 0, "relay": 7, "splice": 4 }));
    let backend = &chat["backends"][0];
    assert_eq!(backend["history"], "x01");
    let numbers = ["picked", "bytes", "latency_ms", "failed"].map(|key| backend[key].clone());
    assert_eq!(numbers, [json!(7), json!(330), json!(0.3), json!(1)]);

    events.add(News::new(Kind::BackendUp, "b").at("chat", "a"));
    let two = maker.make(&status(&[("chat", "l4", 7), ("web", "l7", 9)]), &events, 2_000).unwrap();
    let (name, change) = read(&two.after(Some(one.number)));
    assert_eq!((name.as_str(), names(&change)), ("change", vec!["web"]));
    assert_eq!(change["events"].as_array().unwrap().len(), 1, "{change}");
    assert_eq!(change["events"][0]["kind"], "backend_up");
    // Who has missed one, and who is new, hears all.
    for seen in [None, Some(one.number - 1)] {
        let (name, state) = read(&two.after(seen));
        assert_eq!((name.as_str(), names(&state).len()), ("state", 2));
        assert_eq!(state["events"].as_array().unwrap().len(), 2);
    }

    // Nothing has happened: not even probes' ages are told.
    let three =
        maker.make(&status(&[("chat", "l4", 7), ("web", "l7", 9)]), &events, 3_000).unwrap();
    let (name, change) = read(&three.after(Some(two.number)));
    assert_eq!((name.as_str(), names(&change).len()), ("change", 0));
    assert_eq!(change["events"], json!([]));

    // Another set of services is told as a whole.
    let four = maker.make(&status(&[("web", "l7", 9)]), &events, 4_000).unwrap();
    let (name, state) = read(&four.after(Some(three.number)));
    assert_eq!((name.as_str(), names(&state)), ("state", vec!["web"]));
}

#[test]
fn many_events_come_one_frame_after_the_other_and_none_is_lost() {
    let (mut maker, events) = (Maker::default(), Events::default());
    let status = status(&[]);
    let mut seen = maker.make(&status, &events, 0).unwrap().number;
    (0..120).for_each(|n| events.add(News::new(Kind::BackendUp, n.to_string())));
    let mut texts = Vec::new();
    for _ in 0..4 {
        let frame = maker.make(&status, &events, 0).unwrap();
        let (_, change) = read(&frame.after(Some(seen)));
        seen = frame.number;
        let told = change["events"].as_array().unwrap();
        assert!(told.len() <= 50);
        texts.extend(told.iter().map(|it| it["text"].as_str().unwrap().to_owned()));
    }
    // Nothing had happened before the first frame: the newest are what it begins with.
    let last: Vec<_> = (70..120).map(|n| n.to_string()).collect();
    assert_eq!(texts, last);
    events.add(News::new(Kind::BackendUp, "120"));
    (121..300).for_each(|n| events.add(News::new(Kind::BackendUp, n.to_string())));
    let mut texts = Vec::new();
    for _ in 0..4 {
        let frame = maker.make(&status, &events, 0).unwrap();
        let (_, change) = read(&frame.after(Some(seen)));
        seen = frame.number;
        let told = change["events"].as_array().unwrap().clone();
        texts.extend(told.into_iter().map(|it| it["text"].as_str().unwrap().to_owned()));
    }
    let all: Vec<_> = (120..300).map(|n| n.to_string()).collect();
    assert_eq!(texts, all);
}

async fn next(watching: &mut Watching) -> String {
    let bytes = timeout(Duration::from_secs(60), watching.next()).await.expect("in time");
    read(&bytes.expect("there is more")).0
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_misses_and_nobody_waits_for_him() {
    let (feed, view) = (Feed::default(), View::new("edge-1"));
    let [mut slow, mut quick] = [0; 2].map(|_| feed.watch(&view).unwrap());
    assert_eq!((next(&mut slow).await, next(&mut quick).await), ("state".into(), "state".into()));
    for _ in 0..5 {
        assert_eq!(next(&mut quick).await, "change");
    }
    assert_eq!(next(&mut slow).await, "state");
    assert_eq!(next(&mut slow).await, "change");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_nobody_watches() {
    let (feed, view) = (Feed::default(), View::new("edge-1"));
    assert!(!feed.is_at_work());
    let mut first = feed.watch(&view).unwrap();
    next(&mut first).await;
    assert!(feed.is_at_work());
    drop(first);
    timeout(Duration::from_secs(10), async {
        while feed.is_at_work() {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it ends");
    // Who comes later sees nothing old.
    let mut later = feed.watch(&view).unwrap();
    assert!(later.frames.borrow().is_none());
    assert_eq!(next(&mut later).await, "state");
}

#[tokio::test(start_paused = true)]
async fn there_is_an_end_to_those_who_may_watch() {
    let (feed, view) = (Feed::default(), View::new("edge-1"));
    let mut watching: Vec<_> = (0..MOST).map(|_| feed.watch(&view).unwrap()).collect();
    assert!(feed.watch(&view).is_none());
    watching.pop();
    assert!(feed.watch(&view).is_some());
}
