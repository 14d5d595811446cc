//! VIPs on the host.

use std::{collections::BTreeSet, net::IpAddr};

use lb_agent::netlink::{
    Address, Kernel,
    vip::{IFA_PROTO_SLUICE, VipPolicy, plan_vips},
};

use super::netns::Netns;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn vips_are_added_found_by_a_later_agent_and_removed() {
    let host = Netns::new();
    host.ip("link add eth0 type veth peer name far0");
    host.ip("link set eth0 up");
    host.ip("link set far0 up");
    host.ip("addr add 10.0.0.1/24 dev eth0");
    host.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    host.ip("addr add 10.0.0.99/32 dev eth0");
    let vips = BTreeSet::from(["10.0.0.10", "2001:db8::10", "192.0.2.10", "10.0.0.99"].map(ip));

    let converge = |vips: &BTreeSet<IpAddr>, policy| {
        let vips = vips.iter().map(|vip| (*vip, policy)).collect();
        host.block_on(async || {
            let kernel = Kernel::connect().unwrap();
            let before = kernel.snapshot().await.unwrap();
            let eth0 = BTreeSet::from([before.link_named("eth0").unwrap().index]);
            for op in plan_vips(&vips, &eth0, &before) {
                kernel.apply_vip(op).await.unwrap();
            }
            let after = kernel.snapshot().await.unwrap();
            assert_eq!(plan_vips(&vips, &eth0, &after), []);
            let owned = kernel.owned_vips().await.unwrap();
            let named = |(vip, index): (IpAddr, u32)| {
                let device = after.links.iter().find(|l| l.index == index).unwrap();
                format!("{vip} {}", device.name)
            };
            let owned: BTreeSet<String> = owned.into_iter().map(named).collect();
            (owned, after)
        })
    };

    let owned = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    let (auto, state) = converge(&vips, VipPolicy::Auto);
    assert_eq!(auto, owned(&["10.0.0.10 eth0", "2001:db8::10 eth0"]));
    let eth0 = state.link_named("eth0").unwrap().index;
    let expected = Address {
        ifindex: eth0,
        addr: ip("2001:db8::10"),
        prefix_len: 128,
        proto: IFA_PROTO_SLUICE,
    };
    assert!(state.addresses.contains(&expected), "{:?}", state.addresses);

    // Another connection, as of an agent that was started after the first was killed.
    let (always, _) = converge(&vips, VipPolicy::Always);
    assert_eq!(always, owned(&["10.0.0.10 eth0", "2001:db8::10 eth0", "192.0.2.10 lo"]));
    let (fewer, _) = converge(&BTreeSet::from([ip("10.0.0.10")]), VipPolicy::Auto);
    assert_eq!(fewer, owned(&["10.0.0.10 eth0"]));
    let (none, state) = converge(&vips, VipPolicy::Never);
    assert_eq!(none, owned(&[]));
    assert!(
        state.addresses.iter().any(|a| a.addr == ip("10.0.0.99")),
        "a stranger's address stays"
    );

    host.block_on(async || {
        let kernel = Kernel::connect().unwrap();
        kernel.remove_vip(ip("10.0.0.99"), eth0).await.unwrap();
        kernel.ensure_vip(ip("10.0.0.99"), eth0).await.unwrap();
        assert_eq!(kernel.owned_vips().await.unwrap(), [], "nor is it taken over");
        kernel.ensure_vip(ip("10.0.0.10"), eth0).await.unwrap();
        kernel.ensure_vip(ip("10.0.0.10"), eth0).await.unwrap();
        kernel.remove_vip(ip("10.0.0.10"), eth0).await.unwrap();
        kernel.remove_vip(ip("10.0.0.10"), eth0).await.unwrap();
        assert!(kernel.ensure_vip(ip("10.0.0.10"), 4711).await.is_err(), "no such device");
    });
}

#[test]
fn a_vip_is_never_chosen_as_the_source_of_a_connection() {
    let host = Netns::new();
    host.ip("link add eth0 type veth peer name far0");
    host.ip("link set far0 up");
    host.ip("link set eth0 up");
    host.ip("addr add 10.0.0.1/24 dev eth0");
    host.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    host.block_on(async || {
        let kernel = Kernel::connect().unwrap();
        let state = kernel.snapshot().await.unwrap();
        let eth0 = state.link_named("eth0").unwrap().index;
        // The VIPs share more bits with the destinations than the real addresses do.
        for (vip, real, to) in [
            ("10.0.0.6", "10.0.0.1", "10.0.0.7:9"),
            ("2001:db8::6", "2001:db8::1", "[2001:db8::7]:9"),
        ] {
            kernel.ensure_vip(ip(vip), eth0).await.unwrap();
            let any = if real.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), ip(real));
        }
    });
}
