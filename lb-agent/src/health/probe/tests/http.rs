//! HTTP against servers that write bytes by hand.

use super::*;
use crate::health::spec::READ_LIMIT;

#[tokio::test]
async fn the_request_is_as_configured() {
    let (sender, mut heads) = tokio::sync::mpsc::channel(1);
    let addr = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            sender.send(head(&mut stream).await).await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            drain(&mut stream).await;
        }
    })
    .await;
    let spec = HttpSpec {
        path: "/live?deep=1".into(),
        host: Some("chat.example".into()),
        ..HttpSpec::default()
    };
    assert_eq!(run(Kind::Http(spec), addr, PATIENT).await, Ok(()));
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("GET /live?deep=1 HTTP/1.1\r\n"), "{head}");
    for field in ["Host: chat.example", "Connection: close", "User-Agent: sluice-health/"] {
        assert!(head.contains(&format!("\r\n{field}")), "no {field} in {head}");
    }
    assert_eq!(run(http(), addr, PATIENT).await, Ok(()));
    let head = heads.recv().await.unwrap();
    assert!(head.contains(&format!("\r\nHost: {addr}\r\n")), "{head}");
}

#[tokio::test]
async fn the_status_decides() {
    let status =
        |text: &str| Kind::Http(HttpSpec { status: text.parse().unwrap(), ..HttpSpec::default() });
    for (kind, answer, expected) in [
        (http(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "ok"),
        (http(), "HTTP/1.0 200 OK\r\n\r\n", "ok"),
        (
            http(),
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "status 503, expected 200-299",
        ),
        (http(), "HTTP/1.1 101 Switching Protocols\r\n\r\n", "status 101, expected 200-299"),
        (http(), "HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "status 302, expected 200-299"),
        (http(), "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "ok"),
        (status("200-299,404"), "HTTP/1.1 404 Not Found\r\n\r\n", "ok"),
        (status("204"), "HTTP/1.1 200 OK\r\n\r\n", "status 200, expected 204"),
    ] {
        assert_eq!(verdict(kind, answering(answer).await, PATIENT).await, expected, "{answer:?}");
    }
}

#[tokio::test]
async fn the_body_decides_if_asked_for() {
    for (what, answer, expected) in [
        ("by length", "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nall is ready", "ok"),
        (
            "in chunks",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nall re\r\n3\r\nady\r\n0\r\n\r\n",
            "ok",
        ),
        ("up to the end of the connection", "HTTP/1.1 200 OK\r\n\r\nready", "ok"),
        (
            "something else",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nread\n",
            "body lacks \"ready\" in 5 bytes, which begin with \"read\\n\"",
        ),
        (
            "no body",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "body lacks \"ready\" in 0 bytes, which begin with \"\"",
        ),
        ("seen before it breaks off", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nready", "ok"),
        (
            "closed midway",
            "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nrea",
            "connection closed before the end of the response body",
        ),
    ] {
        assert_eq!(
            verdict(http_with_body("ready"), answering(answer).await, PATIENT).await,
            expected,
            "{what}"
        );
    }
}

#[tokio::test]
async fn what_is_no_response_fails() {
    for (what, answer, expected) in [
        ("closed at once", "", "connection closed before the end of the response"),
        (
            "closed midway",
            "HTTP/1.1 200 OK\r\ncontent-",
            "connection closed before the end of the response",
        ),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP/1.1 response: "),
        ("a version to come", "HTTP/2.7 200 OK\r\n\r\n", "not an HTTP/1.1 response: "),
        ("no number", "HTTP/1.1 abc OK\r\n\r\n", "not an HTTP/1.1 response: "),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "not an HTTP/1.1",
        ),
    ] {
        let found = verdict(http(), answering(answer).await, PATIENT).await;
        assert!(found.starts_with(expected), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn a_reset_is_named() {
    let addr = server(|mut stream| async move {
        head(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let found = verdict(http(), addr, PATIENT).await;
    assert_eq!(found, "Connection reset by peer before the end of the response");
}

#[tokio::test]
async fn silence_ends_with_the_timeout() {
    for (begin, kind, expected) in [
        ("", http(), "no response within 200ms"),
        ("HTTP/1.1 200 OK\r\nserver: s", http(), "no response within 200ms"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nrea",
            http_with_body("ready"),
            "no response body within 200ms",
        ),
    ] {
        assert_eq!(verdict(kind, hanging(begin).await, HASTY).await, expected);
    }
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    for more in ["x-field: value\r\n", "one-field-without-an-end"] {
        let addr = endless("HTTP/1.1 200 OK\r\n", more).await;
        assert_eq!(
            run(http(), addr, PATIENT).await,
            Err(Failure::HeadTooLarge { limit: READ_LIMIT }),
            "{more:?}"
        );
    }
    for (begin, more) in [
        ("HTTP/1.1 200 OK\r\n\r\n", "all work and no play "),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "4\r\nplay\r\n"),
    ] {
        let found =
            run(http_with_body("ready"), endless(begin, more).await, PATIENT).await.unwrap_err();
        assert!(matches!(found, Failure::Body { read: READ_LIMIT, .. }), "{found}");
        // Without a body to look for, the status is enough.
        assert_eq!(run(http(), endless(begin, more).await, PATIENT).await, Ok(()));
    }
}

#[tokio::test]
async fn a_check_that_makes_no_request_is_the_edges_fault() {
    let addr = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let spec = HttpSpec { path: "/ a".into(), ..HttpSpec::default() };
    let failure = run(Kind::Http(spec), addr, PATIENT).await.unwrap_err();
    assert!(failure.is_local() && failure.to_string().contains("path or host"), "{failure}");
}
