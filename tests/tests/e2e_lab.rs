//! The lab itself: it succeeds, stays as long as it shall, and leaves nothing however it ends. Needs root.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::owner::{BPFFS, EDGES, NETNS_DIR, RUN_DIR, owner_of};
use tests::privilege::require_root;
use tests::process::{Process, binary, command};
use tests::sweep::sweep_stale;

const SOON: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(90);

fn start(arguments: &[&str]) -> Process {
    let mut lab = command(binary("lab").unwrap());
    lab.args(arguments).env(tests::edge::AGENT, tests::edge::agent().unwrap());
    Process::spawn("lab", lab).unwrap()
}

/// What a process left on this machine.
fn left_by(pid: u32) -> Vec<String> {
    let names = [NETNS_DIR, BPFFS, EDGES, RUN_DIR].into_iter().flat_map(|directory| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    });
    let mut left: Vec<_> = names.filter(|name| owner_of(name) == Some(pid)).collect();
    let marker = format!("{}={pid}\0", tests::sweep::MARKER);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(marker.len()).any(|window| window == marker.as_bytes()) {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    left
}

#[test]
fn it_succeeds_stays_until_it_is_interrupted_and_leaves_nothing() {
    require_root();
    let mut lab = start(&["--stay"]);
    lab.wait_for_line(LATER, |line| line.contains("until Ctrl-C")).unwrap();
    assert!(!left_by(lab.pid()).is_empty(), "nothing of it is there");
    lab.signal(Signal::SIGINT).unwrap();
    let status = lab.wait(SOON).unwrap();
    assert!(status.success(), "{}", lab.output().join("\n"));
    assert_eq!(left_by(lab.pid()), Vec::<String>::new());
}

#[test]
fn interrupted_or_killed_in_the_middle_it_leaves_nothing() {
    require_root();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut lab = start(&[]);
        lab.wait_for_line(SOON, |line| line.contains("all chats are open")).unwrap();
        lab.signal(signal).unwrap();
        assert!(!lab.wait(SOON).unwrap().success());
        if signal == Signal::SIGKILL {
            sweep_stale();
        }
        assert_eq!(left_by(lab.pid()), Vec::<String>::new(), "{signal}");
    }
}
