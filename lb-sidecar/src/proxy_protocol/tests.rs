use std::net::SocketAddr;

use proptest::prelude::*;

use super::header::*;
use crate::settings::SendProxy;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn whole(length: usize, pair: Option<(&str, &str)>) -> Result<Parsed, Malformed> {
    let addresses = pair.map(|(source, to)| Addresses { source: at(source), destination: at(to) });
    Ok(Parsed::Header { length, addresses })
}

#[test]
fn version_1() {
    let v4 = "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
    let v6 = "PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 65535 0\r\n";
    for (text, parsed) in [
        (v4.to_owned(), whole(v4.len(), Some(("192.0.2.1:56324", "198.51.100.2:443")))),
        (format!("{v4}GET /"), whole(v4.len(), Some(("192.0.2.1:56324", "198.51.100.2:443")))),
        (v6.to_owned(), whole(v6.len(), Some(("[2001:db8::1]:65535", "[::ffff:1.2.3.4]:0")))),
        ("PROXY UNKNOWN\r\n".to_owned(), whole(15, None)),
        ("PROXY UNKNOWN ffff:f...f 1 2 3\r\n".to_owned(), whole(32, None)),
        (String::new(), Ok(Parsed::Beginning)),
        ("PRO".to_owned(), Ok(Parsed::Beginning)),
        ("PROXY TCP4 1.2".to_owned(), Ok(Parsed::Beginning)),
        ("PROXX".to_owned(), Ok(Parsed::Other)),
        ("GET / HTTP/1.1\r\n".to_owned(), Ok(Parsed::Other)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n".to_owned(), Err(Malformed)),
        ("PROXY TCP5 192.0.2.1 198.51.100.2 56324 443\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 0443 443\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 443\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n".to_owned(), Err(Malformed)),
        ("PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n".to_owned(), Err(Malformed)),
        (format!("PROXY UNKNOWN {}", "x".repeat(92)), Ok(Parsed::Beginning)),
        (format!("PROXY UNKNOWN {}", "x".repeat(93)), Err(Malformed)),
        (format!("PROXY UNKNOWN {}\r\n", "x".repeat(91)), whole(107, None)),
        (format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)), Err(Malformed)),
    ] {
        assert_eq!(parse(text.as_bytes()), parsed, "{text:?}");
    }
}

/// A header of version 2.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

#[test]
fn version_2() {
    let pair = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];
    let with_tlv = [&pair[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let some = Some(("192.0.2.1:56324", "198.51.100.2:443"));
    for (bytes, parsed) in [
        (v2(0x21, 0x11, &pair), whole(28, some)),
        (v2(0x21, 0x11, &with_tlv), whole(34, some)),
        (v2(0x20, 0x00, &[]), whole(16, None)),
        (v2(0x20, 0x11, &pair), whole(28, None)),
        (v2(0x21, 0x00, &[9; 40]), whole(56, None)),
        (v2(0x21, 0x31, &[0; 216]), whole(232, None)),
        (v2(0x21, 0x11, &pair[..11]), Err(Malformed)),
        (v2(0x21, 0x21, &pair), Err(Malformed)),
        (v2(0x21, 0x13, &pair), Err(Malformed)),
        (v2(0x22, 0x11, &pair), Err(Malformed)),
        (v2(0x11, 0x11, &pair), Err(Malformed)),
        (v2(0x20, 0x00, &[0; 4_096]), whole(MOST_V2, None)),
        (v2(0x20, 0x00, &[0; 4_097]), Err(Malformed)),
        (v2(0x21, 0x11, &pair)[..27].to_vec(), Ok(Parsed::Beginning)),
        (b"\r\n\r\n\0\r\n".to_vec(), Ok(Parsed::Beginning)),
        (b"\r\n\r\nGET / HTTP/1.1".to_vec(), Ok(Parsed::Other)),
    ] {
        assert_eq!(parse(&bytes), parsed, "{bytes:02x?}");
    }
}

#[test]
fn what_is_written_is_what_others_read() {
    let v4 = (at("192.0.2.1:56324"), at("198.51.100.2:443"));
    assert_eq!(
        write(SendProxy::V1, v4.0, v4.1),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    );
    // A header has one family: the IPv4 address of the two is written as IPv6.
    assert_eq!(
        write(SendProxy::V1, v4.0, at("[2001:db8::2]:443")),
        b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n"
    );
    let mapped = at("[::ffff:192.0.2.1]:56324");
    assert_eq!(write(SendProxy::V2, mapped, v4.1), write(SendProxy::V2, v4.0, v4.1));
    assert!(write(SendProxy::Off, v4.0, v4.1).is_empty());
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

proptest! {
    #[test]
    fn written_headers_read_back(source in address(), to in address(), is_v2: bool) {
        let version = if is_v2 { SendProxy::V2 } else { SendProxy::V1 };
        let bytes = write(version, source, to);
        for cut in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..cut]), Ok(Parsed::Beginning));
        }
        let Ok(Parsed::Header { length, addresses: Some(read) }) = parse(&bytes) else {
            panic!("{bytes:02x?}")
        };
        prop_assert_eq!(length, bytes.len());
        prop_assert_eq!(read.source.ip().to_canonical(), source.ip().to_canonical());
        prop_assert_eq!(read.destination.port(), to.port());
    }

    #[test]
    fn no_bytes_make_it_read_beyond_them(
        version in 0..3_u8,
        mut rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let start: &[u8] = match version {
            0 => b"",
            1 => b"PROXY ",
            _ => b"\r\n\r\n\0\r\nQUIT\n",
        };
        let bytes: Vec<u8> = start.iter().copied().chain(rest.drain(..)).collect();
        if let Ok(Parsed::Header { length, .. }) = parse(&bytes) {
            prop_assert!(length <= bytes.len() && length <= MOST_V2);
        }
    }
}
