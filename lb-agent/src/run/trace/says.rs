//! Records of the traced program, in words.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::{V4, V6},
    flow::{flags, forward},
    outcome::{DropReason, Event},
    trace::{self, Stage, Trace, verdict},
};
use serde::{Deserialize, Serialize};

use crate::run::{explain, interfaces::State, view::Picture};

/// What numbers in the maps are called.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub services: BTreeMap<u16, String>,
    /// `SERVICE/NAME`.
    pub backends: BTreeMap<u16, String>,
    pub interfaces: BTreeMap<u32, String>,
}

/// A packet's way through XDP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Microseconds of Unix time.
    pub time: u64,
    /// The processor that handled it.
    pub cpu: u16,
    /// Where it came in.
    pub interface: String,
    /// `tcp` or `icmp`.
    pub protocol: String,
    /// As it came; ports are 0 for ICMP.
    pub source: String,
    pub destination: String,
    /// Of TCP, as `SYN,ACK`.
    pub flags: String,
    pub seq: u32,
    pub ack: u32,
    /// Bytes of the IP packet, and of TCP payload.
    pub length: u16,
    pub payload: u16,
    /// Empty if it was counted for none.
    pub service: String,
    /// `SERVICE/NAME`; empty until one is known.
    pub backend: String,
    /// In the order in which they were passed.
    pub stages: Vec<Says>,
    /// `transmit`, `redirect`, `to_agent`, `pass` or `drop`.
    pub verdict: String,
    /// Why, for `pass` and `drop`: a label of the counters.
    pub reason: String,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Says {
    pub stage: String,
    pub says: String,
}

/// The last line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why it has ended.
    pub reason: String,
    /// Packets told of.
    pub told: u64,
    /// Packets of the filter that were not: above the rate.
    pub above_rate: u64,
    /// And those which nobody read in time.
    pub lost: u64,
}

impl Names {
    /// As they are now.
    #[must_use]
    pub fn of(picture: &Picture) -> Self {
        let mut names = Self::default();
        let l4 = picture.services.iter().map(|it| (it.id, &it.config));
        let l7 = picture.l7.iter().map(|it| (it.id, &it.config));
        for (id, service) in l4.chain(l7) {
            names.services.insert(id, service.name.clone());
            for (id, backend) in explain::ids(picture, service).iter().zip(&service.backends) {
                let Some(id) = id else { continue };
                names.backends.insert(*id, format!("{}/{}", service.name, backend.name));
            }
        }
        for (name, state) in picture.interfaces.iter() {
            if let State::Attached { ifindex, .. } = state {
                names.interfaces.insert(*ifindex, name.to_owned());
            }
        }
        names
    }

    fn service(&self, id: u16) -> String {
        named(&self.services, id)
    }

    fn backend(&self, id: u16) -> String {
        named(&self.backends, id)
    }

    fn interface(&self, id: u32) -> String {
        self.interfaces.get(&id).cloned().unwrap_or_else(|| format!("interface {id}"))
    }

