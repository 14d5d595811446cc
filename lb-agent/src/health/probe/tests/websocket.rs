//! WebSocket readiness against tokio-tungstenite, and against servers that write frames by hand.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::*;

/// A server that completes the opening handshake and goes on with `serve`.
async fn upgraded<F, S>(serve: S) -> SocketAddr
where
    S: Fn(WebSocketStream<TcpStream>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    server(move |stream| {
        let serve = serve.clone();
        async move { serve(accept_async(stream).await.unwrap()).await }
    })
    .await
}

/// What a server does once it has sent its frames.
#[derive(Clone, Copy)]
enum After {
    Wait,
    Repeat,
    Close,
}

/// A server that upgrades by hand, and then sends `frames` whatever it is sent.
async fn upgraded_raw(frames: impl Into<Vec<u8>>, after: After) -> SocketAddr {
    let frames = Arc::new(frames.into());
    server(move |mut stream| {
        let frames = Arc::clone(&frames);
        async move {
            let head = head(&mut stream).await;
            let field = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("sec-websocket-key").then_some(value)
            });
            let accept = derive_accept_key(field.unwrap().as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: {accept}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.write_all(&frames).await;
            match after {
                After::Wait => {}
                After::Repeat => while stream.write_all(&frames).await.is_ok() {},
                After::Close => stream.shutdown().await.unwrap(),
            }
            drain(&mut stream).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_real_server_is_ready_and_sees_a_closing_handshake() {
    let (sender, mut seen) = tokio::sync::mpsc::channel(8);
    let addr = upgraded(move |mut ws| {
        let sender = sender.clone();
        async move {
            while let Some(message) = ws.next().await {
                sender.send(message.map_err(|e| e.to_string())).await.unwrap();
            }
        }
    })
    .await;
    let mut payloads = Vec::new();
    for _ in 0..2 {
        assert_eq!(run(websocket(), addr, PATIENT).await, Ok(()));
        let Some(Ok(Message::Ping(payload))) = seen.recv().await else { panic!("no ping") };
        payloads.push(payload);
        assert_eq!(seen.recv().await, Some(Ok(Message::Close(None))));
    }
    assert_eq!(payloads[0].len(), 16);
    assert_ne!(payloads[0], payloads[1], "the payload is random");
}

#[tokio::test]
async fn the_upgrade_goes_to_the_configured_path_and_host() {
    let (sender, mut heads) = tokio::sync::mpsc::channel(1);
    let addr = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(head(&mut stream).await).await;
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
            drain(&mut stream).await;
        }
    })
    .await;
    let spec = WebSocketSpec { path: "/chat?v=2".into(), host: Some("chat.example".into()) };
    assert_eq!(verdict(Kind::WebSocket(spec), addr, PATIENT).await, "status 403, expected 101");
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("GET /chat?v=2 HTTP/1.1\r\n"), "{head}");
    for field in [
        "Host: chat.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-Websocket-Version: 13",
    ] {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "no {field} in {head}");
    }
}

#[tokio::test]
async fn other_frames_before_the_pong_are_tolerated() {
    let addr = upgraded(|mut ws| async move {
        for _ in 0..50 {
            ws.send(Message::Text("welcome".into())).await.unwrap();
            ws.send(Message::Ping("server".into())).await.unwrap();
            ws.send(Message::Pong("nobody asked".into())).await.unwrap();
        }
        ws.send(Message::Binary(vec![0; 60_000].into())).await.unwrap();
        while let Some(Ok(_)) = ws.next().await {}
    })
    .await;
    assert_eq!(verdict(websocket(), addr, PATIENT).await, "ok");
}

#[tokio::test]
async fn a_server_that_upgrades_and_hangs_is_not_ready() {
    let addr = upgraded(|ws| async move {
        std::future::pending::<()>().await;
        drop(ws);
    })
    .await;
    assert_eq!(verdict(websocket(), addr, HASTY).await, "no pong within 200ms");
}

#[tokio::test]
async fn a_pong_with_another_payload_is_not_the_pong() {
    let addr = upgraded_raw(*b"\x8a\x10another payload.", After::Wait).await;
    assert_eq!(verdict(websocket(), addr, HASTY).await, "no pong within 200ms");
}

