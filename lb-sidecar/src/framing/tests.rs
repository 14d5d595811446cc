use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head_bytes: 1024 };

fn check(bytes: &[u8]) -> Result<State, Violation> {
    let mut framing = Framing::new(LIMITS);
    framing.feed(bytes)?;
    Ok(framing.state)
}

/// The rest of a request after `GET / HTTP/1.1`.
fn with_fields(fields: &str) -> Result<State, Violation> {
    check(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes())
}

fn with_body(body: &str) -> Result<State, Violation> {
    check(format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}").as_bytes())
}

fn is_start(result: Result<State, Violation>) -> bool {
    matches!(result, Ok(State::Start { .. }))
}

#[test]
fn whole_requests_pass() {
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost:a\r\nX:\r\nY: \t z \t\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5 \r\n\r\nab\n\0cGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\r\n\r\n00a\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \u{e9}\r\n\r\n",
    ] {
        let result = check(request.as_bytes());
        assert!(is_start(result), "{request:?}: {result:?}");
    }
}

#[test]
fn what_follows_an_upgrade_is_not_looked_at() {
    for request in [
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive ,\tUpgrade\r\n\r\n\0\0",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nConnection: x\r\nUpgrade: a, b\r\n\r\n\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\nContent-Length: 2\r\n\r\n\n\n\0",
        "CONNECT a:1 HTTP/1.0\r\n\r\n\x16\x03",
    ] {
        let mut framing = Framing::new(LIMITS);
        assert_eq!(framing.feed(request.as_bytes()), Ok(()), "{request:?}");
        assert!(framing.is_opaque(), "{request:?}");
    }
}

#[test]
fn request_lines() {
    use Violation::*;
    for (line, violation) in [
        ("\x16\x03\x01\x02", NotHttp),
        ("\0", NotHttp),
        (" GET / HTTP/1.1\r\n", LeadingSpace),
        ("\r\n\r\nGET / HTTP/1.1\r\n", LeadingSpace),
        ("\n", BareLf),
        ("\rG", BareCr),
        ("GE\tT / HTTP/1.1\r\n", BadMethod),
        ("G{T / HTTP/1.1\r\n", BadMethod),
        ("METHODMETHODMETHODMETHODMETHODMETHOD / HTTP/1.1\r\n", BadMethod),
        ("HELLO\r\n", BadVersion),
        ("GET  / HTTP/1.1\r\n", BadTarget),
        ("GET /\u{e9} HTTP/1.1\r\n", BadTarget),
        ("GET /\0 HTTP/1.1\r\n", BadTarget),
        ("GET /\r\n", BadVersion),
        ("GET /\n", BareLf),
        ("GET / \r\n", BadVersion),
        ("GET / http/1.1\r\n", BadVersion),
        ("GET / HTTP/1.10\r\n", BadVersion),
        ("GET / HTTP/1.1 \r\n", BadVersion),
        ("GET / HTTP/1.1\n", BareLf),
        ("GET / HTTP/1.1\rX", BareCr),
        ("GET / HTTP/1.2\r\n", UnknownVersion),
        ("GET / HTTP/0.9\r\n", UnknownVersion),
        ("PRI * HTTP/2.0\r\n", UnknownVersion),
    ] {
        assert_eq!(check(line.as_bytes()).unwrap_err(), violation, "{line:?}");
    }
}

