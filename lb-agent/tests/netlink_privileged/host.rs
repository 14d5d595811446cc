//! What the agent reads from the kernel and writes to it by netlink.

use std::{collections::BTreeSet, net::IpAddr};

use lb_agent::{
    netlink::{Address, Kernel, NetEvent, NetState, RouteKind, Vlan, VlanTag, watch::watch},
    nexthop::NextHops,
};
use tokio::{sync::mpsc::Receiver, time::timeout};

use super::netns::{Netns, PATIENCE};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Reads the state anew at every event until `done` finds what it looks for.
async fn until<T>(
    kernel: &Kernel,
    events: &mut Receiver<NetEvent>,
    state: &mut NetState,
    done: impl Fn(&NetState) -> Option<T>,
) -> T {
    let wait = async {
        loop {
            if let Some(found) = done(state) {
                return found;
            }
            let event = events.recv().await.expect("the watch goes on");
            kernel.refresh(state, event).await.unwrap();
        }
    };
    timeout(PATIENCE, wait).await.expect("the condition becomes true")
}

#[test]
fn a_snapshot_has_links_with_vlans_addresses_routes_neighbours_and_policy() {
    let host = Netns::new();
    for command in [
        "link add eth0 address 02:00:00:00:00:02 mtu 1400 type veth peer name far0",
        "link add br0 type bridge",
        "link set far0 master br0",
        "link set eth0 up",
        "link set far0 up",
        "addr add 10.0.0.1/24 dev eth0",
        "addr add 2001:db8::1/64 dev eth0 nodad",
        "route add default via 10.0.0.254 metric 100",
        "route add 10.1.0.0/16 via inet6 fe80::9 dev eth0 src 10.0.0.1",
        "route add blackhole 10.2.0.0/16",
        "route add 10.3.0.0/16 nexthop via 10.0.0.2 nexthop via 10.0.0.3",
        "route add 10.4.0.0/16 tos 4 via 10.0.0.2",
        "route add 10.5.0.0/16 via 10.0.0.2 mtu 1300",
        "route add 10.6.0.0/16 via 10.0.0.2 table 100",
        "nexthop add id 1 via 10.0.0.4 dev eth0",
        "nexthop add id 2 via 10.0.0.5 dev eth0",
        "nexthop add id 3 group 1/2",
        "route add 10.8.0.0/16 nhid 1",
        "route add 10.9.0.0/16 nhid 3",
        "route add 2001:db8:1::/48 via 2001:db8::2",
        "route add unreachable 2001:db8:2::/48",
        "neigh add 10.0.0.2 lladdr 02:00:00:00:00:99 dev eth0",
        "neigh add 10.0.0.3 lladdr 02:00:00:00:00:98 dev eth0 nud stale",
        "neigh add proxy 10.0.0.4 dev eth0",
    ] {
        host.ip(command);
    }
    let snapshot = || host.block_on(async || Kernel::connect().unwrap().snapshot().await.unwrap());
    let state = snapshot();

    let eth0 = state.link_named("eth0").unwrap();
    assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some([2, 0, 0, 0, 0, 2]), 1400, true));
    let far0 = state.link_named("far0").unwrap();
    assert_eq!(
        (eth0.kind.as_deref(), eth0.peer, far0.peer),
        (Some("veth"), Some(far0.index), Some(eth0.index))
    );
    assert_eq!(far0.master, Some(state.link_named("br0").unwrap().index));
    assert!(state.link_named("lo").unwrap().loopback);

    let v4 = Address { ifindex: eth0.index, addr: ip("10.0.0.1"), prefix_len: 24, proto: 0 };
    assert!(state.addresses.contains(&v4), "{:?}", state.addresses);

    let route = |prefix: &str| {
        let all: Vec<_> =
            state.routes.iter().filter(|r| r.prefix == prefix.parse().unwrap()).collect();
        assert!(all.len() <= 1, "{all:?}");
        all.first().map(|r| (r.kind, r.via, r.ifindex))
    };
    use RouteKind::{KernelOnly, Plain, Selective};
    assert_eq!(route("0.0.0.0/0"), Some((Plain, Some(ip("10.0.0.254")), eth0.index)));
    assert_eq!(route("10.0.0.0/24"), Some((Plain, None, eth0.index)));
    assert_eq!(route("10.1.0.0/16"), Some((Plain, Some(ip("fe80::9")), eth0.index)));
    assert_eq!(route("10.8.0.0/16"), Some((Plain, Some(ip("10.0.0.4")), eth0.index)));
    assert_eq!(route("2001:db8::/64"), Some((Plain, None, eth0.index)));
    assert_eq!(route("2001:db8:1::/48"), Some((Plain, Some(ip("2001:db8::2")), eth0.index)));
    for prefix in ["10.2.0.0/16", "10.3.0.0/16", "10.5.0.0/16", "10.9.0.0/16", "2001:db8:2::/48"] {
        assert_eq!(route(prefix).map(|r| r.0), Some(KernelOnly), "{prefix}");
    }
    assert_eq!(route("10.4.0.0/16").map(|r| r.0), Some(Selective));
    assert_eq!(route("10.6.0.0/16"), None, "another table");
    assert_eq!(route("10.0.0.1/32"), None, "the local table");
    let default = state.routes.iter().find(|r| r.prefix.len() == 0).unwrap();
    assert_eq!(default.metric, 100);
    let src = state.routes.iter().find(|r| r.prefix == "10.1.0.0/16".parse().unwrap()).unwrap().src;
    assert_eq!(src, Some(ip("10.0.0.1")));

    let neighbours: Vec<_> =
        state.neighbours.iter().map(|n| (n.addr, n.mac.map(|m| m[5]), n.permanent)).collect();
    assert!(neighbours.contains(&(ip("10.0.0.2"), Some(0x99), true)), "{neighbours:?}");
    assert!(neighbours.contains(&(ip("10.0.0.3"), Some(0x98), false)), "{neighbours:?}");
    assert!(
        !neighbours.iter().any(|n| n.0 == ip("10.0.0.4") || n.0.is_multicast()),
        "{neighbours:?}"
    );

    assert_eq!((state.policy.v4, state.policy.v6), (false, false));
    host.ip("rule add from 10.9.9.9 lookup 100");
    let state = snapshot();
    assert_eq!((state.policy.v4, state.policy.v6), (true, false));
}