#[tokio::test]
async fn a_close_frame_in_place_of_the_pong_is_named() {
    let addr = upgraded(|mut ws| async move {
        let frame = CloseFrame { code: CloseCode::Again, reason: "try later".into() };
        let _ = ws.close(Some(frame)).await;
        while let Some(Ok(_)) = ws.next().await {}
    })
    .await;
    assert_eq!(
        verdict(websocket(), addr, PATIENT).await,
        "closed before the pong with code 1013 \"try later\""
    );
}

#[tokio::test]
async fn a_wrong_opening_handshake_fails() {
    let wrong = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    for (what, answer, expected) in [
        ("closed at once", "", "connection closed before the end of the response"),
        ("no upgrade", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "status 200, expected 101"),
        ("busy", "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "status 503, expected 101"),
        (
            "bare 101",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "no Upgrade, expected \"websocket\"",
        ),
        (
            "another key",
            wrong,
            "Sec-WebSocket-Accept \"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\", expected \"",
        ),
        ("garbage", "\x00\x01\x02\x03\r\n\r\n", "not an HTTP/1.1 response: "),
    ] {
        let found = verdict(websocket(), answering(answer).await, PATIENT).await;
        assert!(found.starts_with(expected), "{what}: {found}");
    }
    assert_eq!(verdict(websocket(), hanging("").await, HASTY).await, "no response within 200ms");
    let endless = endless("HTTP/1.1 101 Switching Protocols\r\n", "x-field: value\r\n").await;
    let found = verdict(websocket(), endless, PATIENT).await;
    assert_eq!(found, "response head over 65536 bytes or 100 fields");
}

#[tokio::test]
async fn frames_that_break_the_rfc_or_the_limits_fail() {
    for (what, frames, after, expected) in [
        (
            "reserved bits",
            b"\xf1\x00".to_vec(),
            After::Wait,
            "WebSocket: WebSocket protocol error: ",
        ),
        ("a masked frame from a server", b"\x81\x81\0\0\0\0a".to_vec(), After::Wait, "WebSocket: "),
        ("an unknown opcode", b"\x83\x00".to_vec(), After::Wait, "WebSocket: "),
        (
            "a long control frame",
            [&b"\x89\x7e\x01\x00"[..], &[0; 256]].concat(),
            After::Wait,
            "WebSocket: ",
        ),
        (
            "a frame of 2^62 bytes",
            b"\x82\x7f\x40\0\0\0\0\0\0\0".to_vec(),
            After::Wait,
            "WebSocket: Space limit exceeded: ",
        ),
        (
            "a message without an end",
            b"\x01\x05hello\x00\x05world".to_vec(),
            After::Repeat,
            "WebSocket: ",
        ),
        (
            "text that is none",
            b"\x81\x02\xff\xff".to_vec(),
            After::Wait,
            "WebSocket: UTF-8 encoding error: ",
        ),
        (
            "chatter without an end",
            b"\x81\x05hello".to_vec(),
            After::Repeat,
            "no pong among 256 messages",
        ),
    ] {
        let addr = upgraded_raw(frames, after).await;
        let found = verdict(websocket(), addr, PATIENT).await;
        assert!(found.starts_with(expected), "{what}: {found}");
    }
    // A message that goes on in fragments forever runs into the limit too.
    let mut fragments = b"\x02\x00".to_vec();
    for _ in 0..70 {
        fragments.extend_from_slice(b"\x00\x7e\x04\x00");
        fragments.extend_from_slice(&[0; 1024]);
    }
    let found = verdict(websocket(), upgraded_raw(fragments, After::Wait).await, PATIENT).await;
    assert!(found.starts_with("WebSocket: Space limit exceeded: "), "{found}");
}

#[tokio::test]
async fn a_connection_that_ends_before_the_pong_fails() {
    for (frames, what) in
        [(&b""[..], "at once"), (b"\x81\x05hel", "in a frame"), (b"\x8a", "in a header")]
    {
        let addr = upgraded_raw(frames, After::Close).await;
        let found = verdict(websocket(), addr, PATIENT).await;
        assert_eq!(found, "connection closed before the end of the pong", "{what}");
    }
}
