//! `lb-agent status`: all that a running agent knows.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use clap::Args;
use lb_agent::run::status::{
    Backend, Draining, Ejected, Outcomes, Requests, Service, Sidecar, Status, Traffic, Worker,
};

use super::client::{Client, Where};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    at: Where,
    /// Address of its admin API, to ask over TCP, for which nobody needs to be root
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["config", "socket"])]
    admin: Option<SocketAddr>,
}

pub fn status(arguments: &Arguments) -> Result<()> {
    let client = match arguments.admin {
        Some(address) => Client::over_tcp(address),
        None => Client::new(&arguments.at)?,
    };
    let status: Status = client.get("/v1/status")?;
    if arguments.at.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", shown(&status));
    }
    Ok(())
}

fn shown(status: &Status) -> String {
    let mut text = format!(
        "edge {}: {}, lb-agent {}, pid {}, up for {} s{}\n",
        status.edge,
        match (status.ready, &status.draining) {
            (false, _) => "starting",
            (true, Some(_)) => "draining",
            (true, None) => "ready",
        },
        status.version,
        status.pid,
        status.uptime_seconds,
        if status.adopted { ", flows of an earlier agent taken over" } else { "" },
    );
    if let Some(draining) = &status.draining {
        text += &shown_draining(draining, SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
    }
    if let Some(refused) = &status.config_refused {
        text += &format!(
            "the changed configuration is refused, the one before is in force:\n{refused}\n"
        );
    }
    if let Some(refused) = &status.certificates_refused {
        text += &format!(
            "the changed certificates are refused, the ones before are in force:\n{refused}\n"
        );
    }
    for interface in &status.interfaces {
        text += &match (&interface.xdp, &interface.problem) {
            (Some(xdp), _) => format!("interface {}: attached, {xdp} XDP\n", interface.name),
            (_, problem) => {
                format!(
                    "interface {}: NOT ATTACHED: {}\n",
                    interface.name,
                    problem.as_deref().unwrap_or("?")
                )
            }
        };
    }
    status.services.iter().for_each(|service| text += &shown_service(service));
    status.sidecar.iter().for_each(|sidecar| text += &shown_sidecar(sidecar));
    text += &format!("\nno service: {}\n", shown_outcomes(&status.outcomes));
    for table in &status.tables {
        let percent = 100.0 * table.entries as f64 / (table.capacity as f64).max(1.0);
        text +=
            &format!("{}: {} of {} ({percent:.1} %)\n", table.name, table.entries, table.capacity);
    }
    text
}

/// `now`: since the beginning of 1970.
fn shown_draining(draining: &Draining, now: Duration) -> String {
    let Draining { until, connections, relayed, spliced } = draining;
    let left = until.map(|until| Duration::from_millis(until).saturating_sub(now).as_secs());
    let deadline = match left {
        None => String::new(),
        Some(0) => ", the deadline is over".to_owned(),
        Some(seconds) => format!(", cut off in {seconds} s"),
    };
    format!(
        "draining: {connections} l7 connections open ({relayed} of them relayed, {spliced} spliced){deadline}\n"
    )
}

fn shown_sidecar(sidecar: &Sidecar) -> String {
    let mut text = "\nsidecar\n".to_owned();
    text += &format!(
        "  {:<8} {:>8} {:<10} {:>11} {:>8}\n",
        "worker", "pid", "state", "connections", "restarts"
    );
    for Worker { index, pid, state, restarts, connections } in &sidecar.workers {
        text += &format!("  {index:<8} {pid:>8} {state:<10} {connections:>11} {restarts:>8}\n");
    }
    if sidecar.log_lines_lost > 0 {
        text += &format!("  {} lines of the access log were lost\n", sidecar.log_lines_lost);
    }
    text
}

fn shown_service(service: &Service) -> String {
    let listeners: Vec<_> = service.listeners.iter().map(|it| it.address.as_str()).collect();
    let mut text = format!(
        "\nservice {} ({}, affinity {}): {}{}\n",
        service.name,
        service.forward.as_deref().unwrap_or(&service.mode),
        service.affinity,
        listeners.join(", "),
        match (service.fail_open, service.turned_away) {
            (true, _) => ", ALL BACKENDS DOWN, FAILING OPEN",
            (_, true) => ", NO BACKEND, CLIENTS ARE TURNED AWAY",
            _ => "",
        },
    );
    if !service.pools_down.is_empty() {
        text += &format!("  no backend is up in: {}\n", service.pools_down.join(", "));
    }
    text += &format!("  {:<20} {:<26} {:<8} {:>6}", "backend", "address", "health", "weight");
    text += &match (service.connections, service.relayed) {
        (Some(_), _) => format!(
            " {:>11} {:>8} {:>8} {:>8} {:>12} {:>12}\n",
            "connections", "spliced", "picked", "failed", "bytes in", "bytes out"
        ),
        _ => format!(" {:>8} {:>11} {:>8} {:>8}\n", "share", "connections", "opened", "reset"),
    };
    let mut pool = None;
    for backend in &service.backends {
        if backend.pool != pool {
            pool.clone_from(&backend.pool);
            text += &format!("  pool {}\n", pool.as_deref().unwrap_or_default());
        }
        text += &shown_backend(backend);
    }
    if !service.routes.is_empty() {
        let routes = service.routes.iter().map(|it| format!("{} {}", it.name, it.requests));
        text += &format!("  requests by route: {}\n", routes.collect::<Vec<_>>().join(", "));
    }
    if let (Some(connections), Some(relayed)) = (service.connections, service.relayed) {
        let spliced = service.spliced.unwrap_or(0);
        text += &format!("  {connections} connections: {relayed} relayed, {spliced} spliced");
        let ended = service.ended.iter().map(|(how, count)| format!("{how} {count}"));
        let ended: Vec<_> = ended.collect();
        text += &match ended.is_empty() {
            true => "\n".to_owned(),
            false => format!("; spliced ones that have ended: {}\n", ended.join(", ")),
        };
    }
    text + &format!("  {}\n", shown_outcomes(&service.outcomes))
}

fn shown_backend(backend: &Backend) -> String {
    let state = match (&backend.ejected, backend.draining_until) {
        (Some(_), _) => "ejected",
        (None, Some(_)) => "draining",
        (None, None) => backend.health.state.as_str(),
    };
    let mut text = format!(
        "  {:<20} {:<26} {:<8} {:>6}",
        backend.name, backend.address, state, backend.effective_weight
    );
    let share = backend.share.values().copied().fold(0.0, f64::max);
    let connections = backend.connections;
    if let Some(Requests { picked, failed, bytes_in, bytes_out }) = backend.requests {
        let spliced = backend.spliced.unwrap_or(0);
        text += &format!(
            " {connections:>11} {spliced:>8} {picked:>8} {failed:>8} {bytes_in:>12} {bytes_out:>12}"
        );
    } else if let Some(Traffic { opened, reset, .. }) = backend.traffic {
        text += &format!(" {:>6.1} % {connections:>11} {opened:>8} {reset:>8}", 100.0 * share);
    }
    text += "\n";
    if let Some(Ejected { seconds_left, times, reason }) = &backend.ejected {
        text += &format!("  {:<20} for {seconds_left:.0} s, time {times}: {reason}\n", "");
    }
    let error = backend.health.last.as_ref().and_then(|last| last.error.as_ref());
    if let Some(error) = error {
        text += &format!("  {:<20} {error}\n", "");
    }
    text
}

fn shown_outcomes(outcomes: &Outcomes) -> String {
    let events = outcomes.events.iter().map(|(label, count)| format!("{label} {count}"));
    let drops = outcomes.drops.iter().map(|(label, count)| format!("dropped: {label} {count}"));
    let all: Vec<_> = events.chain(drops).collect();
    if all.is_empty() { "nothing to count yet".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_agent_is_named_as_in_other_commands_or_by_its_address() {
        let parse = |line: &str| {
            Line::try_parse_from(line.split(' ')).map(|it| it.arguments).map_err(|it| it.kind())
        };
        let at = parse("status --socket /run/admin.sock --json").ok().unwrap().at;
        assert_eq!((at.socket, at.json), (Some("/run/admin.sock".into()), true));
        assert_eq!(parse("status").ok().unwrap().admin, None, "its socket is looked for");
        let address = Some("127.0.0.1:9901".parse().unwrap());
        assert_eq!(parse("status --admin 127.0.0.1:9901").ok().unwrap().admin, address);
        for other in ["--config edge.toml", "--socket /run/admin.sock"] {
            let both = parse(&format!("status --admin 127.0.0.1:9901 {other}")).err();
            assert_eq!(both, Some(clap::error::ErrorKind::ArgumentConflict));
        }
    }
}
