//! The sidecar serves clients as they are: npm's ws, Socket.IO, Python's websockets, curl, and Chromium. Whatever they
//! upgrade is spliced, and most of what they say goes through the splice. Needs root and packages: `cargo xtask test --full` installs them.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tests::edge::L7Config;
use tests::privilege::require_root;
use tests::web::seen::{distinct, items, stayed};
use tests::web::{Answer, WebPlan, WebSite};

fn sticky() -> WebSite {
    require_root();
    WebPlan::default().build().unwrap()
}

fn not_sticky() -> WebSite {
    require_root();
    let l7 = L7Config { sticky: false, ..L7Config::default() };
    WebPlan { l7, ..WebPlan::default() }.build().unwrap()
}

#[test]
fn npm_ws_stays_with_its_backend() {
    let site = sticky();
    for target in site.listeners() {
        let sessions = site.node("ws.js", &[&format!("ws://{target}"), "6"]).unwrap();
        stayed(&sessions, 6);
        for session in items(&sessions) {
            assert_eq!(session["extensions"], "permessage-deflate", "{session}");
        }
    }
    site.wait_spliced(12).unwrap();
}

#[test]
fn npm_ws_without_stickiness_sees_every_backend() {
    let site = not_sticky();
    // Each worker takes the backends in turn; one of the two workers has six sessions or more.
    let target = site.listeners()[0];
    let sessions = site.node("ws.js", &[&format!("ws://{target}"), "12"]).unwrap();
    let seen = distinct(items(&sessions).iter().map(|it| &it["backend"]));
    site.wait_spliced(12).unwrap();
    let names = site.names();
    assert_eq!(seen, names.iter().map(String::as_str).collect());
    assert!(items(&sessions).iter().all(|it| items(&it["cookies"]).is_empty()), "{sessions}");
}

#[test]
fn socket_io_polls_and_upgrades_on_one_backend() {
    const CLIENTS: usize = 12;
    let site = sticky();
    for target in site.listeners() {
        for (transports, last) in
            [("polling,websocket", "websocket"), ("polling", "polling"), ("websocket", "websocket")]
        {
            let (url, number) = (format!("http://{target}"), CLIENTS.to_string());
            let clients = site.node("socketio.js", &[&url, &number, transports]).unwrap();
            let clients = items(&clients);
            assert_eq!(clients.len(), CLIENTS);
            let mut backends = BTreeSet::new();
            for client in clients {
                assert_eq!(client["errors"], Value::Array(Vec::new()), "{transports}: {client}");
                assert_eq!(client["transport"], last, "{client}");
                // It was greeted, and each message was answered, by the same backend.
                let own = distinct(items(&client["backends"]));
                assert_eq!((items(&client["backends"]).len(), own.len()), (11, 1), "{client}");
                backends.extend(own);
            }
            assert!(backends.len() > 1, "{transports}: all clients are with {backends:?}");
        }
    }
    // Two of the three ways end with a WebSocket, over IPv4 and IPv6.
    site.wait_spliced(2 * 2 * CLIENTS as u64).unwrap();
}

#[test]
fn socket_io_fails_without_stickiness() {
    let site = not_sticky();
    let url = format!("http://{}", site.listeners()[0]);
    let clients = site.node("socketio.js", &[&url, "16", "polling,websocket"]).unwrap();
    let failed = items(&clients).iter().filter(|client| {
        // What a Socket.IO server answers to a session that another one has opened.
        let errors = items(&client["errors"]).iter().map(|it| it.as_str().unwrap());
        errors.into_iter().any(|it| it.contains("400") && it.contains("Session ID unknown"))
    });
    // Each of a client's requests goes to any of three backends: hardly any client is lucky to the end.
    assert!(failed.count() >= 4, "{clients:#}");
    // A WebSocket at once is one request: nothing is there to be kept.
    let clients = site.node("socketio.js", &[&url, "12", "websocket"]).unwrap();
    for client in items(&clients) {
        assert_eq!(client["errors"], Value::Array(Vec::new()), "{client}");
    }
}

#[test]
fn python_websockets_stays_with_its_backend() {
    let site = sticky();
    for target in site.listeners() {
        let sessions = site.python("chat.py", &[&format!("ws://{target}"), "4"]).unwrap();
        stayed(&sessions, 4);
    }
    site.wait_spliced(8).unwrap();
}

#[test]
fn a_page_in_chromium_chats() {
    let site = sticky();
    let url = format!("http://{}/page", site.listeners()[0]);
    let (backend, seen) = site.browse(&url).unwrap();
    assert_eq!(seen["errors"], Value::Array(Vec::new()), "{seen}");
    assert_eq!(seen["transport"], "websocket", "{seen}");
    // Two WebSocket sessions; a Socket.IO greeting and an answer after the upgrade.
    for (chats, number) in [("websocket", 2), ("socketio", 2)] {
        let backends = items(&seen[chats]);
        assert_eq!(backends.len(), number, "{seen}");
        assert!(backends.iter().all(|it| *it == *backend), "loaded from {backend}: {seen}");
    }
    assert_eq!(seen["cookie"], "", "scripts cannot read it: {seen}");
    site.wait_spliced(3).unwrap();
}

/// The last answer to a request that gets one.
fn last(site: &WebSite, arguments: &[&str]) -> Answer {
    site.answers(arguments).unwrap().pop().unwrap()
}

