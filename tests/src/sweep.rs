//! Removal of what dead owners left: namespaces, processes in them, the pins and sockets of their edges, pin and
//! scratch directories, locks.
//!
//! Only things with a name of ours are touched, and only when their owner is dead.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use lb_agent::bpf::{self, Lock, PinDir};
use lb_agent::decap;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::owner::{self, AGENTS, BPFFS, EDGES, NETNS_DIR, RUN_DIR, names_in, owner_of};

/// Put into the environment of every child, so that a sweeper knows its descendants.
pub const MARKER: &str = "SLUICE_TESTBED_OWNER";

/// How long a killed process may take to give up what it holds.
const ENDING: Duration = Duration::from_secs(2);

/// What a sweep removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    pub namespaces: Vec<String>,
    pub processes: Vec<i32>,
    /// Edges whose pins, sockets and locks were removed.
    pub edges: Vec<String>,
    pub directories: Vec<PathBuf>,
}

impl Swept {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes everything whose owner is dead.
pub fn sweep_stale() -> Swept {
    let mut swept = Swept::default();
    // One sweeper at a time; without the lock (not root) there is nothing that we could remove.
    let lock_path = Path::new(RUN_DIR).join("sweep.lock");
    let Ok(_lock) = owner::lock_file(&lock_path) else {
        return swept;
    };
    for pid in owner::owners() {
        if owner::is_dead(pid) {
            remove_all_of(pid, &mut swept);
            owner::remove_lock(pid);
        }
    }
    // While it is locked: who waits for it notices, and makes another one.
    let _ = fs::remove_file(lock_path);
    swept
}

/// [`sweep_stale`], once per process; says what it removed.
pub fn sweep_stale_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let swept = sweep_stale();
        if !swept.is_empty() {
            eprintln!(
                "testbed: removed what a killed run left: {} namespaces, {} processes, {} edges, {} directories",
                swept.namespaces.len(),
                swept.processes.len(),
                swept.edges.len(),
                swept.directories.len()
            );
        }
    });
}

/// Removes everything that `pid` owns, dead or not.
pub(crate) fn remove_all_of(pid: u32, swept: &mut Swept) {
    for name in names_in(NETNS_DIR) {
        if owner_of(&name) == Some(pid) {
            swept.processes.extend(kill_inside(&name));
            remove_namespace(&name);
            swept.namespaces.push(name);
        }
    }
    // Its agents and their workers ran in the namespaces, and are dead by now.
    let edges = [EDGES, AGENTS].into_iter().flat_map(names_in);
    let edges: BTreeSet<_> =
        edges.map(|name| name.strip_suffix(".lock").unwrap_or(&name).to_owned()).collect();
    for name in edges {
        if owner_of(&name) == Some(pid) && unload(&name).is_ok() {
            swept.edges.push(name);
        }
    }
    for parent in [BPFFS, RUN_DIR] {
        for name in names_in(parent) {
            let path = Path::new(parent).join(&name);
            if owner_of(&name) == Some(pid) && fs::remove_dir_all(&path).is_ok() {
                swept.directories.push(path);
            }
        }
    }
}

/// What `lb-agent unload --edge NAME` does, without the program, which may not be built.
fn unload(edge: &str) -> anyhow::Result<()> {
    let acquire = || Lock::acquire(Path::new(AGENTS), edge);
    // A killed agent leaves its namespace before the kernel closes its files.
    let deadline = Instant::now() + ENDING;
    let mut lock = acquire();
    while lock.is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        lock = acquire();
    }
    let lock = lock?;
    bpf::unload(&PinDir::of_edge(edge))?;
    let sockets = Path::new(AGENTS).join(edge);
    if sockets.exists() {
        fs::remove_dir_all(sockets)?;
    }
    lock.remove()
}

/// Takes the name away; the kernel removes the namespace with its last user. The programs that
/// `lb-agent decap attach` pinned for it go before, for they have no other name.
pub(crate) fn remove_namespace(name: &str) {
    let path = Path::new(NETNS_DIR).join(name);
    if let Some((_, inode)) = identity(&path) {
        let pins = decap::pins_in(inode);
        for entry in fs::read_dir(&pins).into_iter().flatten().flatten() {
            let _ = bpf::unload(&PinDir::at(entry.path()));
        }
        let _ = fs::remove_dir(&pins);
        // Stays while another namespace has something in it.
        let _ = pins.parent().map(fs::remove_dir);
    }
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// Kills the testbed's processes in a namespace and waits until they are gone: they keep its devices
/// alive. Returns their pids.
pub(crate) fn kill_inside(name: &str) -> Vec<i32> {
    let Some(namespace) = identity(&Path::new(NETNS_DIR).join(name)) else {
        return Vec::new();
    };
    let mut killed = Vec::new();
    for entry in names_in("/proc") {
        let Ok(pid) = entry.parse::<i32>() else { continue };
        let proc = Path::new("/proc").join(&entry);
        if pid.unsigned_abs() == std::process::id()
            || identity(&proc.join("ns/net")) != Some(namespace)
        {
            continue;
        }
        if is_ours(&proc) && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            killed.push(pid);
        }
    }
    let deadline = Instant::now() + ENDING;
    while killed.iter().any(|pid| holds_resources(*pid)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    killed
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Everything in a namespace of ours was put there by us, but for the shell of somebody who looks around:
/// that has a terminal and not our marker.
fn is_ours(proc: &Path) -> bool {
    let marked = fs::read(proc.join("environ")).is_ok_and(|env| {
        env.split(|b| *b == 0)
            .any(|v| v.strip_prefix(MARKER.as_bytes()).is_some_and(|v| v.starts_with(b"=")))
    });
    marked || !has_terminal(proc)
}

fn has_terminal(proc: &Path) -> bool {
    stat_field(proc, 4).is_some_and(|tty| tty != "0")
}

/// A zombie has given up its namespace: only its parent still waits for it.
fn holds_resources(pid: i32) -> bool {
    stat_field(&Path::new("/proc").join(pid.to_string()), 0)
        .is_some_and(|state| state != "Z" && state != "X")
}

/// A field of `/proc/PID/stat`, counted from the state, which follows the program's name in brackets.
fn stat_field(proc: &Path, index: usize) -> Option<String> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(index).map(str::to_owned)
}
