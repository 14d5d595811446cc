//! Clients that belong to nobody.

use super::*;

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

#[test]
fn one_that_comes_back_has_the_leases_that_it_still_had() {
    let mut case = Case::new(Affinity::None, Balance::LeastConnections);
    let held: Vec<Picked> = (0..3).map(|_| case.newcomer().unwrap()).collect();
    let all = case.settings.services[0].backends.clone();
    case.change(|service| _ = service.backends.remove(0));
    case.change(|service| service.drain.rate = 1);
    case.change(|service| service.backends = all.clone());
    assert_eq!(case.pool.backends()[0].live(), 1);
    drop(held);
    case.change(|service| _ = service.backends.remove(0));
    case.change(|service| service.backends = all);
    assert_eq!(case.pool.backends()[0].picked.get(), 0, "nobody used it any more");
}

#[test]
fn weights_of_the_past_starve_nobody() {
    let mut case = Case::new(Affinity::None, Balance::RoundRobin);
    case.change(|service| service.backends.iter_mut().for_each(|it| it.weight = 10_000));
    _ = case.newcomer().unwrap();
    case.change(|service| service.backends.iter_mut().for_each(|it| it.weight = 1));
    let before: Vec<u64> = case.pool.backends().iter().map(|it| it.picked.get()).collect();
    for _ in 0..30 {
        _ = case.newcomer().unwrap();
    }
    for (backend, before) in case.pool.backends().iter().zip(before) {
        let picked = backend.picked.get() - before;
        assert!((7..=13).contains(&picked), "{}: {picked} of 30", backend.name());
    }
}

#[test]
fn who_is_spare_keeps_his_own_and_helps_where_nobody_else_can() {
    for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Maglev] {
        let mut case = Case::new(by_cookie(), balance);
        let cookie = |picked: &Picked| {
            let text = picked.set_cookie.as_ref().unwrap().to_str().unwrap().to_owned();
            text.split(';').next().unwrap().to_owned()
        };
        let of_third = loop {
            let picked = case.newcomer().unwrap();
            if &*picked.backend.name() == "b3" {
                break cookie(&picked);
            }
            case.after(1);
            case.change(|service| service.backends[0].weight = 1);
            case.change(|service| service.backends[1].weight = 1);
            if balance == Balance::Maglev {
                case.change(|service| {
                    service.backends[..2].iter_mut().for_each(|it| it.weight = 0)
                });
            }
        };
        case.change(|service| {
            service.backends.iter_mut().for_each(|it| it.weight = 100);
            service.backends[2].state = State::Spare;
        });
        for _ in 0..20 {
            assert_ne!(&*case.newcomer().unwrap().backend.name(), "b3", "{balance:?}");
        }
        let holder = case.with_cookie(&of_third).unwrap();
        assert_eq!((&*holder.backend.name(), holder.sticky), ("b3", Sticky::Hit));
        let tried = case.pool.backends()[..2].to_vec();
        let helped = case.ask(&[], "/", &tried).unwrap();
        assert_eq!(&*helped.backend.name(), "b3", "the others were tried");
        assert!(case.ask(&[], "/", &case.pool.backends()).is_none());
    }
}

#[test]
fn who_is_forced_counts_as_up() {
    let mut case = Case::new(Affinity::None, Balance::RoundRobin);
    case.change(|service| {
        service.fail_open = false;
        service.backends[0].state = State::Forced;
        service.backends[2].state = State::Down;
    });
    for _ in 0..10 {
        _ = case.newcomer().unwrap();
    }
    let picked: Vec<u64> = case.pool.backends().iter().map(|it| it.picked.get()).collect();
    assert_eq!(picked, [5, 5, 0]);
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
}