#[test]
fn a_snapshot_has_vlan_subinterfaces_with_their_tags() {
    let host = Netns::new();
    host.ip("link add eth0 type veth peer name far0");
    if !host.try_ip("link add link eth0 name eth0.7 type vlan proto 802.1ad id 7") {
        eprintln!("SKIPPED: this kernel has no VLAN devices (CONFIG_VLAN_8021Q)");
        return;
    }
    host.ip("link add link eth0.7 name eth0.7.9 type vlan id 9");
    let state = host.block_on(async || Kernel::connect().unwrap().snapshot().await.unwrap());
    let index = |name| state.link_named(name).unwrap().index;
    let vlan = |name| state.link_named(name).unwrap().vlan;
    let tag = |parent, tpid, vid| Some(Vlan { parent, tag: VlanTag { tpid, vid } });
    assert_eq!(vlan("eth0"), None);
    assert_eq!(vlan("eth0.7"), tag(index("eth0"), 0x88a8, 7));
    assert_eq!(vlan("eth0.7.9"), tag(index("eth0.7"), 0x8100, 9));
}

#[test]
fn a_change_is_announced_by_its_class() {
    let host = Netns::new();
    host.ip("link add eth0 type veth peer name far0");
    host.ip("link set far0 up");
    host.ip("link set eth0 up");
    host.block_on(async || {
        let mut events = watch().unwrap();
        let kernel = Kernel::connect().unwrap();
        let mut state = kernel.snapshot().await.unwrap();
        host.ip("addr add 10.0.0.1/24 dev eth0");
        let here =
            |s: &NetState| s.addresses.iter().find(|a| a.addr == ip("10.0.0.1")).map(|a| a.ifindex);
        let eth0 = until(&kernel, &mut events, &mut state, here).await;
        host.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:99 dev eth0");
        let known = |s: &NetState| {
            s.neighbours.iter().any(|n| n.ifindex == eth0 && n.mac.is_some()).then_some(())
        };
        until(&kernel, &mut events, &mut state, known).await;
        let connected =
            |s: &NetState| s.routes.iter().any(|r| r.prefix == "10.0.0.0/24".parse().unwrap());
        assert!(connected(&state));
        // The kernel says nothing of the route that goes with the link.
        host.ip("link set eth0 down");
        until(&kernel, &mut events, &mut state, |s| (!connected(s)).then_some(())).await;
        host.ip("rule add from 10.9.9.9 lookup 100");
        until(&kernel, &mut events, &mut state, |s| s.policy.v4.then_some(())).await;
    });
}

