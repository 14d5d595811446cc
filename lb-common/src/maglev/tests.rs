use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    let member = |(n, &weight): (usize, &u32)| Member {
        key: key(SocketAddr::from(([10, 2, (n >> 8) as u8, n as u8], 9000))),
        weight,
        id: n as u16 + 1,
    };
    weights.iter().enumerate().map(member).collect()
}

fn counts(ring: &Slots) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    ring.iter().for_each(|&id| *counts.entry(id).or_default() += 1);
    counts
}

fn all(_: u16) -> bool {
    true
}

/// Slots that differ although neither ring gives them to one of `changed`.
fn moved_among_others(a: &Slots, b: &Slots, changed: &[u16]) -> usize {
    let other = |id: &u16| !changed.contains(id);
    a.iter().zip(b).filter(|(a, b)| a != b && other(a) && other(b)).count()
}

/// How far the shares of a ring are from the weights of those who are live, in slots.
fn worst_error(ring: &Slots, members: &[Member], live: impl Fn(u16) -> bool) -> f64 {
    let counts = counts(ring);
    let live: Vec<_> = members.iter().filter(|member| live(member.id)).collect();
    let sum: f64 = live.iter().map(|member| f64::from(member.weight)).sum();
    let error = |member: &&Member| {
        let share = SLOTS as f64 * f64::from(member.weight) / sum;
        (counts.get(&member.id).copied().unwrap_or(0) as f64 - share).abs()
    };
    live.iter().map(error).fold(0.0, f64::max)
}

#[test]
fn a_ring_is_the_same_on_every_machine_and_in_every_version() {
    let ring = Maglev::build(7, &members(&[100, 100, 50])).ring(all);
    let fingerprint = ring.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &id| {
        (hash ^ u64::from(id)).wrapping_mul(0x100_0000_01b3)
    });
    assert_eq!(
        fingerprint, 8_968_127_598_515_971_393,
        "edges of two versions beside each other would pick different backends"
    );
}

#[test]
fn an_empty_pool_gives_an_empty_ring() {
    assert!(Maglev::build(7, &[]).ring(all).iter().all(|&id| id == NONE));
    assert!(Maglev::build(7, &members(&[0, 0])).ring(all).iter().all(|&id| id == NONE));
    assert!(Maglev::build(7, &members(&[1, 1])).ring(|_| false).iter().all(|&id| id == NONE));
}

