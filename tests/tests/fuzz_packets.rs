//! Random and mutated frames through both programs: whatever comes in, the verdict is one that there is,
//! nothing is written where it must not be, and what was right stays right.
//!
//! A quick run has 20,000 frames for each program, one with SLUICE_TEST_FULL=1 150,000. A failure
//! prints the seed, the frame and its number.

use std::net::SocketAddr;

use lb_common::{
    addr::{Tuple, V4, V6},
    flow::{Flow, flags, forward},
    outcome::Event,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tests::{
    dataplane::{
        Action, Counted, Counters, Dataplane, Decap, Output, SHORTEST, Scenario, Sizes,
        expect::hex,
        id,
        scenario::{self, EDGE_MAC, ROUTER_MAC},
    },
    packet::{
        Extension, Frame, Icmp, Ip, Link, Packet, Tcp, check,
        icmp::quote,
        link::{SERVICE_VLAN, VLAN},
        protocol,
    },
    seed::seed,
};

fn frames() -> usize {
    if std::env::var_os("SLUICE_TEST_FULL").is_some() { 150_000 } else { 20_000 }
}

/// A right frame that has something to do with the services.
fn sensible(random: &mut StdRng, scenario: &Scenario) -> Frame {
    let v6 = random.random();
    let service = *id::ALL.choose(random).unwrap();
    let vip = scenario::listener(service, v6);
    let mut client = scenario::client(v6);
    // Few ports, so that segments meet the flows of others before them.
    client.set_port(40_000 + random.random_range(0..16));
    let flags = match random.random_range(0..4) {
        0 => 0x02,
        1 => 0x10,
        2 => 0x12,
        _ => random.random::<u8>(),
    };
    let number = |random: &mut StdRng| match random.random_range(0..4) {
        0 => random.random(),
        _ => random.random_range(0..4),
    };
    let (seq, ack) = (number(random), number(random));
    let options: Vec<u8> = match random.random_range(0..3) {
        0 => Vec::new(),
        1 => vec![2, 4, random.random(), random.random(), 4, 2, 1, 3, 3, 7, 0, 0],
        _ => (0..random.random_range(0..=10) * 4).map(|_| random.random_range(0..12)).collect(),
    };
    let longest = if random.random_bool(0.05) { 5000 } else { 200 };
    let payload = random.random_range(0..longest);
    let tcp = |sport, dport| {
        Tcp::new(sport, dport, flags)
            .numbers(seq, ack)
            .options(&[&options])
            .payload(&vec![0x5a; payload])
    };
    let backends: Vec<u16> = scenario.backends.keys().copied().collect();
    let server = scenario.backend_addr(*backends.choose(random).unwrap());
    let edge = scenario::edge_source(server.is_ipv6());
    let up = Packet::tcp(Ip::new(client.ip(), vip.ip()), tcp(client.port(), vip.port()));
    let mut packet = match random.random_range(0..8) {
        0 => Packet::tcp(Ip::new(server.ip(), edge), tcp(server.port(), client.port())),
        1 => {
            let down = Packet::tcp(Ip::new(vip.ip(), client.ip()), tcp(vip.port(), client.port()));
            let quoted = quote(&down, random.random_range(0..=payload + 28));
            Packet::icmp(Ip::new(client.ip(), vip.ip()), Icmp::packet_too_big(v6, 1280, quoted))
        }
        2 => Packet::icmp(Ip::new(client.ip(), vip.ip()), Icmp::echo(v6, false, &[7; 33])),
        3 => up.within(Ip::new(edge, server.ip())),
        _ => up,
    };
    packet.ip.ttl = *[0, 1, 2, 64, 255].choose(random).unwrap();
    packet.ip.traffic_class = random.random();
    if random.random_bool(0.1) {
        packet.ip.options = vec![1; random.random_range(0..=10) * 4];
        for _ in 0..random.random_range(0..8) {
            let number = [protocol::HOP_BY_HOP, protocol::ROUTING, protocol::DESTINATION_OPTIONS];
            let number = *number.choose(random).unwrap();
            packet.ip.extensions.push(Extension::padding(number, random.random_range(1..4)));
        }
    }
    let tags = match random.random_range(0..6) {
        0 => vec![(VLAN, 5)],
        1 => vec![(SERVICE_VLAN, 4), (VLAN, 5)],
        2 if random.random_bool(0.2) => vec![(VLAN, 3), (VLAN, 4), (VLAN, 5)],
        _ => Vec::new(),
    };
    Frame::new(Link::new(EDGE_MAC, ROUTER_MAC).tagged(&tags), packet)
}

/// Bits flipped, bytes overwritten, cut off, repeated.
fn mutate(random: &mut StdRng, frame: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..6) {
        // Headers are what is read; most changes go there.
        let reach = if random.random_bool(0.8) { frame.len().min(110) } else { frame.len() };
        let at = random.random_range(0..reach);
        match random.random_range(0..5) {
            0 => frame[at] ^= 1 << random.random_range(0..8),
            1 => frame[at] = random.random(),
            2 => frame[at] = *[0, 1, 4, 5, 6, 41, 44, 58, 0x45, 0x7f, 0xff].choose(random).unwrap(),
            3 => frame.truncate(random.random_range(SHORTEST..=frame.len())),
            _ => {
                let copy = frame[at..].iter().copied().take(8).collect::<Vec<_>>();
                let to = random.random_range(0..=frame.len());
                frame.splice(to..to, copy);
            }
        }
        frame.resize(frame.len().max(SHORTEST), 0);
    }
}

