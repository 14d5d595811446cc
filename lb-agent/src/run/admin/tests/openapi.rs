//! The description is held to the server, and the server to the description.

use std::collections::BTreeSet;

use super::*;

fn description() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Methods and paths as the router has them.
fn routes() -> BTreeSet<(String, String)> {
    let code = include_str!("../mod.rs");
    let lines = code.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    let routes = lines.map(|line| {
        let (path, rest) = line.split_once("\", ").unwrap();
        let (method, _) = rest.split_once('(').unwrap();
        (method.to_owned(), path.to_owned())
    });
    routes.collect()
}

#[test]
fn every_page_is_described_and_nothing_else() {
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    let described = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
    });
    let described: BTreeSet<_> = described.collect();
    let routes = routes();
    assert!(routes.len() > 15, "{routes:?}");
    assert_eq!(described, routes);
}

#[test]
fn every_page_that_is_described_is_in_the_documentation() {
    let text = include_str!("../../../../../docs/admin.md");
    for (_, path) in routes() {
        let shown = path.replace("/{action}", "/drain");
        assert!(text.contains(&shown), "{path}");
    }
}

/// A schema, wherever it stands.
fn resolve<'a>(description: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => description.pointer(&reference[1..]).expect(reference),
        None => schema,
    }
}

/// What a value has not that its schema promises.
fn missing(description: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let schema = resolve(description, schema);
    let required = schema["required"].as_array().into_iter().flatten();
    let required = required.map(|key| key.as_str().unwrap());
    let mut all: Vec<_> =
        required.filter(|key| value.get(key).is_none()).map(str::to_owned).collect();
    for (key, of_key) in schema["properties"].as_object().into_iter().flatten() {
        match &value[key] {
            Value::Null => {}
            Value::Array(values) => {
                let missing = values.iter().map(|it| missing(description, &of_key["items"], it));
                all.extend(missing.flatten());
            }
            value => all.extend(missing(description, of_key, value)),
        }
    }
    all
}

#[tokio::test]
async fn answers_have_what_is_promised() {
    let description = description();
    // Without a data plane, what reads its maps cannot answer: the tests with an agent ask for that.
    let server = willing(View::new("edge-1"));
    for path in [
        "/v1/status",
        "/v1/services",
        "/v1/backends",
        "/v1/counters",
        "/v1/openapi.json",
        "/v1/events",
    ] {
        promised(&description, server.address, path).await;
    }
    let server = willing(view(""));
    for path in ["/v1/config", "/v1/config/diff"] {
        promised(&description, server.address, path).await;
    }
}

async fn promised(description: &Value, at: SocketAddr, path: &str) {
    let (head, body) = get(at, path).await;
    assert!(head.contains(" 200 "), "{path}: {head} {body}");
    let page = &description["paths"][path]["get"]["responses"]["200"];
    let schema = &page["content"]["application/json"]["schema"];
    let value: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(missing(description, schema, &value), Vec::<String>::new(), "{path}");
}

#[tokio::test]
async fn errors_have_the_form_that_is_promised() {
    let (path, line) = token_file("openapi", TOKEN);
    let server = willing(view(&line));
    let description = description();
    let problem = &description["components"]["schemas"]["Problem"];
    for (page, head, body) in [
        (DRAIN, String::new(), "{}"),
        (DRAIN, json(), "{"),
        (DRAIN, json(), "{\"a\": 1}"),
        ("/v1/nowhere", json(), "{}"),
        ("/v1/services", json(), "{}"),
    ] {
        let (status, answer) = post(server.address, page, &head, body).await;
        assert!(status >= 400);
        assert_eq!(missing(&description, problem, &answer), Vec::<String>::new(), "{answer}");
    }
    std::fs::remove_file(path).unwrap();
}
