//! `lb-agent trace`: the packets of some flows, stage by stage.

use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use lb_agent::run::trace::{End, Packet, Question};
use serde_json::{Value, json};

use super::{
    client::{Client, Where},
    events::clock,
};

#[derive(Args)]
pub struct Arguments {
    /// Of this client: an address, with a port or without, or a prefix
    #[arg(long, value_name = "CLIENT[:PORT]")]
    client: Option<String>,
    /// To this VIP, with a port or without
    #[arg(long, value_name = "VIP[:PORT]")]
    vip: Option<String>,
    /// Of this backend: its name, or SERVICE/NAME
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time, at most 10m [default: 60s]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// At most so many packets a second; others are counted [default: 100]
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    #[command(flatten)]
    at: Where,
}

pub fn trace(arguments: &Arguments) -> Result<()> {
    let question = Question {
        client: arguments.client.clone(),
        vip: arguments.vip.clone(),
        backend: arguments.backend.clone(),
        count: arguments.count,
        duration: arguments.duration.clone(),
        rate: arguments.rate,
    };
    let mut out = io::stdout();
    let result = Client::new(&arguments.at)?.lines("/v1/trace", &json!(question), |line| {
        match arguments.at.json {
            true => writeln!(out, "{line}")?,
            false => write!(out, "{}", shown(line)?)?,
        }
        out.flush()?;
        Ok(())
    });
    match result {
        // Whoever read it has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        result => result,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

fn shown(line: &str) -> Result<String> {
    let mut value: Value = serde_json::from_str(line)?;
    if let Some(end) = value.get_mut("end") {
        return Ok(last(&serde_json::from_value(end.take())?));
    }
    Ok(packet(&serde_json::from_value(value)?))
}

/// A line for the packet, and one for each stage and the verdict.
fn packet(packet: &Packet) -> String {
    let Packet { cpu, interface, source, destination, protocol, length, .. } = packet;
    let seconds = clock(packet.time / 1_000_000);
    let time = seconds.split_once(' ').map_or("", |(_, time)| time.trim_end_matches('Z'));
    let micros = packet.time % 1_000_000;
    let numbers = match protocol.as_str() {
        "icmp" => "ICMP".to_owned(),
        _ => format!(
            "{} seq {} ack {} data {}",
            packet.flags, packet.seq, packet.ack, packet.payload
        ),
    };
    let mut text = format!(
        "{time}.{micros:06} cpu {cpu} {interface}  {source} > {destination}  {numbers} length {length}\n"
    );
    for stage in &packet.stages {
        text += &format!("    {:<12} {}\n", stage.stage, stage.says);
    }
    let verdict = match packet.reason.as_str() {
        "" => packet.verdict.clone(),
        reason => format!("{}: {reason}", packet.verdict),
    };
    text + &format!("    {:<12} {verdict}\n", "verdict")
}

fn last(end: &End) -> String {
    let End { reason, told, above_rate, lost } = end;
    let mut text = format!("{told} packets; ended: {reason}\n");
    if *above_rate > 0 {
        text +=
            &format!("{above_rate} more came above the rate: raise --rate, or narrow the filter\n");
    }
    if *lost > 0 {
        text += &format!("{lost} more were not read in time: lower --rate, or narrow the filter\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use lb_agent::run::trace::Says;

    use super::*;

    #[test]
    fn a_stage_is_a_line() {
        let stages = vec![Says { stage: "no_flow".into(), says: "not known".into() }];
        let one = Packet {
            time: 61_000_042,
            interface: "eth0".into(),
            protocol: "tcp".into(),
            source: "10.1.0.2:5000".into(),
            destination: "10.1.0.10:80".into(),
            flags: "SYN".into(),
            seq: 7,
            length: 60,
            stages,
            verdict: "drop".into(),
            reason: "denied_source".into(),
            ..Packet::default()
        };
        let text = shown(&json!(one).to_string()).unwrap();
        assert_eq!(
            text,
            "00:01:01.000042 cpu 0 eth0  10.1.0.2:5000 > 10.1.0.10:80  SYN seq 7 ack 0 data 0 length 60\n    \
             no_flow      not known\n    verdict      drop: denied_source\n"
        );
    }

    #[test]
    fn the_end_says_what_was_not_told() {
        let end = End { reason: "its time is over".into(), told: 3, above_rate: 2, lost: 1 };
        let text = shown(&json!({ "end": end }).to_string()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("2 more came above the rate"), "{text}");
        let end = End { above_rate: 0, lost: 0, ..end };
        assert_eq!(last(&end), "3 packets; ended: its time is over\n");
    }
}
