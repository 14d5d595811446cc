use proptest::prelude::*;

use super::*;

const BASE: Duration = Duration::from_secs(30);
const RULES: Rules =
    Rules { limits: [5, 3, 2], base: BASE, longest: Duration::from_secs(100), most_percent: 50 };

/// Backends `a`, `b`, ...; those in `out` get no clients whatever happens.
fn pool(size: u8, out: &str) -> Pool {
    let members = (0..size).map(|n| {
        let id = char::from(b'a' + n).to_string();
        let address = SocketAddr::from(([10, 2, 0, n], 80));
        Member { weighty: true, serves: !out.contains(&id), id, address }
    });
    Pool { rules: RULES, members: members.collect() }
}

fn count(successes: u64, failures: u64, row: u32) -> Count {
    Count { successes, failures, row }
}

fn answers(count: Count) -> Counts {
    [Count::default(), count, Count::default()]
}

/// All that it says within a step, in short.
fn said(changes: &[Change]) -> Vec<String> {
    let say = |change: &Change| match change {
        Change::Ejected { id, ejection, duration } => {
            format!("{id} out {} s, {}", duration.as_secs(), ejection.reason)
        }
        Change::Returned { id } => format!("{id} back"),
        Change::Spared { id, .. } => format!("{id} spared"),
    };
    changes.iter().map(say).collect()
}

/// Has `id` fail to answer three more times, as worker 1 sees it.
fn fail(outliers: &mut Outliers, id: &str) {
    let before = outliers.seen.get(&1).and_then(|it| it.get(id)).map_or(0, |it| it[1].failures);
    let failures = before + 3;
    outliers.observe(1, id, answers(count(0, failures, failures as u32)));
}

#[test]
fn failures_are_in_a_row_until_any_worker_sees_a_success() {
    let (one, two) = (1, 2);
    for (what, reports, row) in [
        ("one worker's", vec![(one, count(0, 2, 2))], 2),
        ("of several workers", vec![(one, count(0, 2, 2)), (two, count(0, 1, 1))], 3),
        ("what was counted before is not counted again", vec![(one, count(0, 2, 2)); 3], 2),
        ("a success ends the row", vec![(one, count(0, 2, 2)), (one, count(1, 2, 0))], 0),
        ("another worker's too", vec![(one, count(0, 2, 2)), (two, count(1, 0, 0))], 0),
        (
            "what failed after it counts",
            vec![(one, count(0, 2, 2)), (two, count(1, 5, 1)), (one, count(0, 3, 3))],
            2,
        ),
        ("of a worker that was there before, its last ones", vec![(one, count(9, 70, 4))], 4),
    ] {
        let mut outliers = Outliers::default();
        for (worker, count) in reports {
            outliers.observe(worker, "a", answers(count));
        }
        assert_eq!(outliers.entries["a"].rows, [0, row, 0], "{what}");
    }
}

#[test]
fn each_duty_has_its_own_limit() {
    let now = Instant::now();
    let of = |counts: [u32; 3]| {
        let mut outliers = Outliers::default();
        outliers.observe(1, "a", counts.map(|row| count(0, row.into(), row)));
        said(&outliers.step(&[pool(2, "")], now))
    };
    assert_eq!(of([4, 2, 1]), Vec::<String>::new());
    assert_eq!(of([5, 0, 0]), ["a out 30 s, 5 connects in a row failed"]);
    assert_eq!(
        of([0, 3, 0]),
        ["a out 30 s, 3 requests in a row were answered with 5xx or not at all"]
    );
    assert_eq!(of([0, 0, 2]), ["a out 30 s, 2 upgrades in a row were refused or broken off"]);
    let mut outliers = Outliers::default();
    outliers.observe(1, "a", answers(count(0, 1_000, 1_000)));
    let mut pool = pool(2, "");
    pool.rules.limits = [0; 3];
    assert_eq!(outliers.step(&[pool], now), [], "0 is no limit");
}

#[test]
fn ejections_grow_end_by_themselves_and_are_forgotten_in_time() {
    let (mut outliers, pools) = (Outliers::default(), [pool(2, "")]);
    let mut now = Instant::now();
    for seconds in [30, 60, 90, 100, 100] {
        fail(&mut outliers, "a");
        let said = said(&outliers.step(&pools, now));
        assert!(said[0].starts_with(&format!("a out {seconds} s")), "{said:?}");
        assert_eq!(outliers.next_return(), Some(now + Duration::from_secs(seconds)));
        now += Duration::from_secs(seconds) - Duration::from_nanos(1);
        fail(&mut outliers, "a");
        assert_eq!(outliers.step(&pools, now), [], "neither back nor out once more");
        now += Duration::from_nanos(1);
        assert_eq!(outliers.step(&pools, now), [Change::Returned { id: "a".into() }]);
        assert_eq!(outliers.step(&pools, now), []);
    }
    assert_eq!((outliers.record("a").total, outliers.next_return()), (5, None));
    // Of five, three are forgotten.
    now += 3 * BASE + BASE / 2;
    fail(&mut outliers, "a");
    assert!(said(&outliers.step(&pools, now))[0].starts_with("a out 90 s"));
    now += Duration::from_secs(86_400);
    outliers.step(&pools, now);
    fail(&mut outliers, "a");
    assert!(said(&outliers.step(&pools, now + 86_400 * BASE))[0].starts_with("a out 30 s"));
}

