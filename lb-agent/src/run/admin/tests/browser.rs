//! What browsers are told, and what they must not be able to do.

use super::*;

/// The whole answer to a request with these lines in its head.
async fn whole(address: SocketAddr, first: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{first} HTTP/1.1\r\nConnection: close\r\n{head}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn problem(answer: &str) -> Value {
    assert!(answer.contains("content-type: application/json"), "{answer}");
    let problem: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(!problem["error"].as_str().unwrap().is_empty(), "{problem}");
    assert!(!problem["remedy"].as_str().unwrap().is_empty(), "{problem}");
    problem
}

#[tokio::test]
async fn a_name_that_may_be_a_strangers_is_refused() {
    let server = willing(view("admin_hosts = [\"Edge-1.example.com\"]"));
    let at = server.address;
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = format!("{}:9900", own.trim());
    for host in ["127.0.0.1:9900", "[::1]:9900", "edge", &own, "edge-1.EXAMPLE.com:9900"] {
        let answer = whole(at, "GET /v1/config", &format!("Host: {host}\r\n")).await;
        assert_eq!(status_of(&answer), 200, "{host}: {answer}");
    }
    for host in ["evil.example:9900", "127.0.0.1.evil.example", "edge-1.example.com.evil.example"] {
        for page in ["GET /", "GET /v1/config", "GET /v1/stream", "GET /dashboard/main.js"] {
            let answer = whole(at, page, &format!("Host: {host}\r\n")).await;
            assert_eq!(status_of(&answer), 421, "{page} {host}: {answer}");
            assert!(problem(&answer)["remedy"].as_str().unwrap().contains("admin_hosts"));
        }
        // As a supervisor or Prometheus may call it.
        for page in ["GET /metrics", "GET /healthz"] {
            let answer = whole(at, page, &format!("Host: {host}\r\n")).await;
            assert_ne!(status_of(&answer), 421, "{page} {host}: {answer}");
        }
    }
    // Who is no browser.
    assert_eq!(status_of(&whole(at, "GET /v1/config", "").await), 200);
}

#[tokio::test]
async fn a_page_of_another_site_reads_nothing() {
    let server = willing(view(""));
    for page in ["GET /v1/stream", "GET /v1/status", "GET /v1/config", "OPTIONS /v1/drain"] {
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9901"] {
            let head = format!("Host: 127.0.0.1:9900\r\nOrigin: {origin}\r\n");
            let answer = whole(server.address, page, &head).await;
            assert_eq!(status_of(&answer), 403, "{page} {origin}: {answer}");
            assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{answer}");
            problem(&answer);
        }
    }
}

#[tokio::test]
async fn every_answer_forbids_what_the_dashboard_does_not_need() {
    let server = willing(view(""));
    for (page, kind) in [
        ("GET /", "text/html"),
        ("GET /dashboard/main.js", "text/javascript"),
        ("GET /dashboard/style.css", "text/css"),
        ("GET /v1/config", "application/json"),
        ("GET /nowhere", "application/json"),
    ] {
        let answer = whole(server.address, page, "Host: edge\r\n").await.to_ascii_lowercase();
        for line in [
            &format!("content-type: {kind}"),
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "cross-origin-resource-policy: same-origin",
            "referrer-policy: no-referrer",
        ] {
            assert!(answer.contains(line), "{page}: {line}: {answer}");
        }
        let policy = answer.lines().find_map(|it| it.strip_prefix("content-security-policy: "));
        let policy = policy.unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{page}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    let answer = whole(server.address, "GET /dashboard/passwd", "Host: edge\r\n").await;
    assert_eq!(status_of(&answer), 404);
    problem(&answer);
}

#[tokio::test]
async fn the_token_can_be_tried_and_changes_nothing() {
    let (path, line) = token_file("tried", TOKEN);
    let server = willing(view(&line));
    let (status, answer) = post(server.address, "/v1/token", &json(), "{}").await;
    assert_eq!((status, &answer["changes"]), (200, &Value::from(true)));
    let wrong = "Content-Type: application/json\r\nAuthorization: Bearer 0000111122223333\r\n";
    assert_eq!(post(server.address, "/v1/token", wrong, "{}").await.0, 401);
    std::fs::remove_file(path).unwrap();
    let without = willing(view(""));
    assert_eq!(post(without.address, "/v1/token", &json(), "{}").await.0, 403);
}

/// Reads from a stream until `wanted` has come.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let (mut read, mut buffer) = (String::new(), [0; 4096]);
    while !read.contains(wanted) {
        let more = stream.read(&mut buffer).await.unwrap();
        assert!(more > 0, "{read}");
        read += std::str::from_utf8(&buffer[..more]).unwrap();
    }
    read
}

