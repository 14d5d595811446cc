//! What is refused in a health table.

use super::*;

fn health_refused(cases: &[(&str, &str)]) {
    for (health, message) in cases {
        let line = format!("health = {{ {health} }}\n[[service.backend]]");
        let text = with(&minimal(), "[[service.backend]]", &line);
        assert_eq!(
            errors(&text),
            format!("edge.toml:9: service \"chat\": health: {message}"),
            "\n{text}"
        );
    }
}

#[test]
fn keys_of_another_kind() {
    health_refused(&[
        (
            r#"kind = "tcp", status = 200"#,
            r#"status 200 is not for kind "tcp": remove it, or write kind = "http" or "https""#,
        ),
        (
            r#"kind = "websocket", body = "ok""#,
            r#"body "ok" is not for kind "websocket": remove it, or write kind = "http" or "https""#,
        ),
        (
            r#"kind = "http", verify = false"#,
            r#"verify false is not for kind "http": remove it, or write kind = "https""#,
        ),
        (
            r#"kind = "none", interval = "1s""#,
            r#"interval "1s" is not for kind "none": remove it, or write kind = "tcp", "http", "https" or "websocket""#,
        ),
        (
            r#"kind = "ping""#,
            r#"kind "ping" is not a choice here: write "tcp", "http", "https", "websocket" or "none""#,
        ),
    ]);
}

#[test]
fn times_and_numbers() {
    health_refused(&[
        (
            r#"kind = "tcp", interval = "50ms""#,
            r#"interval "50ms" is out of range: write "100ms" to "1h""#,
        ),
        (
            r#"kind = "tcp", interval = "1s", timeout = "1001ms""#,
            r#"timeout "1001ms" is longer than the interval "1s": write at most "1s""#,
        ),
        (
            r#"kind = "tcp", timeout = "0s""#,
            r#"timeout "0s" is out of range: write "10ms" to "1h""#,
        ),
        (r#"kind = "tcp", rise = 0"#, "rise 0 is out of range: write 1 to 100"),
        (r#"kind = "tcp", fall = 101"#, "fall 101 is out of range: write 1 to 100"),
        (r#"kind = "tcp", jitter = 51"#, "jitter 51 is out of range: write 0 to 50"),
        (
            r#"kind = "tcp", slow_start = "2h""#,
            r#"slow_start "2h" is out of range: write "0s" to "1h""#,
        ),
        (r#"kind = "tcp", port = 65536"#, "port 65536 is out of range: write 1 to 65535"),
    ]);
}

#[test]
fn requests_and_answers() {
    const PATH: &str = r#"is not a path: write /, then visible ASCII without #, e.g. "/health""#;
    const HOST: &str =
        r#"is not a host: write a name or address, with or without a port, e.g. "chat.example""#;
    const STATUS: &str = r#"is not a set of status codes: write codes and ranges from 100 to 599, e.g. "200-299, 304""#;
    health_refused(&[
        (r#"kind = "http", path = "health""#, &format!("path \"health\" {PATH}")),
        (r#"kind = "http", path = "/a b""#, &format!("path \"/a b\" {PATH}")),
        (r#"kind = "http", path = "/a\r\nX: y""#, &format!("path \"/a\\r\\nX: y\" {PATH}")),
        (r#"kind = "http", host = """#, &format!("host \"\" {HOST}")),
        (r#"kind = "http", host = "http://a""#, &format!("host \"http://a\" {HOST}")),
        (r#"kind = "http", status = "ok""#, &format!("status \"ok\" {STATUS}")),
        (r#"kind = "http", status = "299-200""#, &format!("status \"299-200\" {STATUS}")),
        (r#"kind = "http", status = "200-600""#, &format!("status \"200-600\" {STATUS}")),
        (r#"kind = "http", status = "200,""#, &format!("status \"200,\" {STATUS}")),
        (r#"kind = "http", status = 99"#, "status 99 is out of range: write 100 to 599"),
        (r#"kind = "http", status = []"#, r#"status [] is empty: write e.g. "200-299""#),
        (
            r#"kind = "http", status = [200, true]"#,
            r#"status true is true or false, not a string: write e.g. status = "200-299""#,
        ),
        (r#"kind = "http", body = """#, r#"body "" is empty: write e.g. "ok""#),
    ]);
}

#[test]
fn certificates() {
    health_refused(&[
        (
            r#"kind = "https", ca = "ca.pem""#,
            r#"ca "ca.pem" is not an absolute path: write e.g. "/etc/sluice/ca.pem""#,
        ),
        (
            r#"kind = "https", ca = "/ca.pem", verify = false"#,
            r#"ca "/ca.pem" is without use while verify = false: remove one of the two"#,
        ),
        (
            r#"kind = "https", sni = "10.2.0.2""#,
            r#"sni "10.2.0.2" is not a DNS name: write e.g. "chat.example""#,
        ),
        (
            r#"kind = "https", sni = "-a""#,
            r#"sni "-a" is not a DNS name: write e.g. "chat.example""#,
        ),
    ]);
}
