//! Several pools: shares of newcomers, and who keeps what.

use super::*;
use hyper::header::COOKIE;

/// Backends 1 and 2 are the default pool, 3 and 4 the canary, with these shares.
fn case(affinity: Affinity, shares: [u32; 2]) -> Case {
    let mut case = Case::new(affinity, Balance::RoundRobin);
    case.change(|service| {
        service.pools =
            vec![settings::Pool { name: "canary".to_owned(), balance: Balance::RoundRobin }];
        service.backends =
            (1..=4).map(|n| settings::Backend { pool: u16::from(n > 2), ..backend(n) }).collect();
    });
    case.shares = both(shares);
    case
}

fn both(shares: [u32; 2]) -> Vec<Share> {
    (0..).zip(shares).map(|(pool, weight)| Share { pool, weight }).collect()
}

fn only(pool: u16) -> Vec<Share> {
    vec![Share { pool, weight: 1 }]
}

/// The cookie of an answer, as a client sends it.
fn cookie_of(picked: &Picked) -> String {
    let cookie = picked.set_cookie.as_ref().expect("a cookie").to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

fn pool_of(picked: Option<Picked>) -> u16 {
    picked.unwrap().backend.pool()
}

fn down(case: &mut Case, numbers: &[usize]) {
    case.change(|service| numbers.iter().for_each(|n| service.backends[n - 1].state = State::Down));
}

#[test]
fn newcomers_are_dealt_out_by_the_shares() {
    for affinity in [Affinity::None, by_cookie()] {
        let case = case(affinity, [90, 10]);
        let canary = (0..100).filter(|_| pool_of(case.newcomer()) == 1).count();
        assert_eq!(canary, 10);
    }
}

#[test]
fn a_cookie_keeps_its_client_in_the_pool() {
    let mut case = case(by_cookie(), [0, 1]);
    let picked = case.newcomer().unwrap();
    let cookie = cookie_of(&picked);
    assert!(cookie.starts_with("sluice.canary="), "{cookie}");
    for shares in [[99, 1], [1, 0]] {
        case.shares = both(shares);
        let again = case.with_cookie(&cookie).unwrap();
        assert!(Rc::ptr_eq(&again.backend, &picked.backend));
        assert_eq!((again.sticky, again.set_cookie), (Sticky::Hit, None));
    }
}

#[test]
fn a_client_of_two_routes_keeps_a_backend_in_each() {
    let mut case = case(by_cookie(), [1, 1]);
    case.shares = only(0);
    let stable = case.newcomer().unwrap();
    case.shares = only(1);
    let canary = case.with_cookie(&cookie_of(&stable)).unwrap();
    assert_eq!(canary.sticky, Sticky::Missing, "the other pool's cookie is none here");
    let cookies = format!("{}; {}", cookie_of(&stable), cookie_of(&canary));
    for (pool, picked) in [(0, &stable), (1, &canary)] {
        case.shares = only(pool);
        let again = case.with_cookie(&cookies).unwrap();
        assert!(Rc::ptr_eq(&again.backend, &picked.backend));
        assert!(again.set_cookie.is_none(), "nothing is overwritten");
    }
}

#[test]
fn a_cookie_of_one_pool_under_the_name_of_another_is_none() {
    let mut case = case(by_cookie(), [1, 1]);
    case.shares = only(1);
    let canary = cookie_of(&case.newcomer().unwrap());
    case.shares = only(0);
    let forged = canary.replace("sluice.canary=", "sluice=");
    assert_eq!(case.with_cookie(&forged).unwrap().sticky, Sticky::Tampered);
}

#[test]
fn who_loses_a_backend_stays_in_the_pool_if_somebody_is_left() {
    let mut case = case(by_cookie(), [0, 1]);
    let picked = case.newcomer().unwrap();
    let cookie = cookie_of(&picked);
    case.shares = both([99, 1]);
    let number = if &*picked.backend.name() == "b3" { 3 } else { 4 };
    down(&mut case, &[number]);
    let moved = case.with_cookie(&cookie).unwrap();
    assert_eq!((moved.backend.pool(), moved.sticky), (1, Sticky::Down));
    let failed = case.ask(&[(COOKIE, &cookie)], "/", std::slice::from_ref(&moved.backend)).unwrap();
    assert_eq!(failed.backend.pool(), 0, "then the other pool");
}

#[test]
fn a_pool_without_a_share_takes_nobody_in() {
    let mut case = case(by_cookie(), [0, 1]);
    let picked = case.newcomer().unwrap();
    case.shares = both([1, 0]);
    let number = if &*picked.backend.name() == "b3" { 3 } else { 4 };
    down(&mut case, &[number]);
    assert_eq!(pool_of(case.with_cookie(&cookie_of(&picked))), 0);
}

#[test]
fn values_keep_their_pool_while_the_shares_move() {
    let header = Affinity::Header { name: "x-user".to_owned() };
    let mut case = case(header, [95, 5]);
    let name = HeaderName::from_static("x-user");
    let pool = |case: &Case, user: usize| {
        pool_of(case.ask(&[(name.clone(), &format!("user-{user}"))], "/", &[]))
    };
    let before: Vec<_> = (0..400).map(|user| pool(&case, user)).collect();
    let canary = before.iter().filter(|it| **it == 1).count();
    assert!((5..=40).contains(&canary), "{canary}");
    assert!((0..400).all(|user| pool(&case, user) == before[user]));
    case.shares = both([80, 20]);
    assert!((0..400).all(|user| before[user] == 0 || pool(&case, user) == 1), "nobody comes back");
}

#[test]
fn a_pool_that_is_down_gives_its_clients_to_the_other() {
    for affinity in [Affinity::None, Affinity::Source, by_cookie()] {
        let mut case = case(affinity, [1, 1]);
        down(&mut case, &[3, 4]);
        assert!((0..10).all(|_| pool_of(case.newcomer()) == 0), "it does not fail open meanwhile");
        down(&mut case, &[1, 2]);
        let open: Vec<_> = (0..10).map(|_| pool_of(case.newcomer())).collect();
        assert!(!open.is_empty(), "and all of them do when nobody is left");
    }
}

#[test]
fn a_cookies_backend_that_is_down_is_left_for_a_pool_that_is_up() {
    let mut case = case(by_cookie(), [0, 1]);
    let cookie = cookie_of(&case.newcomer().unwrap());
    down(&mut case, &[3, 4]);
    case.shares = both([1, 1]);
    assert_eq!(pool_of(case.with_cookie(&cookie)), 0);
    case.shares = only(1);
    assert_eq!(case.with_cookie(&cookie).unwrap().sticky, Sticky::Hit, "failing open");
}

#[test]
fn a_backend_in_another_pool_is_another_matter() {
    let mut case = case(by_cookie(), [1, 0]);
    let cookie = cookie_of(&case.newcomer().unwrap());
    case.change(|service| service.backends.iter_mut().for_each(|it| it.pool = 1 - it.pool));
    let moved = case.with_cookie(&cookie).unwrap();
    assert_eq!((moved.backend.pool(), moved.sticky), (0, Sticky::UnknownBackend));
}

#[test]
fn without_a_route_only_the_default_pool_is_asked() {
    let case = Case { shares: ONLY_DEFAULT.to_vec(), ..case(Affinity::None, [1, 1]) };
    assert!((0..10).all(|_| pool_of(case.newcomer()) == 0));
}
