//! The traced variant: what it tells of packets, and that it does with them what the usual one does.

use std::{env, net::SocketAddr, process::Command};

use lb_common::{
    access::EDGE,
    outcome::DropReason,
    trace::{Counts, End, Filter, Stage, Trace, verdict},
};
use tests::{
    dataplane::{
        Dataplane, Scenario, Sizes, VARIANT, id, scenario,
        traced::{Tracer, stages},
    },
    packet::{
        Tcp,
        tcp::{ACK, FIN, PSH, RST, SYN},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

use Stage::{
    Access, Answered, Completed, Ending, Flow, Forward, Handshake, Listener, NoFlow, NoListener,
    Noted, Opened, Out, Pick, Stray,
};

/// All other tests of this binary, with the traced program in the place of the usual one: the same verdicts, bytes
/// and counters.
#[test]
fn the_traced_program_passes_every_test_of_the_usual_one() {
    if env::var_os(VARIANT).is_some() {
        return;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--skip", "trace::", "--quiet"])
        .env(VARIANT, "traced")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let passed = text.split("test result: ok. ").nth(1).and_then(|it| it.split(' ').next());
    let passed: u32 = passed.and_then(|it| it.parse().ok()).unwrap_or(0);
    assert!(passed > 100, "{text}");
}

fn traced() -> (Dataplane, Tracer) {
    Dataplane::load_traced(Sizes::SMALL)
}

fn end(at: SocketAddr) -> End {
    let addr = match at.ip() {
        std::net::IpAddr::V4(ip) => [lb_common::addr::V4::from(ip).0, 0, 0, 0],
        std::net::IpAddr::V6(ip) => lb_common::addr::V6::from(ip).0,
    };
    End { addr, port: at.port().to_be(), _pad: 0 }
}

fn of_client(client: SocketAddr) -> Filter {
    Filter {
        client: end(client),
        client_mask: [u32::MAX; 4],
        family: if client.is_ipv4() { 4 } else { 6 },
        rate: 1_000,
        ..Filter::default()
    }
}

/// The only record since the last one.
#[track_caller]
fn only(tracer: &mut Tracer) -> Trace {
    let records = tracer.take_records();
    assert_eq!(records.len(), 1, "{records:?}");
    records[0]
}

#[test]
fn a_connection_is_told_stage_by_stage_in_both_directions() {
    let (mut plane, mut tracer) = traced();
    for (service, v6) in services() {
        plane.reset(Scenario::usual());
        let what = name(service, v6);
        let connection = Connection::new(&plane, service, v6);
        tracer.filter(of_client(connection.client));
        let slot = |record: &Trace| record.steps[2].b as usize;

        plane.run(&connection.syn().bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [NoFlow, Listener, Pick, Opened, Forward, Out], "{what}");
        assert_eq!((record.service, record.backend), (service, connection.backend), "{what}");
        let family = lb_agent::state::Family::BOTH[usize::from(v6)];
        let ring = plane.scenario.ring(service, family).unwrap();
        assert_eq!(ring[slot(&record)], connection.backend, "{what}: the slot");
        assert_eq!(record.came, [end(connection.client), end(connection.vip)], "{what}");
        assert_eq!((record.seq, record.flags, record.payload), (CLIENT, SYN, 0), "{what}");
        assert_eq!(usize::from(record.ip_len), connection.syn().packet.bytes().len(), "{what}");
        assert_eq!(record.verdict >> 8, verdict::TRANSMIT, "{what}");
        if connection.is_nat() {
            assert_eq!(record.to, [end(connection.source), end(connection.server)], "{what}");

            plane.run(&connection.syn_ack().bytes());
            let record = only(&mut tracer);
            assert_eq!(stages(&record), [NoFlow, Handshake, Answered, Forward, Out], "{what}");
            assert_eq!(record.ends(), (&end(connection.client), &end(connection.vip)), "{what}");
            assert_eq!((record.seq, record.ack), (SERVER, CLIENT + 1), "{what}");
        }

        plane.run(&connection.handshake_ack().bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [NoFlow, Handshake, Completed, Forward, Out], "{what}");
        assert_eq!(record.steps[2].a, 1, "{what}: there was room");

        let data = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(&[7; 100]);
        plane.run(&connection.up(data).bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [Flow, Forward, Out], "{what}");
        assert_eq!((record.payload, record.backend), (100, connection.backend), "{what}");

        plane.run(
            &connection.up(Tcp::new(0, 0, FIN | ACK).numbers(CLIENT + 101, SERVER + 1)).bytes(),
        );
        assert_eq!(stages(&only(&mut tracer)), [Flow, Ending, Forward, Out], "{what}");
        let counts = tracer.counts();
        let told = if connection.is_nat() { 5 } else { 4 };
        assert_eq!(counts, Counts { told, limited: 0, full: 0 }, "{what}");
    }
}

#[test]
fn what_is_dropped_or_left_to_the_kernel_is_told_with_the_reason() {
    let (mut plane, mut tracer) = traced();
    for v6 in VERSIONS {
        let prefix = if v6 { "2001:db8:c::/48" } else { "198.51.100.0/24" };
        plane.reset(Scenario::usual().with(|it| it.list(EDGE, prefix, false)));
        let connection = Connection::new(&plane, id::NAT, v6);
        tracer.filter(of_client(connection.client));
        plane.run(&connection.syn().bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [NoFlow, Listener, Access]);
        assert_eq!(record.verdict, verdict::DROP << 8 | DropReason::DeniedSource as u32);

        plane.reset(Scenario::usual());
        plane.run(&connection.up(Tcp::new(0, 0, RST).numbers(7, 0)).bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [NoFlow, Listener, Stray]);
        assert_eq!(record.verdict, verdict::DROP << 8 | DropReason::NoFlow as u32);

        let mut elsewhere = connection.clone();
        elsewhere.vip.set_port(81);
        plane.run(&elsewhere.syn().bytes());
        let record = only(&mut tracer);
        assert_eq!(stages(&record), [NoFlow, NoListener]);
        assert_eq!(record.verdict >> 8, verdict::PASS);

        let mut of_sidecar = connection.clone();
        of_sidecar.vip = scenario::listener(id::SIDECAR, v6);
        plane.run(&of_sidecar.syn().bytes());
        assert_eq!(stages(&only(&mut tracer)), [NoFlow, Listener, Noted]);
    }
}

#[test]
fn others_packets_are_not_told() {
    let (mut plane, mut tracer) = traced();
    plane.reset(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, false);
    let mut other = connection.client;
    other.set_port(other.port() + 1);
    let mask = [u32::MAX; 4];
    let filters = [
        of_client(other),
        Filter {
            vip: end(scenario::listener(id::DSR, false)),
            vip_mask: mask,
            rate: 9,
            ..Filter::default()
        },
        Filter { family: 6, rate: 9, ..Filter::default() },
        Filter { backend: connection.backend + 1, rate: 9, ..Filter::default() },
    ];
    for filter in filters {
        plane.reset(Scenario::usual());
        tracer.filter(filter);
        for frame in [connection.syn(), connection.syn_ack(), connection.handshake_ack()] {
            plane.run(&frame.bytes());
        }
        assert_eq!(
            (tracer.take_records(), tracer.counts()),
            (vec![], Counts::default()),
            "{filter:?}"
        );
    }
    let all = Filter { backend: connection.backend, rate: 9, ..Filter::default() };
    plane.reset(Scenario::usual());
    tracer.filter(all);
    for frame in [connection.syn(), connection.syn_ack(), connection.handshake_ack()] {
        plane.run(&frame.bytes());
    }
    assert_eq!(tracer.take_records().len(), 3, "by the backend, whichever the direction");
    // One that is nothing that is parsed does not repeat what came before it.
    plane.run(&[0xff; 60]);
    tracer.filter_until(Filter { until: lb_agent::bpf::sys::now_ticks().wrapping_sub(1), ..all });
    plane.run(&connection.syn().bytes());
    assert_eq!(
        (tracer.take_records(), tracer.counts()),
        (vec![], Counts::default()),
        "its time is over"
    );
}

#[test]
fn no_more_are_told_in_a_second_than_was_said_and_the_others_are_counted() {
    const SENT: u64 = 50;
    const RATE: u32 = 5;
    let (mut plane, mut tracer) = traced();
    plane.reset(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, false);
    tracer.filter(Filter { rate: RATE, ..of_client(connection.client) });
    let start = std::time::Instant::now();
    for _ in 0..SENT {
        plane.run(&connection.syn().bytes());
    }
    let seconds = start.elapsed().as_secs() + 2;
    let counts = tracer.counts();
    assert_eq!((counts.told + counts.limited, counts.full), (SENT, 0));
    assert!(counts.told >= RATE.into() && counts.told <= u64::from(RATE) * seconds, "{counts:?}");
    assert_eq!(tracer.take_records().len() as u64, counts.told);
}
