use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn key(id: &str, byte: u8) -> CookieKey {
    CookieKey { id: id.to_owned(), secret: STANDARD.encode([byte; 32]) }
}

fn cookie(ttl: Option<Duration>) -> settings::Cookie {
    settings::Cookie {
        name: "sluice".to_owned(),
        ttl,
        path: "/".to_owned(),
        domain: None,
        secure: false,
        http_only: true,
        same_site: Some(SameSite::Lax),
    }
}

fn signer(ttl: Option<Duration>, keys: &[CookieKey]) -> Signer {
    Signer::new("chat", &cookie(ttl), keys)
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

const BACKEND_1: Id = [0xab; 8];

/// The value that a browser would send back.
fn value(signer: &Signer, now: SystemTime) -> Vec<u8> {
    let header = signer.set_cookie(BACKEND_1, now).unwrap();
    let text = header.to_str().unwrap();
    let (pair, _) = text.split_once(';').unwrap();
    pair.strip_prefix("sluice=").unwrap().as_bytes().to_vec()
}

#[test]
fn what_is_signed_is_read() {
    let signer = signer(Some(DAY), &[key("k1", 1)]);
    let value = value(&signer, at(0));
    assert_eq!(signer.read(&value, at(10)), Ok(Read { backend: BACKEND_1, stale: false }));
}

#[test]
fn all_attributes_are_written() {
    let all = settings::Cookie {
        domain: Some("example.org".to_owned()),
        secure: true,
        path: "/chat".to_owned(),
        same_site: Some(SameSite::None),
        ..cookie(Some(DAY))
    };
    let header = Signer::new("chat", &all, &[key("k1", 1)]).set_cookie(BACKEND_1, at(0)).unwrap();
    let (pair, rest) = header.to_str().unwrap().split_once("; ").unwrap();
    assert!(pair.starts_with("sluice=1.k1."), "{pair}");
    assert_eq!(
        rest,
        "Path=/chat; Domain=example.org; Max-Age=86400; Secure; HttpOnly; SameSite=None"
    );
    let session = settings::Cookie { http_only: false, same_site: None, ..cookie(None) };
    let header =
        Signer::new("chat", &session, &[key("k1", 1)]).set_cookie(BACKEND_1, at(0)).unwrap();
    assert_eq!(header.to_str().unwrap().split_once("; ").unwrap().1, "Path=/");
}

#[test]
fn the_value_is_made_of_cookie_octets() {
    let value = value(&signer(Some(DAY), &[key("key_ONE-1", 7)]), at(0));
    let octet = |byte: &u8| byte.is_ascii_graphic() && !b"\",;\\".contains(byte);
    assert!(value.iter().all(octet), "{value:?}");
    assert!(value.len() < 100);
}

#[test]
fn every_changed_byte_is_noticed() {
    let signer = signer(Some(DAY), &[key("k1", 1)]);
    let good = value(&signer, at(0));
    for place in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[place] ^= 1 << bit;
            let read = signer.read(&bad, at(1));
            assert!(
                matches!(read, Err(Sticky::Tampered | Sticky::UnknownKey)),
                "byte {place}, bit {bit}: {read:?}"
            );
        }
    }
    assert_eq!(signer.read(&good[..good.len() - 1], at(1)), Err(Sticky::Tampered));
    assert_eq!(signer.read(&[&good[..], b"A"].concat(), at(1)), Err(Sticky::Tampered));
}

#[test]
fn it_ends_with_its_time_and_is_renewed_before() {
    let signer = signer(Some(DAY), &[key("k1", 1)]);
    let value = value(&signer, at(0));
    let stale = |seconds| signer.read(&value, at(seconds)).map(|read| read.stale);
    assert_eq!(stale(43_200), Ok(false));
    assert_eq!(stale(43_201), Ok(true), "half of its time is over");
    assert_eq!(stale(86_399), Ok(true));
    assert_eq!(stale(86_400), Err(Sticky::Expired));
}

#[test]
fn one_for_the_session_never_ends_here() {
    let signer = signer(None, &[key("k1", 1)]);
    let value = value(&signer, at(0));
    let read = signer.read(&value, at(400 * 86_400));
    assert_eq!(read, Ok(Read { backend: BACKEND_1, stale: false }));
}

