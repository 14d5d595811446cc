//! What an edge that serves answers is what its own description promises.

use serde_json::Value;

use crate::{
    drain::chat,
    edge::{ADMIN, Echo, Edge, say},
    network::wait_until,
    operate::cli,
    schema::Schema,
    sidecar::{self, Web},
};

const L4: &str = r#"
[[service]]
name = "raw"
listen = ["10.1.0.10:9000"]
[[service.backend]]
name = "b3"
address = "10.2.0.3:9000"
"#;

fn json(edge: &Edge, path: &str) -> Value {
    let (head, body) = edge.netns.http(ADMIN, path).unwrap();
    assert!(head.contains(" 200 "), "{path}: {head} {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn an_edge_with_clients_answers_what_it_promises() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let _echo = Echo::start(&edge.server, "10.2.0.3:9000", "b3:");
    let config = sidecar::config(&edge, "splice = \"off\"", &sidecar::BACKEND);
    edge.start(&(config + L4));
    wait_until("requests are answered", || sidecar::get(&edge, "/").is_some());
    let relayed = chat(&edge);
    let mut client = edge.client.connect("10.1.0.10:9000");
    say(&mut client, "x").unwrap();
    cli(&edge, "weight raw b3 7 --force").unwrap();

    let description = json(&edge, "/v1/openapi.json");
    let answer = |path: &str, described: &str| {
        let value = json(&edge, path);
        let schema = Schema::of_answer(&description, ("get", described), 200).unwrap();
        assert_eq!(schema.complaints(path, &value), Vec::<String>::new());
        value
    };
    let paths = description["paths"].as_object().unwrap().keys();
    let mut asked = 0;
    for path in paths.filter(|path| !path.contains('{')) {
        if Schema::of_answer(&description, ("get", path), 200).is_some() {
            answer(path, path);
            asked += 1;
        }
    }
    assert_eq!(asked, 9);
    for name in ["chat", "raw"] {
        answer(&format!("/v1/services/{name}"), "/v1/services/{service}");
    }
    let flows = answer("/v1/flows?service=raw", "/v1/flows");
    assert_eq!(flows["flows"].as_array().unwrap().len(), 1, "{flows}");
    let address = relayed.local_addr().unwrap();
    let explained = cli(&edge, &format!("explain {address} 10.1.0.10:80 --json")).unwrap();
    let explained = serde_json::from_str(&explained).unwrap();
    let schema = Schema::of_answer(&description, ("post", "/v1/explain"), 200).unwrap();
    assert_eq!(schema.complaints("/v1/explain", &explained), Vec::<String>::new());
}
