//! `lb-agent trace`: what it tells, what it refuses, and that the usual program is back after it, however it ends.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use lb_agent::{bpf::PinDir, run::trace::Packet};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    edge::{Echo, Edge, VIP, say},
    network::{text, wait_until},
};

const ONE: [(&str, &str); 1] = [("b2", "10.2.0.2:9000")];

/// The program on an interface.
fn program(pins: &PinDir, interface: &str) -> u32 {
    pins.link(interface).unwrap().unwrap().info().unwrap().program_id
}

fn programs(edge: &Edge) -> [u32; 2] {
    ["front0", "back0"].map(|interface| program(&edge.pins(), interface))
}

fn usual(edge: &Edge) -> [u32; 2] {
    [edge.status().program_id; 2]
}

/// A tracer that has begun.
struct Tracer {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Tracer {
    fn start(edge: &Edge, arguments: &str) -> Self {
        let before = programs(edge);
        let config = edge.config_file();
        let arguments = format!("trace --json --config {} {arguments}", config.display());
        let mut child = edge.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        wait_until("the traced program is there", || {
            assert!(child.try_wait().unwrap().is_none(), "the tracer has ended");
            programs(edge).iter().zip(before).all(|(now, before)| *now != before)
        });
        Self { child, lines }
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("a line").unwrap()).unwrap()
    }

    /// What is told until the end, and the end.
    fn rest(mut self) -> (Vec<Packet>, Value) {
        let mut packets = Vec::new();
        loop {
            let mut value = self.next();
            if let Some(end) = value.get_mut("end") {
                let end = end.take();
                assert!(self.child.wait().unwrap().success());
                return (packets, end);
            }
            packets.push(serde_json::from_value(value).unwrap());
        }
    }
}

fn stages(packet: &Packet) -> Vec<&str> {
    packet.stages.iter().map(|it| it.stage.as_str()).collect()
}

#[test]
fn a_clients_packets_are_told_from_its_syn_on_and_nobody_elses() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, ONE[0].1, "b2:");
    edge.start(&edge.config("", &ONE));
    let mut old = edge.client.connect(VIP);
    say(&mut old, "before").unwrap();
    let tracer = Tracer::start(&edge, &format!("--vip {VIP} --backend chat/b2 --count 6"));
    let mut stream = edge.client.connect(VIP);
    assert_eq!(say(&mut stream, "x").unwrap(), "b2:x");
    let (packets, end) = tracer.rest();
    assert_eq!((&end["told"], &end["above_rate"], &end["lost"]), (&6.into(), &0.into(), &0.into()));
    assert_eq!(end["reason"], "as many packets as were asked for");
    let client = stream.local_addr().unwrap().to_string();
    let [syn, answer, ack, ..] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!((syn.source.as_str(), syn.destination.as_str()), (client.as_str(), VIP));
    assert_eq!(stages(syn), ["no_flow", "listener", "pick", "opened", "forward", "out"]);
    assert_eq!((syn.flags.as_str(), syn.interface.as_str()), ("SYN", "front0"));
    assert_eq!((syn.service.as_str(), syn.backend.as_str()), ("chat", "chat/b2"));
    assert_eq!((answer.flags.as_str(), answer.source.as_str()), ("SYN,ACK", "10.2.0.2:9000"));
    assert_eq!((answer.interface.as_str(), answer.verdict.as_str()), ("back0", "redirect"));
    assert!(stages(ack).contains(&"completed"), "{ack:?}");
    assert!(packets.windows(2).all(|two| two[0].time <= two[1].time), "{packets:?}");

    // The old connection went on meanwhile, and the usual program is back.
    wait_until("the usual program is back", || programs(&edge) == usual(&edge));
    assert_eq!(say(&mut old, "after").unwrap(), "b2:after");

    // Another client's packets are none of it, but that connection's are, a line for each stage.
    let local = old.local_addr().unwrap();
    let config = edge.config_file();
    let shown = edge
        .command(&format!("trace --config {} --client {local} --count 2", config.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("it has begun", || programs(&edge) != usual(&edge));
    assert_eq!(say(&mut stream, "unseen").unwrap(), "b2:unseen");
    assert_eq!(say(&mut old, "seen").unwrap(), "b2:seen");
    let shown = text(&shown.wait_with_output().unwrap());
    assert!(shown.contains(&format!("{local} > {VIP}")), "{shown}");
    assert!(shown.contains("    verdict      redirect\n"), "{shown}");
    assert!(shown.contains("2 packets; ended:") && !shown.contains(&client), "{shown}");
}

#[test]
fn no_more_than_the_rate_is_told_and_the_rest_is_counted() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, ONE[0].1, "b2:");
    edge.start(&edge.config("", &ONE));
    let mut stream = edge.client.connect(VIP);
    let tracer = Tracer::start(&edge, "--client 10.1.0.0/24 --rate 3 --duration 8s");
    for _ in 0..200 {
        say(&mut stream, "x").unwrap();
    }
    let (packets, end) = tracer.rest();
    assert_eq!(end["reason"], "its time is over");
    let (told, above) = (end["told"].as_u64().unwrap(), end["above_rate"].as_u64().unwrap());
    assert_eq!(packets.len() as u64, told);
    // Eight seconds touch nine of those in which packets are counted at most.
    assert!((3..=27).contains(&told) && told + above >= 400, "{end}");
}