#[test]
fn curl_keeps_its_cookie_and_its_connection() {
    let site = sticky();
    for target in site.listeners() {
        let url = format!("http://{target}/echo");
        let jar = if target.is_ipv4() { "jar4" } else { "jar6" };
        let asked = ["--cookie-jar", jar, "--cookie", jar, url.as_str()];
        let first = last(&site, &asked);
        let cookie = first.header("set-cookie").expect("a cookie");
        assert!(cookie.starts_with("sluice=") && cookie.contains("HttpOnly"), "{cookie}");
        for _ in 0..5 {
            assert_eq!(last(&site, &asked).backend(), first.backend());
        }
        // The client's address, for the backend; the cookie is between client and edge.
        let seen = first.json().unwrap();
        let client = site.lab.client(0).sockets(0)[usize::from(target.is_ipv6())].ip().to_string();
        assert_eq!(seen["headers"]["x-forwarded-for"], client, "{seen}");
        let host = target.to_string();
        assert_eq!(seen["headers"]["host"], host.trim_end_matches(":80"), "{seen}");

        // Five requests, one connection.
        let write = "\n%{http_code} with %{num_connects} connects\n";
        let arguments = [&["--write-out", write], [url.as_str(); 5].as_slice()].concat();
        let printed = site.curl(&arguments).unwrap();
        let connects: Vec<_> = printed.lines().filter(|it| it.ends_with(" connects")).collect();
        let [first, next] = ["200 with 1 connects", "200 with 0 connects"];
        assert_eq!(connects, [first, next, next, next, next]);
    }
}

/// A file of a few megabytes in the scratch directory, and its SHA-256.
fn upload(site: &WebSite) -> (usize, String) {
    let path = site.scratch().path().join("upload");
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let mut sum = tests::process::command("sha256sum");
    let sum = tests::process::run(sum.arg(path)).unwrap();
    (bytes.len(), sum[..64].to_owned())
}

#[test]
fn curl_uploads() {
    let site = sticky();
    let (bytes, sum) = upload(&site);
    for target in site.listeners() {
        let url = format!("http://{target}/echo");
        let chunked = ["--header", "Transfer-Encoding: chunked", "--header", "Expect:"];
        let sized = ["--header", "Expect:", "--header", "X-Sized: yes"];
        for how in [chunked, sized] {
            let answer = last(&site, &[&how[..], &["--upload-file", "upload", &url]].concat());
            let seen = answer.json().unwrap();
            assert_eq!((&seen["bytes"], &seen["sha256"]), (&bytes.into(), &sum.as_str().into()));
            assert_eq!(seen["method"], "PUT");
        }
    }
}

#[test]
fn curl_waits_for_100_continue() {
    let site = sticky();
    let (bytes, sum) = upload(&site);
    let target = site.listeners()[0];
    let expect = ["--header", "Expect: 100-continue", "--expect100-timeout", "20"];
    let url = format!("http://{target}/echo");
    let arguments = [&expect[..], &["--upload-file", "upload", &url]].concat();
    let answers = site.answers(&arguments).unwrap();
    let statuses: Vec<_> = answers.iter().map(|it| it.status).collect();
    assert_eq!(statuses, [100, 200]);
    let seen = answers[1].json().unwrap();
    assert_eq!((&seen["bytes"], &seen["sha256"]), (&bytes.into(), &sum.as_str().into()));
    // A backend that does not want the body says so before it has come.
    let url = format!("http://{target}/refused");
    let sent = ["--output", "/dev/null", "--write-out", "%{http_code} %{size_upload}"];
    let printed =
        site.curl(&[&expect[..], &sent[..], &["--upload-file", "upload", &url]].concat()).unwrap();
    assert_eq!(printed, "413 0");
}

#[test]
fn curl_gets_heads_streams_trailers_and_interim_answers() {
    let site = sticky();
    for target in site.listeners() {
        let url = |path: &str| format!("http://{target}{path}");
        let head = last(&site, &["--head", &url("/echo")]);
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert!(head.header("content-length").is_some_and(|it| it != "0"), "{head:?}");
        let nothing = last(&site, &[&url("/nothing")]);
        assert_eq!((nothing.status, nothing.body.as_str()), (204, ""));
        // Interim answers pass or not, but the last one comes.
        let hinted = last(&site, &[&url("/hints")]);
        assert_eq!((hinted.status, hinted.body.trim()), (200, hinted.backend()));

        let pieces = 3000;
        let streamed = last(&site, &[&url(&format!("/stream?pieces={pieces}"))]);
        let lines = streamed.body.lines().filter(|line| line.starts_with("piece "));
        assert_eq!(lines.count(), pieces * 100);

        // Raw, as the trailers come after the last chunk.
        let asks = ["--raw", "--header", "TE: trailers", "--header", "Connection: TE"];
        let raw = site.curl(&[&asks[..], &[&url("/stream?pieces=2")]].concat()).unwrap();
        let (_, trailers) = raw.rsplit_once("\r\n0\r\n").expect("the last chunk");
        assert!(trailers.to_ascii_lowercase().starts_with("x-sum: "), "{trailers:?}");
    }
}

#[test]
fn curl_speaks_http_1_0() {
    let site = sticky();
    let target = site.listeners()[0];
    let echoed = last(&site, &["--http1.0", &format!("http://{target}/echo")]);
    assert_eq!((echoed.status, &echoed.json().unwrap()["method"]), (200, &"GET".into()));
    // No chunks for a client that does not know them: the end of the connection is the end of the body.
    let streamed = last(&site, &["--http1.0", &format!("http://{target}/stream?pieces=50")]);
    assert_eq!(streamed.header("transfer-encoding"), None, "{streamed:?}");
    assert_eq!(streamed.body.lines().count(), 5000);
}