#[test]
fn another_ttl_in_the_settings_renews_it() {
    let keys = [key("k1", 1)];
    let day = value(&signer(Some(DAY), &keys), at(0));
    let session = value(&signer(None, &keys), at(0));
    assert!(signer(None, &keys).read(&day, at(1)).unwrap().stale);
    assert!(signer(Some(DAY), &keys).read(&session, at(1)).unwrap().stale);
}

#[test]
fn clocks_of_edges_may_differ_by_minutes() {
    let signer = signer(Some(DAY), &[key("k1", 1)]);
    let ahead = value(&signer, at(u64::from(SKEW)));
    assert!(signer.read(&ahead, at(0)).is_ok());
    let further = value(&signer, at(u64::from(SKEW) + 1));
    assert_eq!(signer.read(&further, at(0)), Err(Sticky::Future));
}

#[test]
fn keys_are_rotated() {
    let (old, new) = (key("old", 1), key("new", 2));
    let before = signer(Some(DAY), std::slice::from_ref(&old));
    let value = value(&before, at(0));
    let during = signer(Some(DAY), &[new.clone(), old]);
    let read = during.read(&value, at(1)).unwrap();
    assert_eq!(read, Read { backend: BACKEND_1, stale: true }, "it is signed anew");
    let header = during.set_cookie(read.backend, at(1)).unwrap();
    assert!(header.to_str().unwrap().starts_with("sluice=1.new."));
    let after = signer(Some(DAY), &[new]);
    assert_eq!(after.read(&value, at(1)), Err(Sticky::UnknownKey));
    let other = signer(Some(DAY), &[key("old", 9)]);
    assert_eq!(other.read(&value, at(1)), Err(Sticky::Tampered), "the same id, another secret");
}

#[test]
fn a_cookie_of_another_service_or_name_means_nothing() {
    let keys = [key("k1", 1)];
    let value = value(&signer(Some(DAY), &keys), at(0));
    let service = Signer::new("other", &cookie(Some(DAY)), &keys);
    assert_eq!(service.read(&value, at(1)), Err(Sticky::Tampered));
    let renamed = settings::Cookie { name: "other".to_owned(), ..cookie(Some(DAY)) };
    assert_eq!(Signer::new("chat", &renamed, &keys).read(&value, at(1)), Err(Sticky::Tampered));
}

#[test]
fn without_a_key_nothing_is_set_and_nothing_believed() {
    let value = value(&signer(Some(DAY), &[key("k1", 1)]), at(0));
    let keyless = signer(Some(DAY), &[]);
    assert!(keyless.set_cookie(BACKEND_1, at(0)).is_none());
    assert_eq!(keyless.read(&value, at(0)), Err(Sticky::UnknownKey));
}

#[test]
fn ids_are_sixteen_digits() {
    assert_eq!(id("abababababababab"), Some(BACKEND_1));
    for bad in [
        "",
        "abab",
        "+babababababaabb",
        "ababababababababab",
        "xyababababababab",
        "äbababababababa",
    ] {
        assert_eq!(id(bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn every_backend_and_time_comes_back(backend: Id, issued in 0_u64..300_000_000, ttl in 1_u64..40_000_000) {
        let signer = signer(Some(Duration::from_secs(ttl)), &[key("k1", 1)]);
        let header = signer.set_cookie(backend, at(issued)).unwrap();
        let text = header.to_str().unwrap();
        let value = &text["sluice=".len()..text.find(';').unwrap()];
        let read = signer.read(value.as_bytes(), at(issued)).unwrap();
        prop_assert_eq!(read, Read { backend, stale: false });
    }

    #[test]
    fn noise_is_refused(value: Vec<u8>, id in "[a-z0-9.]{0,20}", tail in "[A-Za-z0-9_-]{0,80}") {
        let signer = signer(Some(DAY), &[key("k1", 1)]);
        prop_assert!(signer.read(&value, at(0)).is_err());
        let (other, ours) = (format!("1.{id}.{tail}"), format!("1.k1.{tail}"));
        prop_assert!(signer.read(other.as_bytes(), at(0)).is_err());
        prop_assert!(signer.read(ours.as_bytes(), at(0)).is_err());
    }
}