#[test]
fn heads() {
    use Violation::*;
    for (fields, violation) in [
        ("A: b\r\n c\r\n", ObsFold),
        ("A: b\r\n\tc\r\n", ObsFold),
        ("A: b\n", BareLf),
        ("A\n", BareLf),
        ("A: b\rc\r\n", BareCr),
        ("\rX", BareCr),
        (": b\r\n", EmptyName),
        ("A\r\n", BadName),
        ("A(: b\r\n", BadName),
        ("\u{e9}: b\r\n", BadName),
        ("A\0: b\r\n", BadName),
        ("A : b\r\n", SpaceBeforeColon),
        ("Transfer-Encoding\t: chunked\r\n", SpaceBeforeColon),
        ("A: \0\r\n", BadValue),
        ("A: b\x0bc\r\n", BadValue),
        ("A: \x7f\r\n", BadValue),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", RepeatedContentLength),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", RepeatedContentLength),
        ("Content-Length: 5, 5\r\n", RepeatedContentLength),
        ("Content-Length: +5\r\n", BadContentLength),
        ("Content-Length: -5\r\n", BadContentLength),
        ("Content-Length: 0x5\r\n", BadContentLength),
        ("Content-Length: 5 5\r\n", BadContentLength),
        ("Content-Length:\r\n", BadContentLength),
        ("Content-Length: 9223372036854775808\r\n", BadContentLength),
        ("Content-Length: 99999999999999999999999\r\n", BadContentLength),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", LengthAndEncoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", LengthAndEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BadEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", BadEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", BadEncoding),
        ("Transfer-Encoding: xchunked\r\n", BadEncoding),
        ("Transfer-Encoding: \r\n", BadEncoding),
        ("Transfer-Encoding: a-coding-that-nobody-ever-heard-of\r\n", BadEncoding),
        ("Transfer-Encoding: identity\r\n", UnknownEncoding),
        ("Transfer-Encoding: gzip\r\n", UnknownEncoding),
    ] {
        assert_eq!(with_fields(fields).unwrap_err(), violation, "{fields:?}");
    }
    let http10 = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(check(http10.as_bytes()).unwrap_err(), EncodingInHttp10);
}

#[test]
fn chunks() {
    use Violation::*;
    for (body, violation) in [
        ("\r\n", BadChunkSize),
        ("g\r\n", BadChunkSize),
        ("-1\r\n", BadChunkSize),
        ("0x1\r\n", BadChunkSize),
        ("1 \r\n", BadChunkSize),
        ("ffffffffffffffff\r\n", BadChunkSize),
        ("0000000000000001\r\n", BadChunkSize),
        ("1\n", BareLf),
        ("1\rx", BareCr),
        ("1;a=b\r\n", ChunkExtension),
        ("0;a\r\n", ChunkExtension),
        ("1\r\nab", BadChunkEnd),
        ("1\r\na\n", BadChunkEnd),
        ("1\r\na\rb", BadChunkEnd),
        ("0\r\nContent-Length: 1\r\n", ForbiddenTrailer),
        ("0\r\ntransfer-encoding: chunked\r\n", ForbiddenTrailer),
        ("0\r\nHOST: a\r\n", ForbiddenTrailer),
        ("0\r\nX-Forwarded-For: a\r\n", ForbiddenTrailer),
        ("0\r\nX-Forwarded-Something-Very-Long: a\r\n", ForbiddenTrailer),
        ("0\r\nA: b\r\n c\r\n", ObsFold),
        ("0\r\nA : b\r\n", SpaceBeforeColon),
    ] {
        assert_eq!(with_body(body).unwrap_err(), violation, "{body:?}");
    }
    let long = format!("0\r\nA: {}\r\n", "b".repeat(1100));
    assert_eq!(with_body(&long).unwrap_err(), TrailerTooLarge);
}

#[test]
fn limits_are_exact() {
    let head = |n: usize| {
        let start = "GET / HTTP/1.1\r\nA: ";
        format!("{start}{}\r\n\r\n", "b".repeat(n - start.len() - 4))
    };
    assert!(is_start(check(head(1024).as_bytes())));
    assert_eq!(check(head(1025).as_bytes()).unwrap_err(), Violation::HeadTooLarge);
    // Each request has the whole limit.
    assert!(is_start(check(head(1024).repeat(3).as_bytes())));
    let line = format!("GET /{}", "a".repeat(1020));
    assert_eq!(check(line.as_bytes()).unwrap_err(), Violation::TargetTooLong);
    assert!(is_start(with_fields(&"A:\r\n".repeat(99))));
    assert_eq!(with_fields(&"A:\r\n".repeat(100)).unwrap_err(), Violation::TooManyFields);
}

