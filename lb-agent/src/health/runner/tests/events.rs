//! What is reported, to whom and when.

use super::*;

#[tokio::test(start_paused = true)]
async fn events_come_on_transitions_only() {
    let mut lab = Lab::new(8, 1);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    assert_eq!(lab.status(1).state, State::Unknown);
    let up = lab.expect(1, State::Up).await;
    assert_eq!((up.reason, up.latency), (None, Duration::from_millis(5)));
    lab.silence(20 * INTERVAL).await;
    lab.network.set(1, Backend::Silent);
    let down = lab.expect(1, State::Down).await;
    assert_eq!(down.reason.unwrap().to_string(), "no pong within 1s");
    assert_eq!(down.latency, TIMEOUT);
    lab.silence(20 * INTERVAL).await;
    lab.network.set(1, QUICK);
    lab.expect(1, State::Up).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_failures_bring_down_what_was_never_up() {
    let mut lab = Lab::new(8, 2);
    lab.targets([target(1, check())]);
    let down = lab.expect(1, State::Down).await;
    assert_eq!(down.reason, Some(refused()));
    assert_eq!(lab.network.starts(1).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_has_the_last_result() {
    let mut lab = Lab::new(8, 3);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    let view = lab.runner.view();
    let up = lab.expect(1, State::Up).await;
    lab.network.set(1, Backend::Refusing);
    while view.snapshot()[&key(1)].failures == 0 {
        sleep(INTERVAL / 10).await;
    }
    let status = lab.status(1);
    assert_eq!((status.state, status.since), (State::Up, up.at), "one failure is not a transition");
    assert_eq!(status.addr, "10.2.0.2:1".parse().unwrap());
    assert_eq!(status.last.unwrap().result, Err(refused()));
    assert_eq!(status.probes, u64::try_from(lab.network.starts(1).len()).unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_is_the_edges_fault_changes_no_state() {
    let mut lab = Lab::new(8, 11);
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    lab.expect(1, State::Up).await;
    for fault in [Backend::Unprobed, Backend::Panicking] {
        let failures = lab.status(1).failures;
        lab.network.set(1, fault);
        lab.silence(10 * INTERVAL).await;
        assert!(lab.status(1).failures >= failures + 9, "it is counted");
        assert!(lab.status(1).last.unwrap().result.unwrap_err().is_local());
    }
    lab.network.set(1, Backend::Refusing);
    lab.expect(1, State::Down).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_channel_keeps_the_latest_state_and_delays_no_probe() {
    let mut lab = Lab::new(1, 12);
    lab.network.set(2, QUICK);
    lab.targets([target(1, Check { kind: Kind::None, ..check() })]);
    while lab.status(1).state == State::Unknown {
        tokio::task::yield_now().await;
    }
    lab.targets([target(1, Check { kind: Kind::None, ..check() }), target(2, check())]);
    for backend in [QUICK, Backend::Refusing, QUICK, Backend::Refusing] {
        lab.network.set(2, backend);
        sleep(10 * INTERVAL).await;
    }
    assert!(lab.network.starts(2).len() >= 38, "{}", lab.network.starts(2).len());
    // The change of the check in the meantime must not lose what waits.
    lab.targets([
        target(1, Check { kind: Kind::None, ..check() }),
        target(2, Check { fall: 9, ..check() }),
    ]);
    assert_eq!(lab.event().await.key, key(1));
    lab.expect(2, State::Down).await;
    lab.silence(10 * INTERVAL).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_reader_probing_goes_on() {
    let mut lab = Lab::new(1, 13);
    lab.events.close();
    lab.network.set(1, QUICK);
    lab.targets([target(1, check())]);
    sleep(10 * INTERVAL).await;
    assert_eq!(lab.status(1).state, State::Up);
    assert!(lab.network.starts(1).len() >= 9);
}

/// The real prober and a real chat server, on real time: killed, and started anew on the same port.
#[tokio::test]
async fn a_real_server_goes_down_and_comes_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = async |listener: tokio::net::TcpListener| {
        use futures_util::StreamExt;
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut ws) = tokio_tungstenite::accept_async(stream).await {
                while let Some(Ok(_)) = ws.next().await {}
            }
        }
    };
    let kind = Kind::WebSocket(WebSocketSpec::default());
    let (interval, timeout) = (Duration::from_millis(250), Duration::from_millis(250));
    let check = Check { kind, interval, timeout, ..Check::default() };
    let (sender, mut events) = mpsc::channel(8);
    let mut runner = Runner::new(Prober::new(SourcePorts::default()), sender);
    runner.reconcile(HashMap::from([(key(1), Target { addr, check })]));
    for _ in 0..2 {
        let copy = tokio::net::TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        tokio::select! {
            () = serve(copy) => unreachable!("the server ended"),
            event = events.recv() => assert_eq!(event.unwrap().state, State::Up),
        }
        // The kernel still accepts for the listener that is left: a server that hangs.
        let event = events.recv().await.unwrap();
        assert_eq!(event.state, State::Down);
        let reason = event.reason.unwrap();
        assert!(matches!(reason, Failure::Timeout { .. }), "{reason}");
    }
}
