use lb_common::seq::before;
use proptest::prelude::*;

use super::*;

const FRAME: Frame = Frame { backend: 7, now: 1_000, route_epoch: 0 };

fn ends() -> Ends {
    let addr = |text: &str| text.parse().unwrap();
    Ends::new(
        addr("10.1.0.2:40000"),
        addr("10.1.0.10:80"),
        addr("10.2.0.1:50000"),
        addr("10.2.0.2:9000"),
    )
}

fn keys() -> Keys<V4> {
    let Ok(AnyKeys::V4(keys)) = ends().keys() else { panic!("IPv4") };
    keys
}

fn facts() -> Facts {
    Facts {
        established: true,
        quiet: true,
        unacknowledged: false,
        timestamps: true,
        sack: true,
        ecn: false,
        snd_scale: 7,
        rcv_scale: 9,
        advmss: 1_460,
        received: 100,
    }
}

fn offer(mss: u16) -> Offer {
    Offer { tsval: 5, mss, window_scale: 7, flags: offers::MSS | offers::TIMESTAMPS }
}

fn handshake(isn: u32, tsval: u32) -> Handshake<V4> {
    Handshake {
        flow: Flow { forward: forward::SPLICE, ..Flow::default() },
        offer: Offer { tsval, ..offer(1_460) },
        isn,
        ..Handshake::default()
    }
}

#[test]
fn tuples_are_those_on_the_wire_also_of_mapped_addresses() {
    let Keys { client, backend } = keys();
    assert_eq!((client.src, client.dst), ("10.1.0.2".v4(), "10.1.0.10".v4()));
    assert_eq!((backend.src, backend.dst), ("10.2.0.2".v4(), "10.2.0.1".v4()));
    assert_eq!((client.sport, client.dport), (40_000_u16.to_be(), 80_u16.to_be()));
    assert_eq!((backend.sport, backend.dport), (9_000_u16.to_be(), 50_000_u16.to_be()));
    let Ends { edge, backend, .. } = ends();
    let mapped = |addr: &str| addr.parse().unwrap();
    let ends = Ends::new(
        mapped("[::ffff:10.1.0.2]:40000"),
        mapped("[::ffff:10.1.0.10]:80"),
        edge,
        backend,
    );
    assert_eq!(ends.keys(), Ok(AnyKeys::V4(keys())));
}

#[test]
fn different_ip_versions_are_refused() {
    let mut ends = ends();
    ends.client = "[2001:db8::1]:40000".parse().unwrap();
    ends.listener = "[2001:db8::2]:80".parse().unwrap();
    assert_eq!(ends.keys(), Err(Refusal::IpVersions));
    ends.edge = "[2001:db8::3]:1".parse().unwrap();
    ends.backend = "[2001:db8::4]:2".parse().unwrap();
    assert!(matches!(ends.keys(), Ok(AnyKeys::V6(_))));
}

#[test]
fn each_reason_of_the_sockets_is_told() {
    let change = |f: fn(&mut Facts)| {
        let mut facts = facts();
        f(&mut facts);
        facts
    };
    for (other, wanted) in [
        (change(|_| ()), Ok(())),
        (change(|it| it.ecn = true), Ok(())),
        (change(|it| it.snd_scale = 0), Ok(())),
        (change(|it| it.established = false), Err(Refusal::Closing)),
        (change(|it| it.timestamps = false), Err(Refusal::Timestamps)),
        (change(|it| it.sack = false), Err(Refusal::Sack)),
        (change(|it| it.quiet = false), Err(Refusal::Busy)),
    ] {
        assert_eq!(joinable(&facts(), &other), wanted, "{other:?}");
        assert_eq!(joinable(&other, &facts()), wanted, "{other:?}");
    }
    let neither = change(|it| (it.timestamps, it.sack) = (false, false));
    assert_eq!(joinable(&neither, &neither), Ok(()));
}

#[test]
fn what_never_changes_is_told_before_what_may_pass() {
    let busy = Facts { quiet: false, ..facts() };
    let other = Facts { timestamps: false, ..facts() };
    assert_eq!(joinable(&busy, &other), Err(Refusal::Timestamps));
}

