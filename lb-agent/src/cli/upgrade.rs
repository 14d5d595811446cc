//! `lb-agent upgrade`.
//!
//! Until the running agent has accepted, nothing has happened, and whoever interrupts this command has undone it. From
//! then on the agent needs nobody, and this command only looks on.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use lb_agent::run::{
    status::{Status, Worker},
    upgrade::Accepted,
};
use serde_json::{Value, json};

use super::client::{Client, Where, path};

/// For the new program to find out whether it can take over; it is given up before.
const TRIAL: Duration = Duration::from_secs(120);
/// For the new program to take over, and to give up.
const TAKE_OVER: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct Arguments {
    /// The new lb-agent; without it the one that runs this command
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

pub fn upgrade(arguments: &Arguments) -> Result<()> {
    let Arguments { binary, at } = arguments;
    let program = program(binary.as_deref())?;
    let client = Client::new(at)?;
    let before: Status = client.get("/v1/status")?;
    let start = Instant::now();
    let id = id();
    let body = json!({ "program": program, "id": id });
    tell(
        at,
        &format!("{} finds out whether it can take edge {} over", program.display(), before.edge),
    );
    let accepted: Result<Accepted> = client.change_within(&path(&["upgrade"]), &body, TRIAL);
    match accepted {
        Ok(Accepted { from, to, .. }) => {
            tell(at, &format!("it can: lb-agent {from} -> {to}, pid {}", before.pid));
        }
        Err(error) if format!("{error:#}").contains("there is no page") => bail!(
            "the running agent, lb-agent {}, does not know how to be upgraded: restart it (`systemctl restart \
             sluice`), which loses no connection either",
            before.version
        ),
        Err(error) => return Err(error.context("nothing is changed")),
    }
    let after = wait(&client, &before, &id)?;
    let took = start.elapsed();
    let came = after.upgrade.as_ref();
    if let Some(why) = came.and_then(|it| it.refused.as_ref()) {
        bail!(
            "{} has not come up, and lb-agent {} runs again, with all connections: {why}",
            program.display(),
            after.version
        );
    }
    match at.json {
        true => println!("{}", changes(&before, &after, took)),
        false => print!("{}", shown(&before, &after, took)),
    }
    Ok(())
}

/// To the operator at the terminal.
fn tell(at: &Where, what: &str) {
    if !at.json {
        println!("{what}");
    }
}

/// As the agent finds it: from the root.
fn program(wanted: Option<&Path>) -> Result<PathBuf> {
    match wanted {
        Some(path) => fs::canonicalize(path)
            .with_context(|| format!("--binary {}: there is no such program", path.display())),
        None => env::current_exe().context("this program has no path; name one with --binary"),
    }
}

/// No other upgrade's.
fn id() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Waits until what runs is what was wanted, or what was before.
fn wait(client: &Client, before: &Status, id: &str) -> Result<Status> {
    let end = Instant::now() + TAKE_OVER;
    loop {
        // Between two programs nobody answers.
        let status = client.get::<Status>("/v1/status");
        if let Ok(status) = &status
            && status.ready
            && status.upgrade.as_ref().is_some_and(|it| it.id == id)
        {
            return Ok(status.clone());
        }
        let pid = before.pid;
        if !is_alive(pid) {
            bail!(
                "the agent, pid {pid}, has ended while the new program started. Packets and connections go on as they \
                 are, without health checks; see its log, and start it again (`systemctl start sluice`, `lb-agent run`)"
            );
        }
        if Instant::now() >= end {
            let state =
                status.map_or_else(|error| format!("{error:#}"), |_| "not ready".to_owned());
            bail!(
                "the new program is not ready after {TAKE_OVER:?} ({state}). Packets and connections go on as they are; \
                 see its log, and `lb-agent status`"
            );
        }
        thread::sleep(LOOK);
    }
}

/// Whether there is such a process that has not ended.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// The processes of each place, before and after; those that have retired are at their end.
fn workers(status: &Status) -> impl Iterator<Item = &Worker> {
    let workers = status.sidecar.iter().flat_map(|it| &it.workers);
    workers.filter(|it| it.state != "retired")
}

fn changes(before: &Status, after: &Status, took: Duration) -> Value {
    let pids = |status| workers(status).map(|it| it.pid).collect::<Vec<_>>();
    json!({
        "edge": after.edge,
        "pid": after.pid,
        "version": { "from": before.version, "to": after.version },
        "program_id": { "from": before.program_id, "to": after.program_id },
        "workers": { "from": pids(before), "to": pids(after) },
        "seconds": took.as_secs_f64(),
    })
}

fn shown(before: &Status, after: &Status, took: Duration) -> String {
    let mut text = format!(
        "edge {}: ready after {:.1} s\nagent: lb-agent {} -> {}, pid {}\nXDP program: {} -> {}\n",
        after.edge,
        took.as_secs_f64(),
        before.version,
        after.version,
        after.pid,
        before.program_id,
        after.program_id
    );
    for worker in workers(after) {
        let old = workers(before).find(|it| it.index == worker.index).map(|it| it.pid);
        text += &match old {
            Some(pid) if pid == worker.pid => {
                format!("worker {}: pid {pid} stays, it is of the same program\n", worker.index)
            }
            Some(pid) => format!(
                "worker {}: pid {pid} -> {}; the old one ends with its last connection\n",
                worker.index, worker.pid
            ),
            None => format!("worker {}: pid {}\n", worker.index, worker.pid),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(program_id: u32, version: &str, workers: &[(u32, &str)]) -> Status {
        let workers = (0..).zip(workers).map(|(index, (pid, state))| {
            json!({ "index": index / 2, "pid": pid, "state": state, "restarts": 0, "connections": 0 })
        });
        let workers: Vec<_> = workers.collect();
        serde_json::from_value(json!({
            "edge": "e1", "version": version, "pid": 7, "ready": true, "uptime_seconds": 1,
            "program_id": program_id, "adopted": true, "config_generation": 1, "interfaces": [],
            "services": [], "outcomes": { "events": {}, "drops": {} },
            "flows": { "expired": 0, "closed": 0, "orphans": 0, "reset": 0, "unsent_resets": 0 },
            "sidecar": { "workers": workers, "log_lines_lost": 0 }, "tables": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_report_says_what_was_swapped() {
        let before = status(11, "1.0.0", &[(20, "serving"), (9, "retired")]);
        let after = status(12, "1.1.0", &[(20, "retired"), (30, "serving")]);
        let took = Duration::from_millis(1_250);
        let text = shown(&before, &after, took);
        for part in [
            "edge e1: ready after 1.2 s",
            "lb-agent 1.0.0 -> 1.1.0, pid 7",
            "XDP program: 11 -> 12",
            "worker 0: pid 20 -> 30",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let json = changes(&before, &after, took);
        assert_eq!(json["workers"], json!({ "from": [20], "to": [30] }));
        assert_eq!(json["program_id"], json!({ "from": 11, "to": 12 }));
        assert!(shown(&after, &after, took).contains("pid 30 stays"));
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id();
        while is_alive(pid) {
            thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = program(Some(Path::new("/nonexistent/lb-agent"))).unwrap_err();
        assert!(format!("{error:#}").contains("--binary /nonexistent/lb-agent"), "{error:#}");
    }
}