#[test]
fn a_violation_is_final_and_says_what_ended_before() {
    let mut framing = Framing::new(LIMITS);
    let bytes = b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nA : b\r\n\r\n";
    assert_eq!(framing.check(bytes), Err((18, Violation::SpaceBeforeColon)));
    assert_eq!(framing.feed(b"GET / HTTP/1.1\r\n\r\n"), Err(Violation::SpaceBeforeColon));
}

#[test]
fn labels_differ_and_statuses_are_errors() {
    let mut labels: Vec<_> = Violation::ALL.iter().map(|violation| violation.label()).collect();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), Violation::ALL.len());
    assert!(Violation::ALL.iter().all(|violation| (400..600).contains(&violation.status())));
}

/// Requests of every kind, and what makes them wrong.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("GET / HTTP/1.1\r\n".as_bytes().to_vec()),
        Just("POST /a?b HTTP/1.1\r\n".into()),
        Just("Content-Length: 3\r\n\r\nabc".into()),
        Just("Content-Length: 12".into()),
        Just("Transfer-Encoding: chunked\r\n\r\n".into()),
        Just("Connection: close, upgrade\r\n".into()),
        Just("Upgrade: websocket\r\n".into()),
        Just("X-Y: z\r\n".into()),
        Just("3\r\nabc\r\n".into()),
        Just("0\r\n\r\n".into()),
        Just("0\r\nA: b\r\n".into()),
        Just("\r\n".into()),
        prop::collection::vec(any::<u8>(), 0..4),
        (0..600usize).prop_map(|n| vec![b'a'; n]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        Just(String::from("\r\n")),
        "[a-z\r\n]{0,40}".prop_map(|b| format!("Content-Length: {}\r\n\r\n{b}", b.len())),
        prop::collection::vec("[a-z\r\n]{1,20}", 0..4).prop_map(|chunks| {
            let chunks: String =
                chunks.iter().map(|c| format!("{:x}\r\n{c}\r\n", c.len())).collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\nX-Sum: 1\r\n\r\n")
        }),
    ];
    let field = "X[A-Za-z0-9-]{0,10}:[ \t]?[!-~ ]{0,20}\r\n";
    ("[A-Z]{1,10}", "/[a-z/?=&]{0,30}", prop::collection::vec(field, 0..6), body)
        .prop_filter("a tunnel", |(method, ..)| method != "CONNECT")
        .prop_map(|(method, target, fields, body)| {
            format!("{method} {target} HTTP/1.1\r\n{}{body}", fields.concat()).into_bytes()
        })
}

/// What came of it: where the check stands, or why it refused. How far it had looked is then nobody's concern.
fn outcome(bytes: &[u8], cuts: &[usize]) -> String {
    let mut framing = Framing::new(LIMITS);
    let mut rest = bytes;
    let mut result = Ok(());
    for cut in cuts {
        let (now, later) = rest.split_at((*cut).min(rest.len()));
        rest = later;
        result = framing.feed(now);
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        result = framing.feed(rest);
    }
    match result {
        Ok(()) => format!("{:?} {} {}", framing.state, framing.head, framing.is_opaque()),
        Err(violation) => format!("{violation:?}"),
    }
}

proptest! {
    #[test]
    fn cuts_make_no_difference(
        bytes in pieces(),
        cuts in prop::collection::vec(0..40usize, 0..60),
    ) {
        prop_assert_eq!(outcome(&bytes, &[]), outcome(&bytes, &cuts));
    }

    #[test]
    fn well_formed_requests_pass(list in prop::collection::vec(requests(), 1..4)) {
        let bytes = list.concat();
        prop_assert!(is_start(check(&bytes)), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn mutations_never_panic_and_no_part_of_a_bad_request_counts_as_whole(
        list in prop::collection::vec(requests(), 1..4),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = list.concat();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err((whole, _)) = Framing::new(LIMITS).check(&bytes) {
            prop_assert!(is_start(check(&bytes[..whole])) && whole < bytes.len());
        }
    }
}
