use lb_common::addr::{V4, V6};
use proptest::prelude::*;

use super::*;

const POLICY: Policy =
    Policy { idle_timeout: 1_000, close_timeout: 100, doomed: None, renewed: None };
const DOOMED: Policy = Policy { doomed: Some(Doom::Dead), ..POLICY };
const DRAINING: Policy = Policy { doomed: Some(DRAIN), ..POLICY };
const DRAIN: Doom = Doom::Drain { service: 3, rate: 10 };

const CLIENT_TO_VIP: Tuple<V4> = Tuple { src: V4(1), dst: V4(2), sport: 10, dport: 80 };
const EDGE_TO_BACKEND: Tuple<V4> = Tuple { src: V4(3), dst: V4(4), sport: 20, dport: 9000 };

fn forward_entry(last_seen: u32, flags: u8) -> Entry<V4> {
    let flow = Flow {
        to: EDGE_TO_BACKEND,
        forward: forward::NAT,
        ack: 111,
        seq_next: 222,
        packets: 1,
        backend: 7,
        last_seen,
        flags,
        ..Default::default()
    };
    Entry { key: CLIENT_TO_VIP, flow, stage: Stage::Flow }
}

fn reverse_entry(last_seen: u32, flags: u8) -> Entry<V4> {
    let mut entry = forward_entry(last_seen, flags | flags::TO_CLIENT);
    entry.key = EDGE_TO_BACKEND.reversed();
    entry.flow.to = CLIENT_TO_VIP.reversed();
    entry.flow.ack = 333;
    entry
}

fn pair(forward: Entry<V4>, reverse: Entry<V4>) -> Connection<V4> {
    Connection { entry: forward, partner: Some(reverse) }
}

fn tunnelled(last_seen: u32, flags: u8) -> Connection<V4> {
    let mut entry = forward_entry(last_seen, flags);
    entry.flow.to = entry.key;
    entry.flow.forward = forward::IPIP;
    Connection { entry, partner: None }
}

#[test]
fn partners_know_each_other() {
    let (forward, reverse) = (forward_entry(0, 0), reverse_entry(0, 0));
    assert!(forward.is_partner(&reverse) && reverse.is_partner(&forward));
    assert_eq!(tunnelled(0, 0).entry.partner_key(), None);
    let mut stranger = reverse;
    stranger.flow.to.dport = 11;
    assert!(!forward.is_partner(&stranger));
}

#[test]
fn verdicts() {
    use Verdict::*;
    let (fin, both) = (flags::FIN, flags::FIN | flags::PEER_FIN);
    let nat = |f: (u32, u8), r: (u32, u8)| pair(forward_entry(f.0, f.1), reverse_entry(r.0, r.1));
    // The clock stands at 10,000 ticks.
    for (what, connection, policy, wanted) in [
        ("a busy pair", nat((9_900, 0), (9_900, 0)), POLICY, Keep),
        ("only one direction is idle", nat((10, 0), (9_500, 0)), POLICY, Keep),
        ("both directions are idle", nat((10, 0), (8_999, 0)), POLICY, Expire),
        ("exactly at the timeout", nat((9_000, 0), (9_000, 0)), POLICY, Keep),
        ("half closed", nat((9_800, fin), (9_800, 0)), POLICY, Keep),
        ("half closed and idle", nat((10, fin), (10, 0)), POLICY, Expire),
        ("closed just now", nat((9_950, both), (9_800, both)), POLICY, Keep),
        ("closed", nat((9_800, both), (9_800, both)), POLICY, Close),
        ("two FINs that do not know of each other", nat((9_800, fin), (9_800, fin)), POLICY, Close),
        ("a RST that one entry saw", nat((9_800, flags::RESET), (9_800, 0)), POLICY, Close),
        ("a dead backend", nat((9_999, 0), (9_999, 0)), DOOMED, Reset(Doom::Dead)),
        ("a drain", nat((9_999, 0), (9_999, 0)), DRAINING, Reset(DRAIN)),
        ("idle in a drain", nat((10, 0), (10, 0)), DRAINING, Reset(DRAIN)),
        ("closing towards a dead backend", nat((9_999, both), (9_999, both)), DOOMED, Keep),
        ("an idle tunnel", tunnelled(8_999, 0), POLICY, Expire),
        ("a tunnel after the client's FIN", tunnelled(9_800, fin), POLICY, Close),
        ("a busy tunnel", tunnelled(9_999, 0), POLICY, Keep),
        ("a packet after the clock was read", tunnelled(10_005, 0), POLICY, Keep),
    ] {
        assert_eq!(connection.judge(&policy, 10_000), wanted, "{what}");
    }
}