    /// A record in words. `boot`: microseconds of Unix time at which the kernel's clock began.
    #[must_use]
    pub fn packet(&self, record: &Trace, boot: u64) -> Packet {
        let [source, destination] = record.came.map(|it| shown(&it, record.family));
        let steps = &record.steps[..usize::from(record.len).min(trace::MAX_STEPS)];
        let number = record.verdict & 0xff;
        let event = || Event::from_number(number).map_or("?", Event::label);
        let drop = || DropReason::from_number(number).map_or("?", DropReason::label);
        let (verdict, reason) = match record.verdict >> 8 {
            verdict::TRANSMIT => ("transmit", ""),
            verdict::REDIRECT => ("redirect", ""),
            verdict::PUNTED => ("to_agent", ""),
            verdict::PASS => ("pass", event()),
            _ => ("drop", drop()),
        };
        Packet {
            time: boot + record.time / 1_000,
            cpu: record.cpu,
            interface: self.interface(record.ifindex),
            protocol: if record.icmp == 0 { "tcp" } else { "icmp" }.to_owned(),
            source,
            destination,
            flags: if record.icmp == 0 { tcp_flags(record.flags) } else { String::new() },
            seq: record.seq,
            ack: record.ack,
            length: record.ip_len,
            payload: record.payload,
            service: if record.service == 0 { String::new() } else { self.service(record.service) },
            backend: if record.backend == 0 { String::new() } else { self.backend(record.backend) },
            stages: steps.iter().filter_map(|step| self.stage(record, step)).collect(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn stage(&self, record: &Trace, step: &trace::Step) -> Option<Says> {
        let (stage, a, b) = (Stage::from_number(step.stage)?, step.a, step.b);
        let family = record.family;
        let [from, to] = record.to.map(|it| shown(&it, family));
        let by_flow = || {
            let direction = if a & u16::from(flags::TO_CLIENT) != 0 { "client" } else { "backend" };
            let way = way(u8::try_from(b).unwrap_or(0));
            let marks = marks(a);
            format!(
                "to the {direction}, {way}, backend {}{marks}; {from} > {to}",
                self.backend(record.backend)
            )
        };
        let says = match stage {
            Stage::Flow | Stage::Handshake | Stage::Opened => by_flow(),
            Stage::NoFlow => "the tuple is not in the flow table".to_owned(),
            Stage::Listener => format!("of service {}", self.service(a)),
            Stage::NoListener => "no service listens there".to_owned(),
            Stage::Access => match b {
                0 => "the lists admit the source".to_owned(),
                _ => "the lists deny the source".to_owned(),
            },
            Stage::Pick => format!("slot {b} of the ring: backend {}", self.backend(a)),
            Stage::Noted => "TCP options remembered for a splice".to_owned(),
            Stage::Answered => "the backend's SYN-ACK".to_owned(),
            Stage::Completed => match a {
                1 => "the client completes the handshake: flow entered".to_owned(),
                _ => "the client completes the handshake; the flow table is full".to_owned(),
            },
            Stage::Ending => match marks(a).as_str() {
                "" => "no end that counts".to_owned(),
                marks => format!("the flow now has{}", marks.replace(',', "")),
            },
            Stage::Stray => "no SYN, and of no known connection".to_owned(),
            Stage::About => {
                let [from, to] = record.about.map(|it| shown(&it, family));
                format!("an ICMP error about a segment of {to} > {from}")
            }
            Stage::Forward => way(u8::try_from(a).unwrap_or(0)).to_owned(),
            Stage::TooBig => format!("does not fit {a} bytes: answered with that"),
            Stage::Out => format!("by {}", self.interface(b)),
            Stage::Unresolved => match u32::from(a) {
                verdict::TRANSMIT | verdict::REDIRECT => "the kernel's routes have the next hop",
                verdict::PUNTED => "the agent is asked to resolve the next hop",
                _ => "nobody knows a next hop",
            }
            .to_owned(),
        };
        Some(Says { stage: stage.label().to_owned(), says })
    }
}

fn named(names: &BTreeMap<u16, String>, id: u16) -> String {
    names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
}

fn shown(end: &trace::End, family: u8) -> String {
    let ip = match family {
        4 => IpAddr::from(V4(end.addr[0])),
        _ => IpAddr::from(V6(end.addr)),
    };
    match u16::from_be(end.port) {
        0 => ip.to_string(),
        port => SocketAddr::new(ip, port).to_string(),
    }
}

fn way(forward: u8) -> &'static str {
    match forward {
        forward::NAT => "nat",
        forward::DSR => "dsr",
        forward::IPIP => "ipip",
        forward::SPLICE => "splice",
        _ => "?",
    }
}

/// What is out of the ordinary about a flow.
fn marks(bits: u16) -> String {
    let all = [
        (flags::FIN, "FIN"),
        (flags::PEER_FIN, "peer's FIN"),
        (flags::RESET, "RST"),
        (flags::PEER_RESET, "peer's RST"),
        (flags::RESTART, "a newcomer"),
        (flags::HOLD, "hold"),
    ];
    let set = all.iter().filter(|(bit, _)| bits & u16::from(*bit) != 0);
    set.map(|(_, name)| format!(", {name}")).collect()
}

fn tcp_flags(bits: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<_> = (0..8).filter(|bit| bits & 1 << bit != 0).map(|bit| names[bit]).collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(ip: [u8; 4], port: u16) -> trace::End {
        trace::End { addr: [u32::from_ne_bytes(ip), 0, 0, 0], port: port.to_be(), _pad: 0 }
    }

    fn names() -> Names {
        Names {
            services: [(1, "chat".to_owned())].into(),
            backends: [(2, "chat/b1".to_owned())].into(),
            interfaces: [(7, "eth0".to_owned())].into(),
        }
    }

    #[test]
    fn a_record_is_told_stage_by_stage() {
        let mut record = Trace {
            time: 5_000_000,
            came: [end([10, 1, 0, 2], 5_000), end([10, 1, 0, 10], 80)],
            to: [end([10, 2, 0, 1], 5_000), end([10, 2, 0, 2], 9_000)],
            ifindex: 7,
            verdict: verdict::REDIRECT << 8,
            service: 1,
            backend: 2,
            flags: 0b10,
            family: 4,
            len: 3,
            ..Trace::default()
        };
        let step = |stage, a, b| trace::Step { stage: stage as u8, a, b, _pad: 0 };
        record.steps[0] = step(Stage::Pick, 2, 99);
        record.steps[1] = step(Stage::Opened, 0, u32::from(forward::NAT));
        record.steps[2] = step(Stage::Out, 0, 8);
        record.steps[3] = step(Stage::NoFlow, 0, 0);
        let packet = names().packet(&record, 1_000_000);
        assert_eq!((packet.time, packet.flags.as_str()), (1_005_000, "SYN"));
        assert_eq!((packet.source.as_str(), packet.interface.as_str()), ("10.1.0.2:5000", "eth0"));
        assert_eq!((packet.verdict.as_str(), packet.backend.as_str()), ("redirect", "chat/b1"));
        let says: Vec<_> = packet.stages.iter().map(|it| it.says.as_str()).collect();
        assert_eq!(
            says,
            [
                "slot 99 of the ring: backend chat/b1",
                "to the backend, nat, backend chat/b1; 10.2.0.1:5000 > 10.2.0.2:9000",
                "by interface 8",
            ]
        );
    }

    #[test]
    fn drops_and_passes_have_the_counters_labels() {
        let record =
            |kind, number| Trace { family: 6, verdict: kind << 8 | number, ..Trace::default() };
        let drop = record(verdict::DROP, DropReason::DeniedSource as u32);
        let packet = names().packet(&drop, 0);
        assert_eq!((packet.verdict.as_str(), packet.reason.as_str()), ("drop", "denied_source"));
        assert_eq!(packet.source, "::");
        let packet = names().packet(&record(verdict::PASS, Event::PassToSidecar as u32), 0);
        assert_eq!((packet.verdict.as_str(), packet.reason.as_str()), ("pass", "pass_to_sidecar"));
    }

    #[test]
    fn every_stage_has_words() {
        for stage in Stage::ALL {
            let step = trace::Step { stage: *stage as u8, ..Default::default() };
            let says = names().stage(&Trace { family: 4, ..Trace::default() }, &step).unwrap();
            assert!(!says.says.is_empty() && says.stage == stage.label());
        }
    }
}
