//! What XDP measures, and what the kernel measures of XDP, in the metrics.

use aya::sys::{Stats, enable_stats};

use crate::{
    edge::{ADMIN, Echo, Edge, VIP, say},
    network::wait_until,
};

const ONE: [(&str, &str); 1] = [("b2", "10.2.0.2:9000")];

/// The value of a sample, if it is there.
fn sample(edge: &Edge, name: &str) -> Option<f64> {
    let (head, body) = edge.netns.http(ADMIN, "/metrics").expect("the agent answers");
    assert!(head.contains(" 200 "), "{head}: {body}");
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn handshakes_are_measured_and_survive_the_agent() {
    const COUNT: &str = "sluice_service_handshake_rtt_seconds_count{service=\"chat\"}";
    const SUM: &str = "sluice_service_handshake_rtt_seconds_sum{service=\"chat\"}";
    const ALL: &str = "sluice_service_handshake_rtt_seconds_bucket{service=\"chat\",le=\"+Inf\"}";
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, ONE[0].1, "b2:");
    edge.start(&edge.config("", &ONE));
    assert_eq!(sample(&edge, COUNT), None, "no handshake, no histogram");
    for _ in 0..3 {
        say(&mut edge.client.connect(VIP), "x").unwrap();
    }
    assert_eq!((sample(&edge, COUNT), sample(&edge, ALL)), (Some(3.0), Some(3.0)));
    let sum = sample(&edge, SUM).unwrap();
    assert!(sum > 0.0 && sum < 3.0, "{sum} s");
    edge.signal(nix::sys::signal::Signal::SIGKILL);
    edge.wait();
    say(&mut edge.client.connect(VIP), "x").unwrap();
    edge.spawn();
    wait_until("the next agent is ready", || edge.is_healthy());
    assert_eq!(sample(&edge, COUNT), Some(4.0));
}

#[test]
fn the_programs_run_time_is_there_once_the_kernel_counts_it() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, ONE[0].1, "b2:");
    edge.start(&edge.config("", &ONE));
    // As `sysctl kernel.bpf_stats_enabled=1`, for as long as the descriptor is open.
    let _counting = enable_stats(Stats::RunTime).unwrap();
    let mut stream = edge.client.connect(VIP);
    for _ in 0..10 {
        say(&mut stream, "x").unwrap();
    }
    let runs = sample(&edge, "sluice_xdp_runs_total").expect("there were runs");
    let seconds = sample(&edge, "sluice_xdp_run_seconds_total").expect("and they took time");
    // SYN, SYN-ACK, ACK, and ten times data one way and the other.
    assert!(runs >= 23.0, "{runs}");
    assert!(seconds > 0.0 && seconds < 1.0, "{seconds} s");
}