#[test]
fn segments_fit_if_either_end_of_a_leg_keeps_them_small_enough() {
    let none = Offer { mss: 0, flags: 0, ..offer(0) };
    for (told_client, syn, told_backend, syn_ack, fits) in [
        (1_460, offer(1_460), 1_460, offer(1_460), true),
        // The backend takes less, but the client has no larger ones, or was told not to send them.
        (8_960, offer(1_460), 1_460, offer(1_460), true),
        (1_400, offer(1_460), 1_460, offer(1_400), true),
        (1_460, offer(1_460), 1_460, offer(1_400), false),
        // The client takes less: the backend must have been told so.
        (1_460, offer(536), 536, offer(1_460), true),
        (1_460, offer(536), 1_460, offer(1_460), false),
        (1_460, offer(536), 1_460, offer(536), true),
        // Who says nothing takes 536 bytes.
        (1_460, none, 536, offer(1_460), true),
        (1_460, none, 537, offer(1_460), false),
        (536, offer(1_460), 1_460, none, true),
        (1_460, offer(1_460), 1_460, none, false),
    ] {
        let client = Facts { advmss: told_client, ..facts() };
        let upstream = Facts { advmss: told_backend, ..facts() };
        let result = segments_fit::<V4>((&client, &syn), (&upstream, &syn_ack));
        assert_eq!(result, if fits { Ok(()) } else { Err(Refusal::Mss) }, "{syn:?} {syn_ack:?}");
    }
    let result = segments_fit::<V6>(
        (&Facts { advmss: 1_220, ..facts() }, &none),
        (&Facts { advmss: 1_220, ..facts() }, &none),
    );
    assert_eq!(result, Ok(()), "1220 bytes in IPv6");
}

#[test]
fn the_entries_of_one_example() {
    let (syn, syn_ack) = (handshake(999, 10), handshake(4_999, 20));
    let client = Side {
        facts: Facts { received: 1_000, snd_scale: 8, rcv_scale: 7, ..facts() },
        numbers: Numbers { snd_nxt: 70_000, rcv_nxt: 2_000, tsval: 500 },
        handshake: &syn,
    };
    let upstream = Side {
        facts: Facts { received: 3_000, snd_scale: 6, rcv_scale: 9, ..facts() },
        numbers: Numbers { snd_nxt: 90_000, rcv_nxt: 8_000, tsval: 700 },
        handshake: &syn_ack,
    };
    let pair = join(&keys(), &client, &upstream, FRAME).unwrap();
    let common = Flow { ..blank(keys().backend.reversed(), FRAME) };
    assert_eq!(
        pair.from_client,
        Flow {
            seq_delta: 90_000 - 2_000,
            ack_delta: 8_000_u32.wrapping_sub(70_000),
            tsval_delta: 702 - 10,
            tsecr_delta: 20_u32.wrapping_sub(502),
            window_shift: 8 - 9,
            seq_next: 2_000,
            ack: 70_000,
            ..common
        }
    );
    assert_eq!(
        pair.from_backend,
        Flow {
            to: keys().client.reversed(),
            seq_delta: 70_000 - 8_000,
            ack_delta: 2_000_u32.wrapping_sub(90_000),
            tsval_delta: 502 - 20,
            tsecr_delta: 10_u32.wrapping_sub(702),
            window_shift: 6 - 7,
            seq_next: 8_000,
            ack: 90_000,
            flags: flags::TO_CLIENT,
            ..common
        }
    );
    assert_eq!((common.backend, common.created, common.last_seen), (7, 1_000, 1_000));
    assert_eq!((common.forward, common.packets, common.next_hop), (forward::SPLICE, 1, 0));
    assert_ne!(common.route_epoch, FRAME.route_epoch);
}

#[test]
fn marks_are_taken_off_where_one_leg_has_no_ecn() {
    let (syn, syn_ack) = (handshake(0, 0), handshake(0, 0));
    let numbers = Numbers { rcv_nxt: 101, ..Numbers::default() };
    for (ecn, marked) in [([false, false], false), ([true, true], false), ([true, false], true)] {
        let side = |ecn, handshake| Side { facts: Facts { ecn, ..facts() }, numbers, handshake };
        let (client, upstream) = (side(ecn[0], &syn), side(ecn[1], &syn_ack));
        let pair = join(&keys(), &client, &upstream, FRAME).unwrap();
        for entry in [pair.from_client, pair.from_backend] {
            assert_eq!(entry.flags & flags::NO_ECN != 0, marked, "{ecn:?}");
        }
    }
}