#[test]
fn a_weight_of_zero_gets_no_slot() {
    let ring = Maglev::build(7, &members(&[100, 0, 100])).ring(all);
    assert_eq!(counts(&ring).into_keys().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_hundred_backends_get_their_share_within_one_percent() {
    let weights: Vec<u32> = (0..100).map(|n| [100, 100, 50, 200][n % 4]).collect();
    let members = members(&weights);
    let ring = Maglev::build(7, &members).ring(all);
    let sum: u32 = weights.iter().sum();
    for (id, slots) in counts(&ring) {
        let share = SLOTS as f64 * f64::from(weights[usize::from(id) - 1]) / f64::from(sum);
        assert!((slots as f64 - share).abs() <= share * 0.01, "{id}: {slots} slots of {share}");
    }
}

#[test]
fn changing_one_backend_of_a_hundred_moves_few_slots_of_the_others() {
    let before = members(&[100; 100]);
    for seed in 0..4 {
        let ring = Maglev::build(seed, &before).ring(all);
        for gone in [1, 50, 100u16] {
            let rest: Vec<_> = before.iter().copied().filter(|m| m.id != gone).collect();
            let without = Maglev::build(seed, &rest).ring(all);
            // Adding is removing read backwards.
            let moved = moved_among_others(&ring, &without, &[gone]);
            let of = SLOTS - counts(&ring)[&gone];
            assert!(moved * 100 <= of * 2, "seed {seed}, {gone} gone: {moved} of {of} moved");
        }
        let mut halved = before.clone();
        halved[9].weight = 50;
        let moved = moved_among_others(&ring, &Maglev::build(seed, &halved).ring(all), &[10]);
        assert!(moved * 100 <= SLOTS * 2, "seed {seed}: {moved} moved");
    }
}

/// `cargo test --release -p lb-agent maglev -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test"]
fn measure() {
    for n in [2, 10, 100, 1000] {
        let before = members(&vec![100; n]);
        let mut times = Vec::new();
        let mut moved = Vec::new();
        for seed in 0..50 {
            let start = std::time::Instant::now();
            let maglev = Maglev::build(seed, &before);
            times.push(start.elapsed());
            let rest: Vec<_> = before.iter().copied().filter(|m| m.id != 1).collect();
            let (a, b) = (maglev.ring(all), Maglev::build(seed, &rest).ring(all));
            let others = SLOTS - counts(&a)[&1];
            moved.push(moved_among_others(&a, &b, &[1]) as f64 / others as f64 * 100.0);
        }
        times.sort();
        moved.sort_by(f64::total_cmp);
        let maglev = Maglev::build(7, &before);
        let time_ring = |live: &dyn Fn(u16) -> bool| {
            let start = std::time::Instant::now();
            let ring = maglev.ring(live);
            let took = start.elapsed();
            let error = worst_error(&ring, &before, live);
            let live = before.iter().filter(|m| live(m.id)).count();
            format!("{took:.1?} (error {:.2} %)", error * live as f64 * 100.0 / SLOTS as f64)
        };
        println!(
            "{n} backends: build {:.1?}, one gone moves {:.2} % (worst {:.2} %); ring: all live {}, \
             one down {}, half down {}",
            times[25],
            moved[25],
            moved[49],
            time_ring(&all),
            time_ring(&|id| id != 1),
            time_ring(&|id| id % 2 == 1),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shares_are_less_than_a_slot_off(
        seed: u64,
        weights in proptest::collection::vec(prop_oneof![0..=3u32, 1..1000u32, any::<u32>()], 1..12),
    ) {
        let members = members(&weights);
        let ring = Maglev::build(seed, &members).ring(all);
        if weights.iter().any(|&weight| weight > 0) {
            prop_assert!(worst_error(&ring, &members, all) < 1.0 + 1e-6);
            prop_assert!(!ring.contains(&NONE));
        }
    }

    #[test]
    fn order_and_ids_do_not_matter(
        seed: u64,
        weights in proptest::collection::vec(1..300u32, 1..10),
        rotate in 0usize..10,
        down in any::<u16>(),
    ) {
        let original = members(&weights);
        let mut renumbered = original.clone();
        renumbered.rotate_left(rotate % weights.len());
        renumbered.iter_mut().for_each(|member| member.id += 1000);
        let up = |id: u16| down >> id & 1 == 0;
        let a = Maglev::build(seed, &original).ring(up);
        let b = Maglev::build(seed, &renumbered).ring(|id| up(id - 1000));
        let same = |(a, b): (&u16, &u16)| *a == NONE && *b == NONE || a + 1000 == *b;
        prop_assert!(a.iter().zip(b.iter()).all(same));
    }

    #[test]
    fn one_backend_down_moves_only_its_slots_and_shares_stay_even(
        seed: u64,
        weights in proptest::collection::vec(1..300u32, 2..12),
        down in any::<prop::sample::Index>(),
    ) {
        let members = members(&weights);
        let down = down.index(weights.len()) as u16 + 1;
        let maglev = Maglev::build(seed, &members);
        let (before, after) = (maglev.ring(all), maglev.ring(|id| id != down));
        prop_assert_eq!(moved_among_others(&before, &after, &[down]), 0);
        prop_assert!(!after.contains(&down));
        prop_assert!(worst_error(&after, &members, |id| id != down) < 2.0 + 1e-6);
    }

    #[test]
    fn a_health_change_moves_no_slot_between_the_others_whoever_else_is_down(
        seed: u64,
        weights in proptest::collection::vec(1..300u32, 2..12),
        down in any::<u16>(),
        changed in any::<prop::sample::Index>(),
    ) {
        let members = members(&weights);
        let changed = changed.index(weights.len()) as u16 + 1;
        let maglev = Maglev::build(seed, &members);
        let up = |id: u16| down >> id & 1 == 0;
        let with = maglev.ring(|id| id == changed || up(id));
        let without = maglev.ring(|id| id != changed && up(id));
        // Only a last one's slots have nowhere to go.
        prop_assert_eq!(moved_among_others(&with, &without, &[changed]), 0);
    }
}
