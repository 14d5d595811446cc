//! The rules of `docs/affinity.md`, one by one.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::{COOKIE, HeaderName};
use proptest::prelude::*;

use super::*;
use crate::settings::{
    Cookie, CookieKey, Drain, Forwarded, ForwardedMode, Http, Service, Settings,
};

const CLIENT: &str = "198.51.100.7:40000";

fn backend(number: u8) -> settings::Backend {
    settings::Backend {
        name: format!("b{number}"),
        id: format!("{number:016x}"),
        address: SocketAddr::from(([10, 2, 0, number], 9000)),
        weight: 100,
        state: State::Up,
    }
}

fn by_cookie() -> Affinity {
    Affinity::Cookie(Cookie {
        name: "sluice".to_owned(),
        ttl: Some(Duration::from_secs(86_400)),
        path: "/".to_owned(),
        domain: None,
        secure: false,
        http_only: true,
        same_site: None,
    })
}

/// Three backends up, one key.
fn settings(affinity: Affinity, balance: Balance) -> Settings {
    let second = Duration::from_secs(1);
    let http = Http {
        head_timeout: second,
        body_timeout: second,
        connect_timeout: second,
        response_timeout: second,
        keep_alive: second,
        idle_timeout: second,
        head_bytes: 16_384,
        retries: 2,
        pool: 32,
        tcp_keepalive: second,
        tcp_user_timeout: second,
    };
    let service = Service {
        name: "chat".to_owned(),
        listen: Vec::new(),
        affinity,
        balance,
        fail_open: true,
        upgrades: Vec::new(),
        http,
        forwarded: Forwarded { mode: ForwardedMode::Append, trusted: Vec::new(), request_id: None },
        drain: Drain { rate: 100 },
        log_sample: 0.0,
        backends: vec![backend(1), backend(2), backend(3)],
    };
    let key = CookieKey { id: "k1".to_owned(), secret: STANDARD.encode([1; 32]) };
    Settings {
        edge: "edge".to_owned(),
        source_addresses: Vec::new(),
        hash_seed: 7,
        cookie_keys: vec![key],
        services: vec![service],
    }
}

/// A pool and the settings that it was made from.
struct Case {
    settings: Settings,
    pool: Rc<Pool>,
    now: SystemTime,
}

impl Case {
    fn new(affinity: Affinity, balance: Balance) -> Self {
        let settings = settings(affinity, balance);
        let pool = Pool::new(&settings, &settings.services[0]);
        Self { settings, pool, now: UNIX_EPOCH + Duration::from_secs(1_800_000_000) }
    }

    fn change(&mut self, change: impl FnOnce(&mut Service)) {
        change(&mut self.settings.services[0]);
        self.pool.update(&self.settings, &self.settings.services[0]);
    }

    fn ask(
        &self,
        headers: &[(HeaderName, &str)],
        uri: &str,
        tried: &[Rc<Backend>],
    ) -> Option<Picked> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let uri = uri.parse().unwrap();
        let ask = Ask { client: CLIENT.parse().unwrap(), headers: &headers, uri: &uri };
        self.pool.pick(&ask, tried, self.now)
    }

    /// A request without anything.
    fn newcomer(&self) -> Option<Picked> {
        self.ask(&[], "/", &[])
    }

    fn with_cookie(&self, value: &str) -> Option<Picked> {
        self.ask(&[(COOKIE, value)], "/", &[])
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn millis(&self) -> u64 {
        millis(self.now)
    }
}

/// `name=value` of the cookie that was set.
fn pair(picked: &Picked) -> String {
    let text = picked.set_cookie.as_ref().expect("a cookie is set").to_str().unwrap();
    text.split_once(';').unwrap().0.to_owned()
}

/// A newcomer's cookie, and the place of its backend.
fn holder(case: &Case) -> (String, usize) {
    let picked = case.newcomer().unwrap();
    assert_eq!(picked.sticky, Sticky::Missing);
    let backends = case.pool.backends();
    (pair(&picked), backends.iter().position(|it| Rc::ptr_eq(it, &picked.backend)).unwrap())
}