#[test]
fn never_more_than_the_share_and_never_the_last_one() {
    let now = Instant::now();
    let of = |pool: Pool, failing: &str| {
        let mut outliers = Outliers::default();
        failing.chars().for_each(|id| fail(&mut outliers, &id.to_string()));
        let said = said(&outliers.step(std::slice::from_ref(&pool), now));
        assert_eq!(outliers.step(&[pool], now), [], "it is said once");
        said.iter()
            .map(|it| it.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(pool(1, ""), "a"), ["a spared"]);
    assert_eq!(of(pool(2, ""), "ab"), ["a out", "b spared"]);
    assert_eq!(of(pool(2, "b"), "a"), ["a spared"], "the other one is down");
    assert_eq!(of(pool(2, "a"), "a"), Vec::<String>::new(), "it gets no clients");
    assert_eq!(of(pool(4, ""), "abcd"), ["a out", "b out", "c spared", "d spared"]);
    let mut few = pool(4, "");
    few.rules.most_percent = 10;
    assert_eq!(of(few, "ab"), ["a out", "b spared"], "at least one");
}

#[test]
fn the_worst_go_first_and_others_when_there_is_room() {
    let (mut outliers, pools) = (Outliers::default(), [pool(3, "")]);
    let now = Instant::now();
    fail(&mut outliers, "a");
    fail(&mut outliers, "b");
    fail(&mut outliers, "b");
    let said_first = said(&outliers.step(&pools, now));
    assert!(said_first[0].starts_with("b out") && said_first[1] == "a spared", "{said_first:?}");
    let later = said(&outliers.step(&pools, now + BASE));
    assert!(later[0] == "b back" && later[1].starts_with("a out 30 s"), "{later:?}");
}

#[test]
fn who_is_in_no_pool_is_forgotten() {
    let mut outliers = Outliers::default();
    let now = Instant::now();
    fail(&mut outliers, "a");
    outliers.step(&[pool(2, "")], now);
    assert!(outliers.ejection("a").is_some());
    assert_eq!(outliers.step(&[], now), []);
    assert!(outliers.ejection("a").is_none() && outliers.seen[&1].is_empty());
    outliers.ended(1);
    assert!(outliers.seen.is_empty());
}

#[test]
fn who_moves_to_another_address_begins_anew() {
    let (mut outliers, mut pool) = (Outliers::default(), pool(2, ""));
    let now = Instant::now();
    fail(&mut outliers, "a");
    outliers.step(std::slice::from_ref(&pool), now);
    assert!(outliers.ejection("a").is_some());
    pool.members[0].address.set_port(81);
    assert_eq!(outliers.step(std::slice::from_ref(&pool), now), []);
    assert_eq!(outliers.record("a"), Record::default());
    fail(&mut outliers, "a");
    let changes = outliers.step(&[pool], now);
    assert!(said(&changes)[0].starts_with("a out 30 s, 3 requests"), "{changes:?}");
}

proptest! {
    /// Whatever is reported: the share is kept, somebody is left, nobody is out for longer than the longest time.
    #[test]
    fn the_rules_hold(
        size in 1u8..8, percent in 1u32..=100,
        steps in prop::collection::vec((0u8..8, any::<bool>(), 0u64..50), 0..200),
    ) {
        let mut pool = pool(size, "");
        pool.rules.most_percent = percent;
        let pools = [pool.clone()];
        let most = (usize::from(size) * percent as usize / 100).max(1);
        let mut outliers = Outliers::default();
        let mut counts = [Count::default(); 8];
        let mut now = Instant::now();
        for (n, well, seconds) in steps {
            let it = &mut counts[usize::from(n)];
            match well {
                true => (it.successes, it.row) = (it.successes + 1, 0),
                false => (it.failures, it.row) = (it.failures + 1, it.row + 1),
            }
            outliers.observe(1, &char::from(b'a' + n).to_string(), answers(*it));
            now += Duration::from_secs(seconds);
            outliers.step(&pools, now);
            let ejected: Vec<_> =
                pool.members.iter().filter_map(|it| outliers.ejection(&it.id)).collect();
            prop_assert!(ejected.len() <= most && ejected.len() < usize::from(size));
            prop_assert!(ejected.iter().all(|it| it.until > now && it.until <= now + RULES.longest));
        }
        outliers.step(&pools, now + RULES.longest);
        prop_assert!(pool.members.iter().filter(|it| outliers.ejection(&it.id).is_some()).count() <= most);
    }
}