#[test]
fn lost_notifications_mean_that_everything_changed() {
    let host = Netns::new();
    host.ip("link add eth0 type veth peer name far0");
    host.ip("link set eth0 up");
    host.block_on(async || {
        let mut events = watch().unwrap();
        let batch = std::env::temp_dir().join(format!("{}.routes", host.name));
        let lines: String = (0..20_000)
            .map(|n| format!("route add 10.{}.{}.0/24 dev eth0\n", n >> 8, n & 0xff))
            .collect();
        std::fs::write(&batch, lines).unwrap();
        // The runtime's only thread waits here, so nobody reads the notifications.
        host.ip(&format!("-batch {}", batch.display()));
        std::fs::remove_file(&batch).unwrap();
        let mut seen = NetEvent::NONE;
        while seen != NetEvent::EVERYTHING {
            let event = timeout(PATIENCE, events.recv()).await.expect("an overrun");
            seen = seen.and(event.unwrap());
        }
    });
}

#[test]
fn a_neighbour_is_resolved_and_a_permanent_one_left_alone() {
    let (host, other) = (Netns::new(), Netns::new());
    host.link("eth0", &other, "eth0");
    for (netns, v4, v6) in
        [(&host, "10.0.0.1/24", "2001:db8::1/64"), (&other, "10.0.0.2/24", "2001:db8::2/64")]
    {
        netns.ip(&format!("addr add {v4} dev eth0"));
        netns.ip(&format!("addr add {v6} dev eth0 nodad"));
    }
    host.ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:99 dev eth0");
    let theirs = other.block_on(async || {
        let state = Kernel::connect().unwrap().snapshot().await.unwrap();
        state.link_named("eth0").unwrap().mac
    });
    host.block_on(async || {
        let mut events = watch().unwrap();
        let kernel = Kernel::connect().unwrap();
        let mut state = kernel.snapshot().await.unwrap();
        let eth0 = state.link_named("eth0").unwrap().index;
        let backends = BTreeSet::from(["10.0.0.2", "2001:db8::2", "10.0.0.9"].map(ip));
        let interfaces = BTreeSet::from([eth0]);
        let before = NextHops::compute(&NextHops::default(), &state, &interfaces, &backends);
        assert_eq!(before.unresolved, [(eth0, ip("10.0.0.2")), (eth0, ip("2001:db8::2"))]);
        for (ifindex, addr) in &before.unresolved {
            kernel.resolve(*ifindex, *addr).await.unwrap();
        }
        let resolved = |s: &NetState| {
            let hops = NextHops::compute(&before, s, &interfaces, &backends);
            hops.unresolved.is_empty().then_some(hops)
        };
        let after = until(&kernel, &mut events, &mut state, resolved).await;
        for backend in ["10.0.0.2", "2001:db8::2"] {
            let hop = after.get(after.lookup(ip(backend))).unwrap();
            assert_eq!((hop.ready, Some(hop.dst_mac), hop.egress), (true, theirs, eth0));
        }
        let fresh: Vec<_> = after.to_keep_fresh().collect();
        assert_eq!(fresh.len(), 2, "{fresh:?}");
        kernel.keep_fresh(&state, [(eth0, ip("10.0.0.9"))].into_iter().chain(fresh)).await;
        let state = kernel.snapshot().await.unwrap();
        let permanent: Vec<_> =
            state.neighbours.iter().filter(|n| n.permanent).map(|n| n.addr).collect();
        assert_eq!(permanent, [ip("10.0.0.9")]);
        assert!(kernel.resolve(eth0, ip("224.0.0.1")).await.is_err());
    });
}

#[test]
fn a_stale_neighbour_is_confirmed_again() {
    let (host, other) = (Netns::new(), Netns::new());
    host.link("eth0", &other, "eth0");
    host.ip("addr add 10.0.0.1/24 dev eth0");
    other.ip("addr add 10.0.0.2/24 dev eth0");
    host.sysctl("net/ipv4/neigh/eth0/delay_first_probe_time", "1");
    // A wrong address, as if the peer had been replaced: only a probe finds out.
    host.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud stale");
    host.block_on(async || {
        let mut events = watch().unwrap();
        let kernel = Kernel::connect().unwrap();
        let mut state = kernel.snapshot().await.unwrap();
        let eth0 = state.link_named("eth0").unwrap().index;
        kernel.keep_fresh(&state, [(eth0, ip("10.0.0.2"))]).await;
        let corrected = |s: &NetState| {
            let mac = s.neighbours.iter().find(|n| n.addr == ip("10.0.0.2")).map(|n| n.mac);
            (mac != Some(Some([2, 0, 0, 0, 0, 0x99]))).then_some(())
        };
        until(&kernel, &mut events, &mut state, corrected).await;
    });
}
