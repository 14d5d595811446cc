//! Targets that come, change and go.

use super::*;

#[tokio::test(start_paused = true)]
async fn unchanged_targets_are_left_alone() {
    let mut lab = Lab::new(8, 7);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    lab.expect(1, State::Up).await;
    lab.network.set(1, Backend::Refusing);
    // A restart would begin with a wait and an empty row of failures: reconciling this often would never detect.
    let dead = Instant::now();
    while lab.status(1).state == State::Up {
        lab.targets([target(1, check())]);
        advance(INTERVAL / 7).await;
        assert!(dead.elapsed() <= 3 * INTERVAL + TIMEOUT);
    }
    lab.expect(1, State::Down).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_target_keeps_its_state_until_judged_otherwise() {
    let mut lab = Lab::new(8, 8);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    let up = lab.expect(1, State::Up).await;
    // Port 2 refuses. Same backend by name, so still up, for now.
    lab.targets([target(1, Check { port: Some(2), fall: 5, ..check() })]);
    sleep(INTERVAL).await;
    assert_eq!((lab.status(1).state, lab.status(1).since), (State::Up, up.at));
    lab.expect(1, State::Down).await;
    assert_eq!(lab.network.starts(2).len(), 5, "the new fall counts");
    let probes = lab.network.starts(1).len();
    lab.targets([target(1, Check { port: Some(3), ..check() })]);
    lab.silence(10 * INTERVAL).await;
    assert_eq!(lab.status(1).state, State::Down);
    assert_eq!(lab.network.starts(1).len(), probes, "the old address is left alone");
}

#[tokio::test(start_paused = true)]
async fn removed_targets_stop_and_are_forgotten() {
    let mut lab = Lab::new(8, 9);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check()), target(2, check())]);
    while lab.status(2).state != State::Down || lab.status(1).state != State::Up {
        lab.event().await;
    }
    lab.targets([target(1, check())]);
    assert_eq!(lab.runner.snapshot().into_keys().collect::<Vec<_>>(), [key(1)]);
    let probes = lab.network.starts(2).len();
    lab.silence(10 * INTERVAL).await;
    assert_eq!(lab.network.starts(2).len(), probes);
    // Back again it is a stranger.
    lab.targets([target(1, check()), target(2, check())]);
    assert_eq!(lab.status(2).state, State::Unknown);
    lab.expect(2, State::Down).await;
    let (one, two) = (lab.network.starts(1).len(), lab.network.starts(2).len());
    let network = lab.network.clone();
    drop(lab);
    sleep(10 * INTERVAL).await;
    assert_eq!(
        (network.starts(1).len(), network.starts(2).len()),
        (one, two),
        "a dropped runner stops all"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_check_a_backend_is_up_at_once() {
    let mut lab = Lab::new(8, 10);
    let none = Check { kind: Kind::None, ..check() };
    let begin = Instant::now();
    lab.targets([target(1, none.clone()), target(2, check())]);
    assert_eq!(lab.expect(1, State::Up).await.at, begin);
    lab.expect(2, State::Down).await;
    assert!(lab.network.starts(1).is_empty());
    // Taking the check away brings a backend up; adding one does not bring it down by itself.
    lab.targets([target(1, check()), target(2, none)]);
    lab.expect(2, State::Up).await;
    assert_eq!(lab.status(1).state, State::Up);
    lab.expect(1, State::Down).await;
}