#[test]
fn half_a_connection_is_told_from_a_whole_one() {
    assert!(Connection { entry: forward_entry(0, 0), partner: None }.is_broken());
    assert!(!pair(forward_entry(0, 0), reverse_entry(0, 0)).is_broken());
    assert!(!tunnelled(0, 0).is_broken());
}

#[test]
fn both_ends_of_nat_get_the_number_they_expect() {
    let wanted = |forward| ResetOrder {
        backend: 7,
        forward,
        to_client: Some(Rst { tuple: CLIENT_TO_VIP.reversed(), seq: 111 }),
        to_backend: Some(Rst { tuple: EDGE_TO_BACKEND, seq: 333 }),
    };
    for kind in [forward::NAT, forward::SPLICE] {
        let (mut forward, mut reverse) = (forward_entry(0, 0), reverse_entry(0, 0));
        (forward.flow.forward, reverse.flow.forward) = (kind, kind);
        // Each end is told in the numbers that it knows itself.
        (forward.flow.seq_delta, forward.flow.ack_delta) = (1_000, 2_000);
        assert_eq!(pair(forward, reverse).reset_order(), wanted(kind));
        assert_eq!(pair(reverse, forward).reset_order(), wanted(kind));
    }
}

#[test]
fn an_end_that_never_spoke_gets_no_rst() {
    let mut silent = reverse_entry(0, 0);
    silent.flow.packets = 0;
    assert_eq!(pair(forward_entry(0, 0), silent).reset_order().to_backend, None);
    let mut silent = forward_entry(0, 0);
    silent.flow.ack = 0;
    assert_eq!(pair(silent, reverse_entry(0, 0)).reset_order().to_client, None);
}

#[test]
fn a_tunnels_backend_is_told_in_the_clients_name() {
    let order = tunnelled(0, 0).reset_order();
    assert_eq!(order.to_client, Some(Rst { tuple: CLIENT_TO_VIP.reversed(), seq: 111 }));
    assert_eq!(order.to_backend, Some(Rst { tuple: CLIENT_TO_VIP, seq: 222 }));
}

#[test]
fn removal_begins_with_the_clients_entry() {
    let (forward, reverse) = (forward_entry(0, 0), reverse_entry(0, 0));
    for connection in [pair(forward, reverse), pair(reverse, forward)] {
        assert_eq!(connection.keys().collect::<Vec<_>>(), [forward.key, reverse.key]);
    }
    assert_eq!(tunnelled(0, 0).keys().count(), 1);
}