/// Backend `n` changes and the holder of its cookie comes back: where to, why, and whether with a new cookie.
fn returns(change: impl FnOnce(&mut settings::Backend)) -> (bool, Sticky, bool) {
    let mut case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, n) = holder(&case);
    let before = Rc::clone(&case.pool.backends()[n]);
    case.change(|service| change(&mut service.backends[n]));
    let picked = case.with_cookie(&cookie).unwrap();
    (Rc::ptr_eq(&picked.backend, &before), picked.sticky, picked.set_cookie.is_some())
}

#[test]
fn a_healthy_backend_keeps_its_clients() {
    assert_eq!(returns(|_| {}), (true, Sticky::Hit, false));
}

#[test]
fn with_weight_0_it_keeps_them_and_gets_no_new_ones() {
    assert_eq!(returns(|backend| backend.weight = 0), (true, Sticky::Hit, false));
    let mut case = Case::new(by_cookie(), Balance::RoundRobin);
    case.change(|service| service.backends[0].weight = 0);
    assert!((0..20).all(|_| &*case.newcomer().unwrap().backend.name() != "b1"));
}

#[test]
fn one_that_drains_keeps_them_until_the_deadline_and_gets_no_new_ones() {
    for (left, expected) in [(1, Sticky::Hit), (0, Sticky::Drained)] {
        let mut case = Case::new(by_cookie(), Balance::RoundRobin);
        let (cookie, n) = holder(&case);
        let until = case.millis() + left;
        case.change(|service| service.backends[n].state = State::Draining { until });
        let picked = case.with_cookie(&cookie).unwrap();
        let stays = Rc::ptr_eq(&picked.backend, &case.pool.backends()[n]);
        assert_eq!((picked.sticky, stays), (expected, expected == Sticky::Hit));
        assert_eq!(picked.set_cookie.is_some(), !stays);
        let drained = Rc::clone(&case.pool.backends()[n]);
        assert!((0..20).all(|_| !Rc::ptr_eq(&case.newcomer().unwrap().backend, &drained)));
    }
}

#[test]
fn one_that_is_down_loses_them() {
    assert_eq!(returns(|backend| backend.state = State::Down), (false, Sticky::Down, true));
}

#[test]
fn one_that_was_removed_or_renamed_loses_them() {
    let renamed = returns(|backend| {
        *backend = settings::Backend {
            name: "new".into(),
            id: "00000000000000ff".into(),
            ..backend.clone()
        }
    });
    assert_eq!((renamed.1, renamed.2), (Sticky::UnknownBackend, true));
    let mut case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, n) = holder(&case);
    case.change(|service| _ = service.backends.remove(n));
    let picked = case.with_cookie(&cookie).unwrap();
    assert_eq!((picked.sticky, picked.set_cookie.is_some()), (Sticky::UnknownBackend, true));
}

#[test]
fn one_that_moved_keeps_them() {
    let moved = |backend: &mut settings::Backend| backend.address.set_port(9_999);
    assert_eq!(returns(moved), (true, Sticky::Hit, false));
}

#[test]
fn a_cookie_beyond_its_time_is_replaced() {
    let mut case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, _) = holder(&case);
    case.after(50_000);
    let renewed = case.with_cookie(&cookie).unwrap();
    assert_eq!((renewed.sticky, renewed.set_cookie.is_some()), (Sticky::Hit, true), "renewed");
    case.after(40_000);
    let picked = case.with_cookie(&cookie).unwrap();
    assert_eq!((picked.sticky, picked.set_cookie.is_some()), (Sticky::Expired, true));
    assert_eq!(case.with_cookie(&pair(&renewed)).unwrap().sticky, Sticky::Hit);
}

#[test]
fn a_tampered_one_is_replaced() {
    let case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, _) = holder(&case);
    let last = if cookie.ends_with('A') { 'B' } else { 'A' };
    let middle = format!("{}{last}{}", &cookie[..40], &cookie[41..]);
    for bad in ["sluice=", "sluice=1.k1.", "sluice=b1", &middle] {
        let picked = case.with_cookie(bad).unwrap();
        assert_eq!((picked.sticky, picked.set_cookie.is_some()), (Sticky::Tampered, true), "{bad}");
    }
}

