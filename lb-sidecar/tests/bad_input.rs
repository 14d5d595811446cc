//! Requests that are none: each gets a defined answer, the end of its connection, and a counter.

mod harness;

use harness::*;

/// What is sent, and the status of the answer.
const BAD: &[(&str, &str, &str)] = &[
    (
        "CL and TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "TE and CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "400",
    ),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "400",
    ),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", "400"),
    ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", "400"),
    (
        "a length that is none",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
        "400",
    ),
    (
        "an endless length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabcd",
        "400",
    ),
    ("obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "400"),
    ("bare LF", "GET / HTTP/1.1\nHost: a\n\n", "400"),
    ("bare LF in fields", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", "400"),
    ("bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", "400"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", "400"),
    ("an invalid name", "GET / HTTP/1.1\r\nHost: a\r\nX(): 1\r\n\r\n", "400"),
    ("an empty name", "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", "400"),
    ("a line without a colon", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", "400"),
    (
        "whitespace before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd",
        "400",
    ),
    ("whitespace before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400"),
    (
        "an unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "chunked that is not the last",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a masked coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "TE in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    ("no Host", "GET / HTTP/1.1\r\n\r\n", "400"),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
    ("a Host that is none", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"),
    ("HTTP/0.9", "GET /\r\n", "400"),
    ("HTTP/0.9, bare", "GET /\n", "400"),
    ("HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"),
    ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
    ("HTTP/1.9", "GET / HTTP/1.9\r\nHost: a\r\n\r\n", "505"),
    ("binary noise", "\x17\x03\x01\x02\x00\x01\x00\x01\x7f\x03\x03\r\n\r\n", "400"),
    ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ("a tab for a space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ("a space at the end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "400"),
    ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "501"),
    ("* with GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    (
        "an upgrade with a body",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc",
        "400",
    ),
    (
        "an upgrade with chunks",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "an unknown expectation",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: a-pony\r\nContent-Length: 0\r\n\r\n",
        "417",
    ),
    (
        "chunk extensions",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a chunk size that is none",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        "400",
    ),
    (
        "an endless chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
        "400",
    ),
    (
        "a chunk that is too long",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a chunk with a bare LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a trailer that sets the length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
        "400",
    ),
    (
        "bad trailers",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX(): 3\r\n\r\n",
        "400",
    ),
];

/// Reads whole requests and answers them; what it was sent must not be more than one.
async fn backend() -> Server {
    Server::new(|mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut read = vec![0; 4096];
        let mut seen = Vec::new();
        while let Ok(n @ 1..) = stream.read(&mut read).await {
            seen.extend_from_slice(&read[..n]);
            let text = String::from_utf8_lossy(&seen);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let chunked = field(&text, "transfer-encoding").is_some();
            let length = field(&text, "content-length").map_or(0, |n| n.parse().unwrap());
            if if chunked { body.ends_with("0\r\n\r\n") } else { body.len() >= length } {
                assert!(head.lines().filter(|l| l.contains("HTTP/1.1")).count() == 1, "{text}");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                seen.clear();
            }
        }
    })
    .await
}

#[test]
fn each_has_its_answer() {
    run(|| async {
        let server = backend().await;
        let mut wrong = Vec::new();
        for (what, bytes, status) in BAD {
            let edge = Edge::new(&[server.address], |_| {});
            let mut client = edge.connect().await;
            client.send(bytes).await;
            let answer = match tokio::time::timeout(LONG / 20, client.read_to_end()).await {
                Ok(answer) => answer,
                Err(_) => "(stays open)".into(),
            };
            let expected = answer.starts_with(&format!("HTTP/1.1 {status} "));
            let refused: u64 = edge.worker.report().services[0]
                .outcomes
                .iter()
                .filter(|(label, _)| {
                    !["connection", "request"].contains(&label.as_str())
                        && !label.starts_with("status_")
                })
                .map(|(_, n)| n)
                .sum();
            if !expected || refused == 0 || answer.matches("HTTP/1.1 ").count() != 1 {
                wrong.push(format!("{what}: want {status:?}, counted {refused}: {answer:?}"));
            }
            drop(client);
            edge.quiet().await;
            assert_eq!(edge.live(), 0, "{what}");
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), BAD.len(), wrong.join("\n"));
    });
}

/// What follows a head in a segment of its own.
#[test]
fn bad_bodies_of_requests_on_their_way() {
    run(|| async {
        let server = backend().await;
        for (bytes, label) in [
            ("3;x=1\r\nabc\r\n0\r\n\r\n", "chunk_extension"),
            ("zz\r\n", "bad_chunk_size"),
            ("3\r\nabcdef\r\n", "bad_chunk_end"),
            ("0\r\nX(): 3\r\n\r\n", "bad_name"),
        ] {
            let edge = Edge::new(&[server.address], |_| {});
            let mut client = edge.connect().await;
            client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            edge.counted("request", 1).await;
            client.send(bytes).await;
            let answer = client.read_to_end().await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{bytes}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
            assert_eq!(edge.count(label), 1, "{bytes}: {:?}", edge.worker.report());
            drop(client);
            edge.quiet().await;
            assert_eq!(edge.live(), 0);
        }
    });
}

#[test]
fn a_bad_request_after_a_good_one() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost : a\r\n\r\n").await;
        let answers = client.read_to_end().await;
        assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
        assert_eq!(answers.matches("HTTP/1.1 400 ").count(), 1, "{answers}");
        assert_eq!(edge.count("space_before_colon"), 1);
    });
}

#[test]
fn heads_over_the_limit() {
    run(|| async {
        let edge = Edge::new(&[], |s| s.http.head_bytes = 8 << 10);
        for head in [
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(9 << 10)),
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(100 << 10)),
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(200)),
        ] {
            let mut client = edge.connect().await;
            client.send_anyway(&head).await;
            let answer = client.read_to_end().await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{} bytes: {answer}", head.len());
        }
        assert_eq!(edge.count("head_too_large") + edge.count("too_many_fields"), 3);
        edge.quiet().await;
    });
}
