//! Hellos of a real client, and of clients that nobody should be.

use std::{io::Cursor, sync::Arc};

use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring::default_provider,
    pki_types::ServerName,
    server::Acceptor,
    version::{TLS12, TLS13},
};

use super::*;

/// What rustls sends first.
fn of_rustls(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS12, &TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|it| it.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// All at once.
fn read(bytes: &[u8]) -> Result<Option<Hello>, Bad> {
    Reader::default().feed(bytes)
}

/// One byte after the other, up to the answer.
fn read_slowly(bytes: &[u8]) -> Result<Option<Hello>, Bad> {
    let mut reader = Reader::default();
    for byte in bytes {
        let fed = reader.feed(&[*byte]);
        if fed != Ok(None) {
            return fed;
        }
    }
    Ok(None)
}

fn hello(name: Option<&str>, alpn: &[&[u8]]) -> Hello {
    let alpn = alpn.iter().map(|it| (*it).into()).collect();
    Hello { name: name.map(Into::into), alpn }
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn name(name: &[u8]) -> Vec<u8> {
    [&[HOST_NAME][..], &vector16(name)].concat()
}

/// A `server_name` extension with this list.
fn names(list: &[u8]) -> Vec<u8> {
    extension(SERVER_NAME, &vector16(list))
}

/// A handshake message with these extensions; none: without the field.
fn message(extensions: Option<&[u8]>) -> Vec<u8> {
    let extensions = extensions.map(vector16).unwrap_or_default();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &extensions].concat();
    let length = (body.len() as u32).to_be_bytes();
    [&[CLIENT_HELLO], &length[1..], &body].concat()
}

/// In records of so many bytes.
fn records(message: &[u8], most: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &vector16(part)].concat();
    message.chunks(most).flat_map(record).collect()
}

fn record_with(extensions: &[u8]) -> Vec<u8> {
    records(&message(Some(extensions)), MOST_FRAGMENT)
}

#[test]
fn a_clients_name_and_protocols() {
    let bytes = of_rustls("Chat.Example.", &[b"h2", b"http/1.1"]);
    let expected = Ok(Some(hello(Some("chat.example"), &[b"h2", b"http/1.1"])));
    assert_eq!(read(&bytes), expected);
    assert_eq!(read_slowly(&bytes), expected);
    assert_eq!(read(&[&bytes[..], b"and what follows"].concat()), expected);
    assert_eq!(read(&of_rustls("192.0.2.1", &[])), Ok(Some(hello(None, &[]))), "it has no SNI");
}

#[test]
fn hellos_that_are_unusual_and_good() {
    let chat = hello(Some("chat.example"), &[]);
    let grease =
        [extension(0x0a0a, &[0]), names(&name(b"chat.example")), extension(0xfe0d, b"ech")];
    for (what, bytes, expected) in [
        ("no extensions, as of TLS 1.0", records(&message(None), 512), Hello::default()),
        ("an empty list of extensions", record_with(&[]), Hello::default()),
        ("GREASE (RFC 8701) and ECH around the name", record_with(&grease.concat()), chat.clone()),
        ("a name of another kind", record_with(&names(&[9, 1, 2])), Hello::default()),
        (
            "a name of another kind behind the host's",
            record_with(&names(&[&name(b"chat.example")[..], &[9, 1]].concat())),
            chat.clone(),
        ),
        ("an IPv4 address", record_with(&names(&name(b"192.0.2.1"))), Hello::default()),
        ("an IPv6 address", record_with(&names(&name(b"[2001:db8::1]"))), Hello::default()),
        (
            "capitals and the dot of the root",
            record_with(&names(&name(b"CHAT.Example."))),
            chat.clone(),
        ),
        (
            "an underscore",
            record_with(&names(&name(b"my_chat.example"))),
            hello(Some("my_chat.example"), &[]),
        ),
        (
            "protocols of any bytes",
            record_with(&extension(ALPN, &vector16(&[2, 0x0a, 0x0a, 1, 0xff]))),
            hello(None, &[&[0x0a, 0x0a], &[0xff]]),
        ),
    ] {
        assert_eq!(read(&bytes), Ok(Some(expected.clone())), "{what}");
        assert_eq!(read_slowly(&bytes), Ok(Some(expected)), "{what}, slowly");
    }
}