#[test]
fn one_of_an_old_key_is_signed_anew_and_one_of_an_unknown_key_replaced() {
    let mut case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, n) = holder(&case);
    let new = CookieKey { id: "k2".to_owned(), secret: STANDARD.encode([2; 32]) };
    case.settings.cookie_keys.insert(0, new);
    case.change(|_| {});
    let picked = case.with_cookie(&cookie).unwrap();
    assert_eq!(picked.sticky, Sticky::Hit);
    assert!(Rc::ptr_eq(&picked.backend, &case.pool.backends()[n]));
    assert!(pair(&picked).starts_with("sluice=1.k2."));
    case.settings.cookie_keys.truncate(1);
    case.change(|_| {});
    let picked = case.with_cookie(&cookie).unwrap();
    assert_eq!((picked.sticky, picked.set_cookie.is_some()), (Sticky::UnknownKey, true));
}

#[test]
fn of_two_cookies_the_first_that_holds_decides() {
    let mut case = Case::new(by_cookie(), Balance::RoundRobin);
    let ((one, n), (other, m)) = (holder(&case), holder(&case));
    assert_ne!(n, m);
    let backends = case.pool.backends();
    let both = case.with_cookie(&format!("{one}; {other}")).unwrap();
    assert!(Rc::ptr_eq(&both.backend, &backends[n]));
    let noise = case.with_cookie(&format!("sluice=noise; a=b; {other}; {one}")).unwrap();
    assert!(Rc::ptr_eq(&noise.backend, &backends[m]));
    case.change(|service| service.backends[n].state = State::Down);
    assert_eq!(case.with_cookie(&format!("{one}; {other}")).unwrap().sticky, Sticky::Down);
    let many = "sluice=x; ".repeat(MOST_COOKIES);
    assert_eq!(case.with_cookie(&format!("{many}{other}")).unwrap().sticky, Sticky::Tampered);
}

#[test]
fn it_is_found_among_8_kib_of_cookies() {
    let case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, n) = holder(&case);
    let others: Vec<String> = (0..500).map(|n| format!("noise{n:04}=0123456789")).collect();
    let picked = case.with_cookie(&format!("{}; {cookie}", others.join("; "))).unwrap();
    assert_eq!(picked.sticky, Sticky::Hit);
    assert!(Rc::ptr_eq(&picked.backend, &case.pool.backends()[n]));
}

#[test]
fn when_all_are_down_fail_open_decides() {
    let mut case = Case::new(by_cookie(), Balance::LeastConnections);
    let (cookie, n) = holder(&case);
    case.change(|service| service.backends.iter_mut().for_each(|it| it.state = State::Down));
    assert!(case.newcomer().is_some());
    let picked = case.with_cookie(&cookie).unwrap();
    assert_eq!(picked.sticky, Sticky::Hit);
    assert!(Rc::ptr_eq(&picked.backend, &case.pool.backends()[n]));
    case.change(|service| service.fail_open = false);
    assert!(case.newcomer().is_none() && case.with_cookie(&cookie).is_none());
}

#[test]
fn whoever_failed_is_not_tried_again() {
    let by_header = Affinity::Header { name: "x-user".to_owned() };
    let balances = [Balance::RoundRobin, Balance::LeastConnections, Balance::Maglev];
    for (affinity, balance) in
        [by_cookie(), by_header].into_iter().zip(balances.into_iter().cycle())
    {
        let case = Case::new(affinity, balance);
        let cookie = case.newcomer().unwrap().set_cookie.map(|it| it.to_str().unwrap().to_owned());
        let headers = [
            (COOKIE, cookie.as_deref().unwrap_or("none=")),
            (HeaderName::from_static("x-user"), "ann"),
        ];
        let mut tried = Vec::new();
        while let Some(picked) = case.ask(&headers, "/", &tried) {
            assert!(!tried.iter().any(|it| Rc::ptr_eq(it, &picked.backend)));
            if !tried.is_empty() && cookie.is_some() {
                assert_eq!(picked.sticky, Sticky::Failed);
                assert!(picked.set_cookie.is_some(), "it belongs to another from now on");
            }
            tried.push(picked.backend);
        }
        assert_eq!(tried.len(), 3);
    }
}

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
            let ask = Ask { client, headers: &headers, uri: &uri };
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
fn a_new_backend_fills_up_by_least_connections() {
    let mut case = Case::new(Affinity::None, Balance::LeastConnections);
    let mut held: Vec<Picked> = (0..90).map(|_| case.newcomer().unwrap()).collect();
    case.change(|service| service.backends.push(backend(4)));
    held.extend((0..30).map(|_| case.newcomer().unwrap()));
    let live: Vec<u32> = case.pool.backends().iter().map(|it| it.live()).collect();
    assert_eq!(live, [30, 30, 30, 30]);
    drop(held);
    assert!(case.pool.backends().iter().all(|it| it.live() == 0));
}