proptest! {
    /// Ticks wrap after 2.3 years, and nothing may depend on where in the circle they stand.
    #[test]
    fn verdicts_do_not_depend_on_where_the_clock_stands(
        now in any::<u32>(), shift in any::<u32>(),
        ages in prop::array::uniform2(0u32..3_000),
        flags in prop::array::uniform2(0u8..16),
        doomed in any::<bool>(),
    ) {
        let at = |now: u32| {
            let connection = pair(
                forward_entry(now.wrapping_sub(ages[0]), flags[0] & !flags::TO_CLIENT),
                reverse_entry(now.wrapping_sub(ages[1]), flags[1]),
            );
            connection.judge(&Policy { doomed: doomed.then_some(Doom::Dead), ..POLICY }, now)
        };
        prop_assert_eq!(at(now), at(now.wrapping_add(shift)));
    }

    #[test]
    fn a_packet_within_the_timeouts_keeps_the_flow(
        now in any::<u32>(),
        recent in 0u32..=100, other in 0u32..1_000_000,
        which in any::<bool>(), flags in 0u8..32,
    ) {
        let (a, b) = if which { (recent, other) } else { (other, recent) };
        let connection = pair(
            forward_entry(now.wrapping_sub(a), flags & !flags::TO_CLIENT),
            reverse_entry(now.wrapping_sub(b), flags),
        );
        prop_assert_eq!(connection.judge(&POLICY, now), Verdict::Keep);
    }

    /// The entry alone must never say "not aged" when the connection is.
    #[test]
    fn the_first_look_misses_no_pair(
        now in any::<u32>(),
        ages in prop::array::uniform2(0u32..3_000),
        flags in prop::array::uniform2(0u8..16),
        doomed in any::<bool>(),
    ) {
        let policy = Policy { doomed: doomed.then_some(Doom::Dead), ..POLICY };
        let forward = forward_entry(now.wrapping_sub(ages[0]), flags[0] & !flags::TO_CLIENT);
        let reverse = reverse_entry(now.wrapping_sub(ages[1]), flags[1]);
        let verdict = pair(forward, reverse).judge(&policy, now);
        prop_assert_eq!(verdict, pair(reverse, forward).judge(&policy, now));
        if verdict != Verdict::Keep {
            prop_assert!(forward.may_have_aged(&policy, now) || reverse.may_have_aged(&policy, now));
        }
    }

    #[test]
    fn both_families_are_judged_alike(now in any::<u32>(), idle in 0u32..3_000, flags in 0u8..32) {
        let v4 = tunnelled(now.wrapping_sub(idle), flags);
        let flow = Flow::<V6> {
            forward: forward::IPIP, flags, last_seen: v4.entry.flow.last_seen, ..Default::default()
        };
        let v6 = Connection { entry: Entry { key: Tuple::default(), flow, stage: Stage::Flow }, partner: None };
        prop_assert_eq!(v4.judge(&POLICY, now), v6.judge(&POLICY, now));
    }
}

#[test]
fn a_handshake_is_over_when_the_client_has_stopped_trying() {
    let now = 10 * HANDSHAKE_TICKS;
    let (old, recent) = (now - HANDSHAKE_TICKS - 1, now - HANDSHAKE_TICKS);
    let half = |entry: Entry<V4>| Entry { stage: Stage::HalfOpen, ..entry };
    let nat = |f, r| pair(half(forward_entry(f, 0)), half(reverse_entry(r, 0)));
    let alone = |last_seen| Connection { partner: None, ..nat(last_seen, 0) };
    let waiting = |f, r, flags| {
        let mut connection = nat(f, r);
        connection.entry.stage = Stage::Waiting;
        connection.entry.flow.flags = flags;
        connection
    };
    let long = Policy { idle_timeout: 4 * HANDSHAKE_TICKS, ..POLICY };
    for (what, connection, policy, wanted) in [
        ("silent", nat(old, old), long, Verdict::Abandon),
        ("silent towards a dead backend", nat(old, old), DOOMED, Verdict::Abandon),
        ("the client still tries", nat(recent, old), POLICY, Verdict::Keep),
        ("the backend still answers", nat(old, recent), POLICY, Verdict::Keep),
        ("towards a dead backend", nat(recent, old), DOOMED, Verdict::Keep),
        ("half of it was evicted", alone(old), long, Verdict::Abandon),
        ("of unknown age", nat(0, 0), POLICY, Verdict::Keep),
        ("half of unknown age", nat(old, 0), POLICY, Verdict::Abandon),
        ("established without room", waiting(old, old, 0), long, Verdict::Keep),
        ("established without room, idle", waiting(old, old, 0), POLICY, Verdict::Expire),
        ("established without room, reset", waiting(old, old, flags::RESET), long, Verdict::Close),
        ("established without room, unknown", waiting(0, 0, 0), POLICY, Verdict::Keep),
        (
            "established without room, dead",
            waiting(recent, 0, 0),
            DOOMED,
            Verdict::Reset(Doom::Dead),
        ),
    ] {
        assert_eq!(connection.judge(&policy, now), wanted, "{what}");
        assert!(!connection.is_broken(), "{what}");
        if wanted != Verdict::Keep {
            let mut entries = std::iter::once(connection.entry).chain(connection.partner);
            assert!(entries.any(|entry| entry.may_have_aged(&policy, now)), "{what}");
        }
    }
}