fn any_frame(random: &mut StdRng, scenario: &Scenario) -> Vec<u8> {
    match random.random_range(0..10) {
        0 => (0..random.random_range(SHORTEST..200)).map(|_| random.random()).collect(),
        1..=4 => sensible(random, scenario).bytes(),
        _ => {
            let mut frame = sensible(random, scenario).bytes();
            mutate(random, &mut frame);
            frame
        }
    }
}

/// The most that can come in front of a frame: an outer header, or a new header and ICMP, and two tags.
const GROWTH: usize = 40 + 8 + 8;

/// What is wrong with the way of a frame through `sluice`.
fn complaint(sent: &[u8], output: &Output) -> Option<String> {
    match output.action {
        Action::Pass if output.frame != sent => Some("passed, but changed".into()),
        Action::Pass | Action::Drop => None,
        Action::Aborted | Action::Unknown(_) => Some("no verdict that there is".into()),
        Action::Transmit | Action::Redirect => {
            if output.frame.len() > sent.len() + GROWTH {
                return Some(format!("grew from {} to {}", sent.len(), output.frame.len()));
            }
            let was_right = check::verify(sent).is_ok();
            let is_right = check::verify(&output.frame);
            match is_right {
                Err(error) if was_right => Some(error),
                _ => None,
            }
        }
    }
}

/// Says if a frame is not counted exactly as often as its verdict wants.
fn miscounted(output: &Output, rise: &Counters) -> Option<String> {
    let fatal =
        |outcome: Counted| matches!(outcome, Counted::Drop(_)) || outcome == Event::Punted.into();
    let ends: u64 =
        rise.outcomes.iter().filter(|((_, it), _)| fatal(*it)).map(|(_, count)| count).sum();
    let moved: u64 =
        rise.backends.values().map(|it| it.to_backend_packets + it.to_client_packets).sum();
    let right = match output.action {
        // What is noted of a connection, and what it takes the place of, is counted beside the verdict.
        Action::Pass => {
            let beside = |event| {
                let counts =
                    rise.outcomes.iter().filter(|((_, it), _)| *it == Counted::Event(event));
                counts.map(|(_, count)| count).sum::<u64>()
            };
            let (noted, replaced) = (beside(Event::OfferNoted), beside(Event::FlowReplaced));
            noted <= 1
                && replaced <= noted
                && rise.total() == 1 + noted + replaced
                && ends == 0
                && moved == 0
        }
        Action::Drop => ends == 1 && moved <= 1,
        // Sent on and counted for a backend, or an answer or ICMP error and counted as such.
        _ => ends == 0 && moved <= 1 && (moved == 1 || rise.total() >= 1),
    };
    (!right).then(|| format!("counted {rise:?}"))
}

/// Spliced connections of all clients' ports, with any deltas, in place of what was made of them.
fn splice(plane: &mut Dataplane, random: &mut StdRng) {
    let backends: Vec<_> =
        plane.scenario.backends.iter().map(|(&id, it)| (id, it.service)).collect();
    for (backend, _) in backends.into_iter().filter(|(_, service)| *service == id::SIDECAR) {
        let server = plane.scenario.backend_addr(backend);
        let v6 = server.is_ipv6();
        for port in 40_000..40_016 {
            let (mut client, vip) = (scenario::client(v6), scenario::listener(id::SIDECAR, v6));
            client.set_port(port);
            let edge = SocketAddr::new(scenario::edge_source(v6), port);
            let mut flags = *[0, flags::NO_ECN, flags::HOLD].choose(random).unwrap();
            for (from, to, next) in [(client, vip, (edge, server)), (server, edge, (vip, client))] {
                let numbers: [u32; 6] = random.random();
                let [seq_delta, ack_delta, tsval_delta, tsecr_delta, seq_next, ack] = numbers;
                let window_shift = random.random_range(-14..=14);
                macro_rules! enter {
                    ($table:ident, $family:ident, $ip:ident) => {{
                        let addr = |addr: SocketAddr| match addr.ip() {
                            std::net::IpAddr::$ip(ip) => $family::from(ip),
                            other => unreachable!("{other}"),
                        };
                        let tuple = |from: SocketAddr, to: SocketAddr| Tuple {
                            src: addr(from),
                            dst: addr(to),
                            sport: from.port().to_be(),
                            dport: to.port().to_be(),
                        };
                        let flow = Flow {
                            to: tuple(next.0, next.1),
                            seq_delta,
                            ack_delta,
                            tsval_delta,
                            tsecr_delta,
                            seq_next: seq_next % 4,
                            ack: ack % 4,
                            window_shift,
                            flags,
                            backend,
                            forward: forward::SPLICE,
                            packets: 1,
                            ..Flow::default()
                        };
                        plane.tables.$table.insert(tuple(from, to), flow, 0).unwrap();
                    }};
                }
                if v6 {
                    enter!(flows6, V6, V6)
                } else {
                    enter!(flows4, V4, V4)
                }
                flags |= flags::TO_CLIENT;
            }
        }
    }
}