#[test]
fn others_connections_count_too() {
    let case = Case::new(Affinity::None, Balance::LeastConnections);
    let backends = case.pool.backends();
    let ids = || backends.iter().map(|it| it.id().to_owned());
    case.pool.others(&ids().zip([10, 0, 10]).collect());
    let held: Vec<Picked> = (0..10).map(|_| case.newcomer().unwrap()).collect();
    assert!(held.iter().all(|picked| &*picked.backend.name() == "b2"));
    case.pool.others(&HashMap::new());
    assert_ne!(&*case.newcomer().unwrap().backend.name(), "b2");
}

#[test]
fn leases_outlive_their_backend_in_the_settings() {
    let mut case = Case::new(Affinity::None, Balance::LeastConnections);
    let held: Vec<Picked> = (0..3).map(|_| case.newcomer().unwrap()).collect();
    case.change(|service| service.backends.clear());
    assert!(case.newcomer().is_none() && case.pool.backends().is_empty());
    assert!(held.iter().all(|picked| picked.backend.live() == 1));
}

proptest! {
    #[test]
    fn in_turn_each_gets_exactly_its_share(weights in prop::collection::vec(0_u32..50, 1..8)) {
        let mut case = Case::new(Affinity::None, Balance::RoundRobin);
        case.change(|service| {
            let numbered = (1_u8..).zip(&weights);
            let backends = numbered.map(|(n, &weight)| settings::Backend { weight, ..backend(n) });
            service.backends = backends.collect();
        });
        for backend in case.pool.backends() {
            backend.credit.set(0);
        }
        for _ in 0..weights.iter().sum() {
            prop_assert!(case.newcomer().is_some());
        }
        let picked: Vec<u64> = case.pool.backends().iter().map(|it| it.picked.get()).collect();
        let credits: Vec<i64> = case.pool.backends().iter().map(|it| it.credit.get()).collect();
        prop_assert_eq!(picked.iter().map(|it| *it as u32).collect::<Vec<_>>(), weights);
        prop_assert!(credits.iter().all(|credit| *credit == 0));
    }

    #[test]
    fn least_connections_stay_in_proportion(weights in prop::collection::vec(1_u32..20, 1..6), clients in 1_usize..200) {
        let mut case = Case::new(Affinity::None, Balance::LeastConnections);
        case.change(|service| {
            let numbered = (1_u8..).zip(&weights);
            let backends = numbered.map(|(n, &weight)| settings::Backend { weight, ..backend(n) });
            service.backends = backends.collect();
        });
        let _held: Vec<Picked> = (0..clients).map(|_| case.newcomer().unwrap()).collect();
        let backends = case.pool.backends();
        for one in &backends {
            for other in &backends {
                // Whoever was picked last was no worse than any other.
                let (live, load) = (u64::from(one.live()), u64::from(other.live()) + 1);
                prop_assert!(live * u64::from(other.weight()) <= load * u64::from(one.weight()));
            }
        }
    }

    #[test]
    fn no_header_is_a_problem(value in "[\t -~\u{80}-\u{ff}]{0,300}") {
        let case = Case::new(by_cookie(), Balance::LeastConnections);
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let uri = Uri::from_static("/");
        let ask = Ask { client: CLIENT.parse().unwrap(), headers: &headers, uri: &uri };
        prop_assert!(case.pool.pick(&ask, &[], case.now).is_some());
    }
}