#[test]
fn what_is_long_past_is_old_and_what_is_just_ahead_is_not() {
    for now in [0, 5, 1 << 31, u32::MAX] {
        assert_eq!(age(now, now), 0);
        assert_eq!(age(now, now.wrapping_sub(7)), 7);
        assert_eq!(age(now, now.wrapping_add(7)), 0, "a packet after the clock was read");
        let years = (1 << 31) + 5;
        assert_eq!(age(now, now.wrapping_sub(years)), years, "more than half the clock's range");
    }
}

/// Spliced at one moment, with these flags.
fn spliced(created: u32, flags: [u8; 2]) -> Connection<V4> {
    let of = |entry: Entry<V4>, own| {
        let flags = entry.flow.flags | own;
        let flow = Flow { forward: forward::SPLICE, created, flags, ..entry.flow };
        Entry { flow, ..entry }
    };
    let (forward, reverse) = (forward_entry(10_000, 0), reverse_entry(10_000, 0));
    pair(of(forward, flags[0]), of(reverse, flags[1]))
}

#[test]
fn a_spliced_connection_ages_as_one_of_nat() {
    let both = flags::FIN | flags::PEER_FIN;
    for (what, connection, policy, now, wanted) in [
        ("busy", spliced(0, [0, 0]), POLICY, 10_001, Verdict::Keep),
        ("idle", spliced(0, [0, 0]), POLICY, 11_001, Verdict::Expire),
        ("closed", spliced(0, [both, both]), POLICY, 10_101, Verdict::Close),
        ("dead", spliced(0, [0, 0]), DOOMED, 10_001, Verdict::Reset(Doom::Dead)),
        ("given up", spliced(0, [0, 0]), DRAINING, 10_001, Verdict::Reset(DRAIN)),
    ] {
        assert_eq!(connection.judge(&policy, now), wanted, "{what}");
        assert!(connection.is_spliced(), "{what}");
        let half = Connection { partner: None, ..connection };
        assert!(half.is_broken() && half.is_spliced(), "{what}");
    }
}

#[test]
fn what_is_held_is_left_alone_until_its_broker_must_be_gone() {
    let created = 10_000;
    for held in [[flags::HOLD, flags::HOLD], [0, flags::HOLD], [flags::HOLD, 0]] {
        let connection = spliced(created, held);
        for policy in [POLICY, DOOMED, DRAINING] {
            let at = |now| connection.judge(&policy, now);
            assert_eq!(at(created + HOLD_TICKS), Verdict::Keep);
            let late = created + HOLD_TICKS + 1;
            assert_eq!(at(late), Verdict::Release);
            assert!(connection.entries().any(|entry| entry.may_have_aged(&policy, late)));
        }
        assert!(!connection.is_spliced());
    }
    let alone = Connection { partner: None, ..spliced(created, [flags::HOLD; 2]) };
    assert!(!alone.is_broken(), "the other one comes next");
}

#[test]
fn a_note_is_forgotten_in_its_own_time_and_is_nobodys_partner() {
    let now = 10 * NOTE_TICKS;
    let note = |last_seen| {
        let flow =
            Flow { to: CLIENT_TO_VIP, forward: forward::SPLICE, last_seen, ..Flow::default() };
        Entry { key: CLIENT_TO_VIP, flow, stage: Stage::HalfOpen }
    };
    // Its backend is 0, of which the policy is that of one that is gone.
    for (age, wanted) in
        [(0, Verdict::Keep), (NOTE_TICKS, Verdict::Keep), (NOTE_TICKS + 1, Verdict::Forget)]
    {
        let entry = note(now - age);
        let connection = Connection { entry, partner: None };
        assert_eq!(connection.judge(&DOOMED, now), wanted, "{age}");
        assert_eq!(entry.may_have_aged(&DOOMED, now), wanted != Verdict::Keep, "{age}");
        assert!(!connection.is_broken() && !connection.is_spliced());
        assert_eq!(entry.partner_key(), None);
    }
    assert_eq!(Connection { entry: note(0), partner: None }.judge(&POLICY, now), Verdict::Keep);
}
