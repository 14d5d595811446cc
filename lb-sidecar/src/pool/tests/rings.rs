//! Clients that are kept on their backend by a value.

use lb_common::maglev::{Maglev, Slots};

use super::*;

#[test]
fn values_of_requests_keep_clients_by_the_ring() {
    let user = HeaderName::from_static("x-user");
    let by = |affinity,
              headers: &dyn Fn(&str) -> Vec<(HeaderName, String)>,
              uri: &dyn Fn(&str) -> String| {
        let mut case = Case::new(affinity, Balance::LeastConnections);
        let pick = |case: &Case, value: &str| {
            let headers = headers(value);
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.clone(), v.as_str())).collect();
            let picked = case.ask(&headers, &uri(value), &[]).unwrap();
            assert_eq!(picked.sticky, Sticky::Keyed);
            assert!(picked.set_cookie.is_none());
            picked.backend.name().to_string()
        };
        let values: Vec<String> = (0..300).map(|n| format!("user-{n}")).collect();
        let before: Vec<String> = values.iter().map(|value| pick(&case, value)).collect();
        let again: Vec<String> = values.iter().map(|value| pick(&case, value)).collect();
        assert_eq!(before, again);
        case.change(|service| service.backends[0].state = State::Down);
        for (value, before) in values.iter().zip(&before) {
            let now = pick(&case, value);
            assert_eq!(now == *before, before != "b1", "only the keys of b1 move");
        }
        for name in ["b1", "b2", "b3"] {
            let share = before.iter().filter(|it| *it == name).count();
            assert!((60..140).contains(&share), "{name}: {share} of 300");
        }
        let picked = case.newcomer().unwrap();
        assert_eq!(picked.sticky, Sticky::Missing);
    };
    let slash = |_: &str| "/".to_owned();
    by(
        Affinity::Header { name: "x-user".into() },
        &|value| vec![(user.clone(), value.to_owned())],
        &slash,
    );
    by(
        Affinity::AppCookie { name: "JSESSIONID".into() },
        &|value| vec![(COOKIE, format!("a=b; JSESSIONID={value}"))],
        &slash,
    );
    by(Affinity::Query { name: "room".into() }, &|_| vec![], &|value| {
        format!("/chat?rooms=1&room={value}&x=y")
    });
}

#[test]
fn a_source_address_keeps_its_backend_whatever_the_port() {
    let case = Case::new(Affinity::Source, Balance::LeastConnections);
    let (headers, uri) = (HeaderMap::new(), Uri::from_static("/"));
    let mut by_address = BTreeMap::new();
    for n in 0..200_u8 {
        for port in [1_000, 2_000] {
            let client = SocketAddr::from(([198, 51, 100, n], port));
            let ask = Ask { client, headers: &headers, uri: &uri, pools: ONLY_DEFAULT };
            let picked = case.pool.pick(&ask, &[], case.now).unwrap();
            let name = picked.backend.name();
            assert_eq!(*by_address.entry(n).or_insert_with(|| Rc::clone(&name)), name);
        }
    }
    assert_eq!(by_address.values().collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[test]
fn rings_are_the_same_on_every_edge() {
    let by_header = || Affinity::Header { name: "x-user".to_owned() };
    let one = Case::new(by_header(), Balance::LeastConnections);
    let mut other = Case::new(by_header(), Balance::RoundRobin);
    other.change(|service| service.backends.reverse());
    for n in 0..100 {
        let value = n.to_string();
        let headers = [(HeaderName::from_static("x-user"), value.as_str())];
        let name = |case: &Case| case.ask(&headers, "/", &[]).unwrap().backend.name();
        assert_eq!(name(&one), name(&other));
    }
}

#[test]
fn one_that_moves_keeps_its_values() {
    let mut case = Case::new(Affinity::Header { name: "x-user".to_owned() }, Balance::RoundRobin);
    let names = |case: &Case| -> Vec<Rc<str>> {
        let pick = |n: u8| {
            let headers = [(HeaderName::from_static("x-user"), &*n.to_string())];
            case.ask(&headers, "/", &[]).unwrap().backend.name()
        };
        (0..100).map(pick).collect()
    };
    let before = names(&case);
    case.change(|service| service.backends[0].address = "10.2.9.9:80".parse().unwrap());
    assert_eq!(names(&case), before);
}

/// What the pool's ring has made: all of it, and the slots.
fn made(case: &Case) -> (Option<Rc<Maglev>>, Option<Rc<Slots>>) {
    case.pool.0.borrow().groups[0].ring.made()
}

#[test]
fn a_ring_is_made_anew_only_when_it_changes() {
    let mut case = Case::new(Affinity::Source, Balance::RoundRobin);
    assert!(matches!(made(&case), (None, None)), "nobody has asked");
    let _first = case.newcomer().unwrap();
    let (Some(whole), Some(slots)) = made(&case) else { panic!("it was asked") };

    case.change(|service| service.http.retries = 7);
    let (same_whole, same_slots) = made(&case);
    assert!(same_whole.is_some_and(|it| Rc::ptr_eq(&it, &whole)));
    assert!(same_slots.is_some_and(|it| Rc::ptr_eq(&it, &slots)));

    case.change(|service| service.backends[1].state = State::Down);
    assert!(made(&case).0.is_some_and(|it| Rc::ptr_eq(&it, &whole)), "who is live does not matter");
    assert!(made(&case).1.is_none());
    let _second = case.newcomer().unwrap();
    let afresh = Pool::new(&case.settings, &case.settings.services[0]);
    let afresh = Case {
        pool: afresh,
        settings: case.settings.clone(),
        now: case.now,
        shares: ONLY_DEFAULT.to_vec(),
    };
    let _third = afresh.newcomer().unwrap();
    assert_eq!(made(&case).1, made(&afresh).1);

    case.change(|service| service.backends[1].state = State::Up);
    let _fourth = case.newcomer().unwrap();
    assert_eq!(made(&case).1.unwrap(), slots, "as before");

    case.change(|service| service.backends[0].weight = 50);
    assert!(matches!(made(&case), (None, None)), "shares change");
    let _fifth = case.newcomer().unwrap();
    case.settings.hash_seed = 8;
    case.change(|_| {});
    assert!(matches!(made(&case), (None, None)), "everything changes");
}