#[test]
fn held_entries_name_each_other_and_say_nothing_else() {
    let pair = hold(&keys(), FRAME);
    for (entry, partner) in [(pair.from_client, keys().backend), (pair.from_backend, keys().client)]
    {
        assert_eq!(entry.flags & flags::HOLD, flags::HOLD);
        assert!(is_partner(&entry, &partner));
        assert!(!is_partner(&Flow { forward: forward::NAT, ..entry }, &partner));
        assert!(!is_partner(&entry, &partner.reversed()));
    }
}

trait Literal {
    fn v4(&self) -> V4;
}

impl Literal for str {
    fn v4(&self) -> V4 {
        V4::from(self.parse::<std::net::Ipv4Addr>().unwrap())
    }
}

/// A leg of any connection, with the handshake that belongs to it.
fn side() -> impl Strategy<Value = (Facts, Numbers, Handshake<V4>)> {
    let numbers = any::<[u32; 4]>();
    (numbers, any::<u32>(), 0..15_u8, 0..15_u8).prop_map(|(n, received, snd_scale, rcv_scale)| {
        let [snd_nxt, isn, tsval, peer_tsval] = n;
        let rcv_nxt = isn.wrapping_add(1).wrapping_add(received);
        let facts = Facts { received, snd_scale, rcv_scale, ..facts() };
        (facts, Numbers { snd_nxt, rcv_nxt, tsval }, handshake(isn, peer_tsval))
    })
}

proptest! {
    #[test]
    fn both_directions_undo_each_other(a in side(), b in side(), ahead in any::<u32>()) {
        let client = Side { facts: a.0, numbers: a.1, handshake: &a.2 };
        let upstream = Side { facts: b.0, numbers: b.1, handshake: &b.2 };
        let Pair { from_client, from_backend } =
            join(&keys(), &client, &upstream, FRAME).unwrap();
        // The stream goes on where the edge left.
        prop_assert_eq!(
            a.1.rcv_nxt.wrapping_add(ahead).wrapping_add(from_client.seq_delta),
            b.1.snd_nxt.wrapping_add(ahead)
        );
        prop_assert_eq!(from_client.seq_delta.wrapping_add(from_backend.ack_delta), 0);
        prop_assert_eq!(from_client.ack_delta.wrapping_add(from_backend.seq_delta), 0);
        prop_assert_eq!(from_client.tsval_delta.wrapping_add(from_backend.tsecr_delta), 0);
        prop_assert_eq!(from_client.tsecr_delta.wrapping_add(from_backend.tsval_delta), 0);
        // What the backend sees is later than all that the edge has sent it.
        let soonest = a.2.offer.tsval.wrapping_add(from_client.tsval_delta);
        prop_assert!(before(b.1.tsval.wrapping_add(1), soonest));
        prop_assert_eq!(from_client.to.reversed(), keys().backend);
        prop_assert_eq!(from_backend.to.reversed(), keys().client);
        // A RST that the far end accepts has the number which it expects next.
        prop_assert_eq!((from_client.ack, from_backend.ack), (a.1.snd_nxt, b.1.snd_nxt));
    }

    #[test]
    fn a_handshake_of_another_connection_is_not_used(
        a in side(), b in side(), off in 1..=u32::MAX, which in any::<bool>()
    ) {
        let (mut syn, mut syn_ack) = (a.2, b.2);
        let wrong = if which { &mut syn } else { &mut syn_ack };
        wrong.isn = wrong.isn.wrapping_add(off);
        let client = Side { facts: a.0, numbers: a.1, handshake: &syn };
        let upstream = Side { facts: b.0, numbers: b.1, handshake: &syn_ack };
        prop_assert_eq!(
            join(&keys(), &client, &upstream, FRAME),
            Err(Refusal::UnknownHandshake)
        );
    }
}