async fn watch(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v1/stream HTTP/1.1\r\nHost: edge\r\n\r\n").await.unwrap();
    stream
}

#[tokio::test]
async fn the_stream_says_what_is_allowed_and_then_the_state() {
    let (path, line) = token_file("stream", TOKEN);
    for (view, changes) in [(View::new("edge-1"), "none"), (view(&line), "token")] {
        let server = willing(view);
        let mut stream = watch(server.address).await;
        let read = read_until(&mut stream, "\"changes\"").await;
        assert!(read.contains("content-type: text/event-stream"), "{read}");
        assert!(read.contains(&format!("{{\"changes\":\"{changes}\"}}")), "{read}");
    }
    std::fs::remove_file(path).unwrap();
    let server = willing(View::new("edge-1"));
    let mut stream = watch(server.address).await;
    let read = read_until(&mut stream, "event: change").await;
    assert!(read.contains("event: state\ndata: {\"at\":"), "{read}");
}

#[tokio::test]
async fn one_more_than_may_watch_is_told_so() {
    let server = willing(View::new("edge-1"));
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = watch(server.address).await;
        read_until(&mut stream, "event: hello").await;
        streams.push(stream);
    }
    let answer = whole(server.address, "GET /v1/stream", "Host: edge\r\n").await;
    assert_eq!(status_of(&answer), 503, "{answer}");
    assert!(problem(&answer)["error"].as_str().unwrap().contains("16 others"));
    // Whoever goes makes room, as soon as the edge has noticed.
    streams.pop();
    tokio::time::timeout(std::time::Duration::from_secs(20), async {
        let mut stream = watch(server.address).await;
        while read_until(&mut stream, "\r\n\r\n").await.contains(" 503 ") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stream = watch(server.address).await;
        }
    })
    .await
    .expect("there is room");
}

#[tokio::test]
async fn a_reader_who_is_gone_is_noticed() {
    let bound = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    bound.0.set_nonblocking(false).unwrap();
    let _client = std::net::TcpStream::connect(bound.0.local_addr().unwrap()).unwrap();
    let (accepted, _) = bound.0.accept().unwrap();
    let timeout = socket2::SockRef::from(&accepted).tcp_user_timeout().unwrap();
    assert_eq!(timeout, Some(std::time::Duration::from_secs(30)));
}

#[tokio::test]
async fn what_the_framework_refuses_has_the_form_of_all_errors() {
    let (path, line) = token_file("framework", TOKEN);
    let server = willing(view(&line));
    let large = format!("{{\"deadline\": \"{}\"}}", "1".repeat(MOST_BYTES));
    let (status, answer) = post(server.address, DRAIN, &json(), &large).await;
    assert_eq!(status, 413, "{answer}");
    assert!(answer["remedy"].as_str().unwrap().contains("16384 bytes"), "{answer}");
    let answer = whole(
        server.address,
        "DELETE /v1/services/chat/backends/a?force=perhaps",
        &format!("Host: edge\r\n{}", json()),
    )
    .await;
    assert_eq!(status_of(&answer), 400);
    problem(&answer);
    let answer = whole(server.address, "GET /v1/services/%ff", "Host: edge\r\n").await;
    assert_eq!(status_of(&answer), 400);
    problem(&answer);
    std::fs::remove_file(path).unwrap();
}