#[test]
fn sluice_keeps_its_promises_whatever_comes() {
    let mut random = StdRng::seed_from_u64(seed("sluice_keeps_its_promises_whatever_comes"));
    let mut plane = Dataplane::load(Sizes { flows: 1024, handshakes: 4096 });
    plane.reset(Scenario::usual().with(|scenario| {
        scenario.xdp_only(scenario::listener(id::NAT, false).ip());
        scenario.xdp_only(scenario::listener(id::NAT, true).ip());
        scenario.backends.values_mut().for_each(|backend| backend.mss_clamp = 1400);
    }));
    let mut before = plane.tables.counters();
    let mut verdicts = std::collections::BTreeMap::<String, u64>::new();
    for number in 0..frames() {
        if number % 500 == 0 {
            splice(&mut plane, &mut random);
        }
        let sent = any_frame(&mut random, &plane.scenario);
        let output = plane.run(&sent);
        let after = plane.tables.counters();
        let rise = after.since(&before);
        before = after;
        *verdicts.entry(format!("{:?}", output.action)).or_default() += 1;
        let wrong = complaint(&sent, &output).or_else(|| miscounted(&output, &rise));
        assert!(
            wrong.is_none(),
            "frame {number}: {}\n{}\nbecame, with {:?},\n{}",
            wrong.unwrap_or_default(),
            hex(&sent),
            output.action,
            hex(&output.frame)
        );
    }
    println!("{verdicts:?}");
    let outcomes = plane.tables.counters().outcomes;
    let opened = outcomes.iter().filter(|((_, outcome), _)| *outcome == Event::FlowOpened.into());
    assert!(opened.map(|(_, count)| count).sum::<u64>() > 0, "the frames never opened a flow");
    let to_spliced = plane.tables.counters().backends.into_iter().filter(|(backend, counters)| {
        let sidecars = plane.scenario.backends[backend].service == id::SIDECAR;
        sidecars && counters.to_backend_packets > 0 && counters.to_client_packets > 0
    });
    assert_eq!(to_spliced.count(), 2, "the frames never went through a splice both ways");
    assert_eq!(verdicts.len(), 3, "the frames never came to {verdicts:?}");
}

#[test]
fn decap_keeps_its_promises_whatever_comes() {
    let mut random = StdRng::seed_from_u64(seed("decap_keeps_its_promises_whatever_comes"));
    let scenario = Scenario::usual();
    let vips: Vec<_> = scenario.listeners.keys().map(|listener| listener.ip).collect();
    let decap = Decap::load(&vips);
    let mut before = decap.counters();
    for number in 0..frames() {
        let mut sent = any_frame(&mut random, &scenario);
        if random.random_bool(0.5) {
            let frame = sensible(&mut random, &scenario);
            let edge = scenario::edge_source(random.random());
            let outer = Ip::new(edge, edge);
            sent = Frame::new(frame.link, frame.packet.within(outer)).bytes();
            if random.random() {
                mutate(&mut random, &mut sent);
            }
        }
        let output = decap.run(&sent, 0);
        let after = decap.counters();
        let (rise, stripped) = (
            after.values().sum::<u64>() - before.values().sum::<u64>(),
            after.get("decapsulated") > before.get("decapsulated"),
        );
        before = after;
        let wrong = match (output.action, stripped) {
            _ if rise != 1 => Some(format!("counted {rise} times")),
            (Action::Drop, false) => None,
            (Action::Pass, false) if output.frame != sent => Some("passed, but changed".into()),
            (Action::Pass, false) => None,
            (Action::Pass, true) => {
                let cut = sent.len() - output.frame.len();
                let tail = output.frame.len().saturating_sub(14 + 8 + 12);
                if !(20..=60).contains(&cut) {
                    Some(format!("{cut} bytes cut off"))
                } else if !sent.ends_with(&output.frame[output.frame.len() - tail..]) {
                    Some("the packet's contents have changed".into())
                } else {
                    match (check::verify(&sent), check::verify(&output.frame)) {
                        (Ok(_), Err(error)) => Some(error),
                        _ => None,
                    }
                }
            }
            _ => Some("no verdict that there is".into()),
        };
        assert!(
            wrong.is_none(),
            "frame {number}: {}\n{}\nbecame, with {:?},\n{}",
            wrong.unwrap_or_default(),
            hex(&sent),
            output.action,
            hex(&output.frame)
        );
    }
    println!("{before:?}");
    assert!(before["decapsulated"] > frames() as u64 / 10, "hardly anything was unwrapped");
}
