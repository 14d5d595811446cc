use ratatui::{Terminal, backend::TestBackend};
use serde_json::json;

use super::{rates::Order, *};

fn backend(
    name: &str,
    state: &str,
    connections: u64,
    picked: u64,
    bytes: u64,
) -> serde_json::Value {
    json!({
        "name": name, "address": "10.2.0.2:9000",
        "health": { "state": state, "since_seconds": 1.0, "probes": 1, "failures": 0 },
        "weight": 100, "effective_weight": 100, "share": {}, "connections": connections,
        "requests": { "picked": picked, "failed": 0, "bytes_in": bytes, "bytes_out": 0 }
    })
}

fn status(backends: &[serde_json::Value]) -> Status {
    serde_json::from_value(json!({
        "edge": "edge-1", "version": "1", "pid": 1, "ready": true, "uptime_seconds": 5,
        "program_id": 1, "adopted": false, "config_generation": 1, "interfaces": [],
        "services": [{
            "name": "chat", "mode": "l7", "affinity": "none", "listeners": [], "fail_open": false,
            "turned_away": false, "outcomes": { "events": {}, "drops": {} }, "backends": backends
        }],
        "outcomes": { "events": {}, "drops": {} },
        "flows": { "expired": 0, "closed": 0, "orphans": 0, "reset": 0, "unsent_resets": 0 },
        "tables": []
    }))
    .unwrap()
}

fn model() -> Model {
    let at = Instant::now();
    let before = [backend("b2", "up", 5, 100, 0), backend("b3", "up", 7, 0, 0)];
    let mut model = Model::new(Look { at, status: status(&before) });
    let now = [backend("b2", "down", 4, 120, 4_096), backend("b3", "up", 9, 10, 0)];
    model.take(Look { at: at + Duration::from_secs(2), status: status(&now) });
    model
}

fn shown(model: &Model) -> String {
    let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
    terminal.draw(|frame| screen::draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let cells: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    cells.chunks(110).map(|line| line.concat() + "\n").collect()
}

#[test]
fn rates_are_those_between_two_looks_and_changes_are_events() {
    let model = model();
    assert_eq!((model.rows[0].new, model.rows[0].bytes), (10.0, 2_048.0));
    let screen = shown(&model);
    for part in
        ["edge edge-1: ready", "13 connections", "15.0 new/s", "2.0 KiB", "chat/b2: up -> down"]
    {
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
}

#[test]
fn keys_sort_scroll_and_quit() {
    let mut model = model();
    let press = |model: &mut Model, code| press(model, KeyEvent::new(code, KeyModifiers::NONE));
    assert!(!press(&mut model, KeyCode::Char('s')));
    assert_eq!((model.order, model.sorted()[0].backend.as_str()), (Order::Connections, "b3"));
    for _ in 0..9 {
        press(&mut model, KeyCode::Down);
    }
    assert!(shown(&model).contains("b2"), "the last one stays in sight");
    assert!(press(&mut model, KeyCode::Char('q')));
}
