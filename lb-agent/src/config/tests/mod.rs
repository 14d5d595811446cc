//! The whole configuration, as an operator meets it: a file goes in, a [`Config`] or messages come out.

mod accepted;
mod accepted_l7;
mod files;
mod passthrough;
mod reference;
mod refused;
mod refused_edge;
mod refused_health;
mod refused_l7;
mod refused_pool;
mod refused_tls;
mod routes;

use super::*;

/// The least that an edge needs.
const EDGE: &str = r#"[edge]
name = "e"
interfaces = ["eth0"]
hash_seed = "s"
source_addresses = ["10.2.0.1"]
"#;

/// The least that a service needs; follows [`EDGE`], so that it begins on line 6.
const SERVICE: &str = r#"[[service]]
name = "chat"
listen = ["203.0.113.10:80"]
[[service.backend]]
address = "10.2.0.2:9000"
"#;

/// The least that an l7 service needs; follows [`EDGE`], so that it begins on line 6.
const L7_SERVICE: &str = r#"[[service]]
name = "chat"
listen = ["203.0.113.10:80"]
mode = "l7"
[[service.backend]]
address = "10.2.0.2:9000"
"#;

/// The least that is valid with an l7 service.
fn minimal_l7() -> String {
    format!("{EDGE}{L7_SERVICE}")
}

/// Each case adds lines to the l7 service, from line 10 on, and gives all messages that follow.
fn l7_refused(cases: &[(&str, &str)]) {
    for (lines, messages) in cases {
        let text =
            with(&minimal_l7(), "[[service.backend]]", &format!("{lines}\n[[service.backend]]"));
        assert_eq!(errors(&text), *messages, "\n{text}");
    }
}

/// The least that is valid.
fn minimal() -> String {
    format!("{EDGE}{SERVICE}")
}

fn valid(text: &str) -> Config {
    let (config, warnings) =
        parse("edge.toml", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(warnings, [], "{text}");
    config
}

fn errors(text: &str) -> String {
    match parse("edge.toml", text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

/// Changes a valid file, and makes sure that there was something to change.
fn with(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?} is not in\n{text}");
    text.replacen(old, new, 1)
}

/// Each case changes the minimal file and gives all messages that follow.
fn refused(cases: &[(&str, &str, &str)]) {
    for (old, new, messages) in cases {
        let text = with(&minimal(), old, new);
        assert_eq!(errors(&text), *messages, "\n{text}");
    }
}
