//! Random hosts, in an address space so small that prefixes nest and collide.

use proptest::prelude::*;

use super::*;

fn small_addr() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0u8..4, 0u8..4, 0u8..4).prop_map(|(v6, a, b, c)| {
        if v6 {
            IpAddr::from([0x2001, u16::from(a), u16::from(b), 0, 0, 0, 0, u16::from(c)])
        } else {
            IpAddr::from([10, a, b, c])
        }
    })
}

fn small_prefix() -> impl Strategy<Value = Prefix> {
    (
        small_addr(),
        prop::sample::select(vec![0u8, 8, 14, 15, 16, 23, 24, 30, 31, 32, 47, 48, 126, 127, 128]),
    )
        .prop_map(|(addr, len)| Prefix::new(addr, len))
}

fn small_route() -> impl Strategy<Value = Route> {
    let kind = prop::sample::select(vec![
        RouteKind::Plain,
        RouteKind::Plain,
        RouteKind::Plain,
        RouteKind::Plain,
        RouteKind::KernelOnly,
        RouteKind::Selective,
    ]);
    (small_prefix(), prop::option::of(small_addr()), ETH0..=MGMT, 0u32..3, kind).prop_map(
        |(prefix, via, ifindex, metric, kind)| Route {
            prefix,
            via,
            ifindex,
            metric,
            src: None,
            kind,
        },
    )
}

fn small_neighbour() -> impl Strategy<Value = Neighbour> {
    (small_addr(), ETH0..=MGMT, any::<bool>()).prop_map(|(addr, ifindex, known)| Neighbour {
        mac: known.then(|| mac(1)),
        reachable: known,
        ..Neighbour { addr, ..neighbour(ifindex, "::", 1) }
    })
}

prop_compose! {
    fn small_state()(
        routes in prop::collection::vec(small_route(), 0..24),
        neighbours in prop::collection::vec(small_neighbour(), 0..24),
        local in prop::collection::vec(small_addr(), 0..3),
    ) -> NetState {
        let addresses = local.into_iter().map(|addr| Address { ifindex: 1, addr, prefix_len: 32, proto: 0 }).collect();
        NetState { addresses, ..state(routes, neighbours) }
    }
}

/// What the kernel's rules say about `addr`, without any of the code under test: by going over all routes.
fn reference(state: &NetState, backends: &BTreeSet<IpAddr>, addr: IpAddr) -> Option<Key> {
    if state.addresses.iter().any(|a| a.addr == addr) {
        return None;
    }
    let matching = || state.routes.iter().filter(|r| r.prefix.contains(addr));
    let longest = matching().map(|r| r.prefix.len()).max()?;
    let longest: Vec<&Route> = matching().filter(|r| r.prefix.len() == longest).collect();
    if longest.iter().any(|r| r.kind == RouteKind::Selective) {
        return None;
    }
    let metric = longest.iter().map(|r| r.metric).min()?;
    let best: Vec<&&Route> = longest.iter().filter(|r| r.metric == metric).collect();
    let [route] = best[..] else { return None };
    if route.kind != RouteKind::Plain || route.ifindex == MGMT {
        return None;
    }
    let key = (route.ifindex, route.via.unwrap_or(addr));
    let known = || state.neighbours.iter().any(|n| (n.ifindex, n.addr) == key && n.mac.is_some());
    (route.via.is_some() || backends.contains(&addr) || known()).then_some(key)
}

fn every_small_addr() -> impl Iterator<Item = IpAddr> {
    (0..4u8).flat_map(|a| (0..4u8).flat_map(move |b| (0..4u8).map(move |c| (a, b, c)))).flat_map(
        |(a, b, c)| {
            let v6 = [0x2001, u16::from(a), u16::from(b), 0, 0, 0, 0, u16::from(c)];
            [IpAddr::from([10, a, b, c]), IpAddr::from(v6)]
        },
    )
}

fn ids(hops: &NextHops) -> BTreeMap<Key, u32> {
    (0..).zip(&hops.table).filter_map(|(id, n)| Some((n.as_ref()?.key, id))).collect()
}

proptest! {
    #[test]
    fn the_table_answers_as_a_naive_reference(
        mut state in small_state(),
        backends in prop::collection::btree_set(small_addr(), 0..4),
    ) {
        // One entry per neighbour, as in the kernel.
        state.neighbours.sort_by_key(|n| (n.ifindex, n.addr));
        state.neighbours.dedup_by_key(|n| (n.ifindex, n.addr));
        let hops = NextHops::compute(&NextHops::default(), &state, &BTreeSet::from([ETH0, ETH1]), &backends);
        for addr in every_small_addr() {
            let found = hops.get(hops.lookup(addr)).map(|n| n.key);
            prop_assert_eq!(found, reference(&state, &backends, addr), "{}", addr);
        }
        for (backend, id) in &hops.backends {
            prop_assert_eq!(*id, hops.lookup(*backend));
        }
    }

    #[test]
    fn ids_are_stable_and_computing_twice_changes_nothing(
        one in small_state(),
        two in small_state(),
        backends in prop::collection::btree_set(small_addr(), 0..4),
    ) {
        let interfaces = BTreeSet::from([ETH0, ETH1]);
        let first = NextHops::compute(&NextHops::default(), &one, &interfaces, &backends);
        let again = NextHops::compute(&first, &one, &interfaces, &backends);
        prop_assert_eq!(&first, &again);

        let mut both = one.clone();
        both.routes.extend(two.routes);
        both.neighbours.extend(two.neighbours);
        let second = NextHops::compute(&first, &both, &interfaces, &backends);
        let (before, after) = (ids(&first), ids(&second));
        for (key, id) in &after {
            match before.get(key) {
                Some(old) => prop_assert_eq!(old, id),
                None => prop_assert!(!before.values().any(|old| old == id), "{} given away too early", id),
            }
        }
        prop_assert!(second.table.first().is_none_or(Option::is_none));
        prop_assert!(second.table.last().is_none_or(Option::is_some));
        for id in second.routes.values().chain(second.backends.values()) {
            prop_assert!(*id == ASK_KERNEL || second.get(*id).is_some());
        }
    }
}
