//! Clients and the cookies that they bring back.

use super::*;

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
fn of_two_cookies_the_first_decides_that_holds_and_is_taken() {
    let mut case = Case::new(by_cookie(), Balance::RoundRobin);
    let ((one, n), (other, m)) = (holder(&case), holder(&case));
    assert_ne!(n, m);
    let backends = case.pool.backends();
    let both = case.with_cookie(&format!("{one}; {other}")).unwrap();
    assert!(Rc::ptr_eq(&both.backend, &backends[n]));
    let noise = case.with_cookie(&format!("sluice=noise; a=b; {other}; {one}")).unwrap();
    assert!(Rc::ptr_eq(&noise.backend, &backends[m]));
    case.change(|service| service.backends[n].state = State::Down);
    for _ in 0..5 {
        let both = case.with_cookie(&format!("{one}; {other}")).unwrap();
        assert!(Rc::ptr_eq(&both.backend, &backends[m]), "the next one is, each time");
        assert_eq!((both.sticky, both.set_cookie.is_some()), (Sticky::Hit, false));
    }
    let none = case.with_cookie(&format!("sluice=noise; {one}")).unwrap();
    assert_eq!(none.sticky, Sticky::Tampered, "the first one says why");
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

proptest! {
    #[test]
    fn no_header_is_a_problem(value in "[\t -~\u{80}-\u{ff}]{0,300}") {
        let case = Case::new(by_cookie(), Balance::LeastConnections);
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let uri = Uri::from_static("/");
        let ask = Ask { client: CLIENT.parse().unwrap(), headers: &headers, uri: &uri, pools: ONLY_DEFAULT };
        prop_assert!(case.pool.pick(&ask, &[], case.now).is_some());
    }
}
