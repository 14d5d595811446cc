//! When probes start, and how soon a dead backend is known.

use std::collections::HashSet;

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

/// Wherever in the schedule a backend dies, and however: known within `fall * interval + timeout`.
#[test]
fn a_dead_backend_is_detected_in_time() {
    let how = prop_oneof![Just(Backend::Silent), Just(Backend::Refusing)];
    let ms = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    let cases = (any::<u64>(), how, ms(1..1000), ms(0..60_000), (1u32..6, 0u8..=50, 1u32..=100));
    TestRunner::new(ProptestConfig::with_cases(64))
        .run(&cases, |(seed, how, answer, dies, (fall, jitter_percent, timeout_percent))| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut lab = Lab::new(8, seed);
                let check = Check {
                    fall,
                    jitter_percent,
                    timeout: INTERVAL * timeout_percent / 100,
                    ..check()
                };
                let bound = fall * check.interval + check.timeout;
                lab.network.set(1, Backend::Good(answer.min(check.timeout)));
                lab.targets([target(1, check)]);
                lab.expect(1, State::Up).await;
                sleep(dies).await;
                lab.network.set(1, how);
                let dead = Instant::now();
                let event = lab.expect(1, State::Down).await;
                // tokio's clock ticks in milliseconds: each of the sleeps may be late by one.
                let slack = Duration::from_millis(2) * (fall + 2);
                let took = event.at - dead;
                prop_assert!(took <= bound + slack, "{took:?}, bound {bound:?}");
                Ok(())
            })
        })
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn probes_start_every_interval_or_sooner_but_not_much() {
    let mut lab = Lab::new(8, 4);
    lab.network.set(1, QUICK);
    lab.targets([
        target(1, Check { jitter_percent: 50, ..check() }),
        target(2, Check { jitter_percent: 0, ..check() }),
    ]);
    sleep(200 * INTERVAL).await;
    let millisecond = Duration::from_millis(1);
    for (port, shortest) in [(1, INTERVAL / 2), (2, INTERVAL)] {
        let starts = lab.network.starts(port);
        assert!(starts.len() >= 199, "{} probes", starts.len());
        for pair in starts.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(
                (shortest - 2 * millisecond..=INTERVAL + 2 * millisecond).contains(&gap),
                "port {port}: {gap:?}"
            );
        }
    }
    let gaps: HashSet<_> = lab.network.starts(1).windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() > 50, "jitter: {} different gaps", gaps.len());
}

#[tokio::test(start_paused = true)]
async fn first_probes_are_spread_over_the_interval() {
    let mut lab = Lab::new(2000, 5);
    let begin = Instant::now();
    lab.targets((1..=1000).map(|port| target(port, Check { jitter_percent: 0, ..check() })));
    sleep(INTERVAL).await;
    let mut tenths = [0; 11];
    for port in 1..=1000 {
        let first = lab.network.starts(port)[0] - begin;
        tenths[usize::try_from(first.as_millis() * 10 / INTERVAL.as_millis()).unwrap()] += 1;
    }
    assert!(tenths[..10].iter().all(|n| (60..=140).contains(n)), "uneven: {tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_does_not_delay_the_next_and_is_counted() {
    let mut lab = Lab::new(8, 6);
    lab.network.set(1, Backend::Silent);
    lab.targets([target(1, Check { timeout: INTERVAL, jitter_percent: 50, ..check() })]);
    lab.expect(1, State::Down).await;
    sleep(100 * INTERVAL).await;
    let starts = lab.network.starts(1);
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] <= INTERVAL + Duration::from_millis(2)));
    assert!(lab.status(1).overlaps > 50, "{:?}", lab.status(1));
}

/// A slow answer that was on its way when the backend died does not speak against the failures after it.
#[tokio::test(start_paused = true)]
async fn every_probe_after_the_death_counts() {
    for seed in 0..8 {
        let mut lab = Lab::new(8, seed);
        lab.network.set(1, Backend::Good(INTERVAL * 95 / 100));
        lab.targets([target(1, Check { timeout: INTERVAL, jitter_percent: 50, ..check() })]);
        lab.expect(1, State::Up).await;
        let before = lab.network.starts(1).len();
        while lab.network.starts(1).len() == before {
            sleep(Duration::from_millis(1)).await;
        }
        lab.network.set(1, Backend::Refusing);
        lab.expect(1, State::Down).await;
        assert_eq!(lab.network.starts(1).len(), before + 1 + 3, "seed {seed}");
    }
}