#[test]
fn what_is_none_is_refused() {
    let good = record_with(&names(&name(b"chat.example")));
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let twice = [names(&name(b"a.example")), names(&name(b"b.example"))].concat();
    let protocols = extension(ALPN, &vector16(&[1, b'a']));
    for (what, bytes, expected) in [
        ("HTTP", b"GET / HTTP/1.1\r\n".to_vec(), Bad::Foreign),
        ("SSH", b"SSH-2.0-x\r\n".to_vec(), Bad::Foreign),
        ("an alert", vec![21, 3, 1, 0, 2, 2, 40], Bad::Foreign),
        ("a hello of SSL 2.0", vec![0x80, 0x2e, 1, 3, 1], Bad::Foreign),
        ("another version of records", changed(1, 4), Bad::Foreign),
        ("an empty record", vec![22, 3, 1, 0, 0], Bad::Malformed),
        ("a record that is too long", vec![22, 3, 1, 0x40, 1], Bad::Malformed),
        ("a ServerHello", changed(5, 2), Bad::Malformed),
        ("a message that is too long", changed(6, 1), Bad::TooLarge),
        ("a session of 33 bytes", changed(5 + 4 + 34, 33), Bad::Malformed),
        (
            "another record in the midst",
            { [&records(&message(None), 20)[..25], &[20, 3, 3, 0, 1, 1]].concat() },
            Bad::Malformed,
        ),
        ("two extensions of the name", record_with(&twice), Bad::Malformed),
        ("two of the protocols", record_with(&protocols.repeat(2)), Bad::Malformed),
        (
            "two names",
            record_with(&names(&[name(b"a.example"), name(b"b.example")].concat())),
            Bad::Malformed,
        ),
        ("no name in the list", record_with(&names(&[])), Bad::Malformed),
        ("an empty name", record_with(&names(&name(b""))), Bad::Malformed),
        ("nothing but a dot", record_with(&names(&name(b"."))), Bad::Malformed),
        ("a NUL in the name", record_with(&names(&name(b"a\0b"))), Bad::Malformed),
        (
            "letters of no host",
            record_with(&names(&name("\u{e4}.example".as_bytes()))),
            Bad::Malformed,
        ),
        ("256 bytes of a name", record_with(&names(&name(&[b'a'; 256]))), Bad::Malformed),
        ("a name without its end", record_with(&names(&[0, 0, 9, b'a'])), Bad::Malformed),
        (
            "bytes behind the list",
            record_with(&extension(0, &[0, 4, 0, 0, 1, b'a', 1])),
            Bad::Malformed,
        ),
        ("no protocol", record_with(&extension(ALPN, &[0, 0])), Bad::Malformed),
        ("an empty protocol", record_with(&extension(ALPN, &[0, 1, 0])), Bad::Malformed),
        ("an extension without its end", record_with(&[0, 10, 0, 5, 1]), Bad::Malformed),
    ] {
        assert_eq!(read(&bytes), Err(expected), "{what}");
        assert_eq!(read_slowly(&bytes), Err(expected), "{what}, slowly");
    }
}

#[test]
fn a_hello_may_have_so_much_and_no_more() {
    let padded = |bytes: usize| message(Some(&extension(21, &vec![0; bytes])));
    let with_padding = |bytes: usize| records(&padded(bytes), MOST_FRAGMENT);
    let besides = with_padding(0).len();
    let most = MOST_BYTES - besides;
    assert_eq!(read(&with_padding(most)), Ok(Some(Hello::default())));
    assert_eq!(read_slowly(&with_padding(most)), Ok(Some(Hello::default())));
    assert_eq!(read_slowly(&with_padding(most + 1)), Err(Bad::TooLarge));
    let in_records = |n: usize| {
        let message = padded(200);
        records(&message, message.len().div_ceil(n))
    };
    assert_eq!(read(&in_records(MOST_RECORDS)), Ok(Some(Hello::default())));
    assert_eq!(read(&records(&padded(200), 1)), Err(Bad::TooLarge), "a byte in each record");
}

/// The claim of the module's documentation.
#[test]
fn rustls_would_refuse_what_is_passed_on() {
    let bytes = record_with(&names(&name(b"chat.example")));
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut Cursor::new(&bytes)).unwrap();
    assert!(acceptor.accept().is_err());
    assert_eq!(read(&bytes), Ok(Some(hello(Some("chat.example"), &[]))));
}

proptest! {
    #[test]
    fn names_and_protocols_survive_any_records_and_any_reads(
        labels in prop::collection::vec("[a-z0-9]{1,10}", 1..4),
        protocols in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4),
        fragment in 20_usize..600,
        pieces in prop::collection::vec(1_usize..400, 1..40),
    ) {
        let text = format!("{}.example", labels.join("."));
        let alpn: Vec<&[u8]> = protocols.iter().map(|it| &it[..]).collect();
        let bytes = records(&of_rustls(&text, &alpn)[5..], fragment);
        let mut reader = Reader::default();
        let mut rest = &bytes[..];
        let mut found = Ok(None);
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            found = reader.feed(now);
            rest = later;
            if rest.is_empty() || found != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(found, Ok(Some(hello(Some(&text), &alpn))));
        prop_assert!(rest.is_empty(), "known before it was whole");
        prop_assert_eq!(reader.into_bytes(), bytes, "what was read is what is passed on");
    }

    #[test]
    fn a_part_of_a_hello_is_none_yet(share in 0.0..1.0_f64) {
        let bytes = of_rustls("chat.example", &[b"h2"]);
        let part = &bytes[..(bytes.len() as f64 * share) as usize];
        prop_assert_eq!(read(part), Ok(None));
    }

    /// However it is changed, nobody who accepts the hello reads another name in it.
    #[test]
    fn rustls_reads_the_same_name(changes in prop::collection::vec((5_usize..400, any::<u8>()), 0..6)) {
        let mut bytes = of_rustls("chat.example", &[b"h2", b"http/1.1"]);
        for (at, to) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
        }
        let ours = read(&bytes);
        prop_assert_eq!(&read_slowly(&bytes), &ours);
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut Cursor::new(&bytes)).unwrap();
        if let Ok(Some(accepted)) = acceptor.accept() {
            let theirs = accepted.client_hello();
            let name = theirs.server_name().map(str::to_ascii_lowercase);
            let ours = ours.unwrap().unwrap();
            prop_assert_eq!(ours.name.as_deref(), name.as_deref());
            let alpn = theirs.alpn().map(|it| it.map(<[u8]>::to_vec).collect()).unwrap_or_default();
            let alpn: Vec<Vec<u8>> = alpn;
            prop_assert_eq!(ours.alpn.iter().map(|it| it.to_vec()).collect::<Vec<_>>(), alpn);
        }
    }

    #[test]
    fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..600), as_record: bool) {
        let bytes = if as_record {
            records(&[&[CLIENT_HELLO, 0, 1, 0][..], &bytes].concat(), 256)
        } else {
            bytes
        };
        prop_assert_eq!(read(&bytes), read_slowly(&bytes));
    }
}