#[test]
fn the_usual_program_is_back_after_a_killed_tracer_and_after_a_killed_agent() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, ONE[0].1, "b2:");
    edge.start(&edge.config("", &ONE));
    let mut stream = edge.client.connect(VIP);

    let mut tracer = Tracer::start(&edge, "");
    kill(Pid::from_raw(tracer.child.id().cast_signed()), Signal::SIGKILL).unwrap();
    tracer.child.wait().unwrap();
    wait_until("the usual program is back", || programs(&edge) == usual(&edge));
    assert_eq!(say(&mut stream, "1").unwrap(), "b2:1");

    // One at a time.
    let tracer = Tracer::start(&edge, "--duration 10m");
    let second = edge.output(&format!("trace --config {}", edge.config_file().display()));
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("somebody traces this edge already"), "{}", text(&second));

    // The program outlives the agent, and packets go on; the next agent ends it.
    let traced = programs(&edge);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    assert_eq!(programs(&edge), traced);
    assert_eq!(say(&mut stream, "2").unwrap(), "b2:2");
    drop(tracer);
    edge.spawn();
    wait_until("the next agent is ready", || edge.is_healthy());
    assert_eq!(programs(&edge), usual(&edge));
    assert_ne!(programs(&edge), traced);
    assert_eq!(say(&mut stream, "3").unwrap(), "b2:3");

    // A changed configuration ends it, and so does the end of the agent.
    let tracer = Tracer::start(&edge, "");
    edge.save(&edge.config("affinity = \"source\"", &ONE));
    let (_, end) = tracer.rest();
    assert_eq!(end["reason"], "the configuration was taken over");
    assert_eq!(programs(&edge), usual(&edge));
    let id = usual(&edge);
    let mut tracer = Tracer::start(&edge, "");
    edge.signal(Signal::SIGTERM);
    edge.wait();
    assert_eq!(programs(&edge), id);
    tracer.child.wait().unwrap();
    assert_eq!(say(&mut stream, "4").unwrap(), "b2:4");
}

#[test]
fn filters_that_cannot_be_are_refused_with_a_remedy() {
    let mut edge = Edge::new();
    edge.start(&edge.config("", &ONE));
    let before = programs(&edge);
    let refused = [
        ("--client 10.1.0.300", "client \"10.1.0.300\" is not an IP address"),
        ("--client 10.1.0.2 --vip 2001:db8::1", "their IP versions differ"),
        ("--backend b9", "no backend is called \"b9\": there are \"chat/b2\""),
        ("--duration 1h", "at most 600 s"),
        ("--rate 0", "write 1 to 10000"),
        ("--count 0", "write 1 to 1000000"),
    ];
    for (arguments, part) in refused {
        let output =
            edge.output(&format!("trace {arguments} --config {}", edge.config_file().display()));
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(text(&output).contains(part), "{arguments}: {}", text(&output));
    }
    assert_eq!(programs(&edge), before, "nothing was swapped");
}
