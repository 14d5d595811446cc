//! Names and locks that tell who owns what the testbed leaves on a machine.
//!
//! Everything is called `slc-<pid>-<n>-<role>`. The owner also holds a lock file for as long as it lives,
//! which the kernel releases at its death, so a reused pid does not keep a dead owner's things alive.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// Start of every name that is ours.
pub const PREFIX: &str = "slc";
/// Locks and scratch directories.
pub const RUN_DIR: &str = "/run/sluice-testbed";
/// Where `ip netns` keeps names; ours are there too, so that the usual tools see them.
pub const NETNS_DIR: &str = "/run/netns";
/// The BPF file system's usual place.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where agents pin what belongs to an edge, each in a directory with the edge's name.
pub const EDGES: &str = "/sys/fs/bpf/sluice";
/// Where agents lock an edge, and have the sockets of its workers in a directory with the edge's name.
pub const AGENTS: &str = lb_agent::bpf::lock::RUN_DIR;

/// A name that nothing else on this machine has: `slc-<pid>-<n>-<role>`.
#[must_use]
pub fn unique_name(role: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{n}-{role}", std::process::id())
}

/// The pid in a name of ours; `None` for a name that is not ours.
#[must_use]
pub fn owner_of(name: &str) -> Option<u32> {
    let mut parts = name.splitn(4, '-');
    if parts.next() != Some(PREFIX) {
        return None;
    }
    let pid = parts.next()?;
    let number = parts.next()?;
    let role = parts.next()?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(pid) || !digits(number) || role.is_empty() {
        return None;
    }
    pid.parse().ok()
}

fn lock_path(pid: u32) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{PREFIX}-{pid}.lock"))
}

/// The pid in a lock file's name.
fn lock_owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.strip_suffix(".lock")?.parse().ok()
}

/// Takes this process's lock, once. Everything that makes a named thing calls it first.
pub fn claim() -> Result<()> {
    static CLAIM: OnceLock<Result<Flock<File>, String>> = OnceLock::new();
    let claim = CLAIM.get_or_init(|| {
        // SAFETY: the function lives as long as the program and may run at its end.
        unsafe { nix::libc::atexit(remove_own_lock) };
        lock_file(&lock_path(std::process::id())).map_err(|error| error.to_string())
    });
    match claim {
        Ok(_) => Ok(()),
        Err(error) => anyhow::bail!("cannot take the testbed's lock in {RUN_DIR}: {error}"),
    }
}

/// An end in good order leaves not even the lock.
extern "C" fn remove_own_lock() {
    remove_lock(std::process::id());
    // Fails, and shall, as long as somebody has something in it.
    let _ = fs::remove_dir(RUN_DIR);
}

/// Opens and locks `path`, waiting for it. A sweeper may remove the file between the opening and the
/// locking; then the lock is on a file without a name, and worth nothing: try again.
pub(crate) fn lock_file(path: &Path) -> io::Result<Flock<File>> {
    loop {
        fs::create_dir_all(RUN_DIR)?;
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = match opened {
            // The last one to end removes the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let lock =
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
        match fs::metadata(path) {
            Ok(named) if named.ino() == lock.metadata()?.ino() => return Ok(lock),
            _ => {}
        }
    }
}

/// Whether the process that made things under this pid is gone.
#[must_use]
pub fn is_dead(pid: u32) -> bool {
    if pid == std::process::id() {
        return false;
    }
    match OpenOptions::new().write(true).open(lock_path(pid)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(_) => !Path::new("/proc").join(pid.to_string()).exists(),
    }
}

pub(crate) fn remove_lock(pid: u32) -> bool {
    fs::remove_file(lock_path(pid)).is_ok()
}

/// Every owner that has something on this machine.
#[must_use]
pub fn owners() -> Vec<u32> {
    let mut owners: Vec<u32> = [NETNS_DIR, BPFFS, EDGES, AGENTS, RUN_DIR]
        .into_iter()
        .flat_map(names_in)
        .filter_map(|name| owner_of(&name).or_else(|| lock_owner(&name)))
        .collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

pub(crate) fn names_in(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A directory that removes itself with everything in it.
#[derive(Debug)]
pub struct OwnedDir {
    path: PathBuf,
}

impl OwnedDir {
    /// A directory for BPF pins; mounts the BPF file system when it is not there.
    pub fn pins(role: &str) -> Result<Self> {
        mount_bpffs()?;
        Self::create(BPFFS, role)
    }

    /// A directory for config files, sockets and logs.
    pub fn scratch(role: &str) -> Result<Self> {
        Self::create(RUN_DIR, role)
    }

    fn create(parent: &str, role: &str) -> Result<Self> {
        claim()?;
        let path = Path::new(parent).join(unique_name(role));
        // Our pid may have been another's before: what has our next name is not ours, but stale.
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("stale {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Mounts the BPF file system at its usual place unless it is there.
pub fn mount_bpffs() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system: mount -t bpf bpf {BPFFS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_name_tells_its_owner() {
        let (one, two) = (unique_name("client"), unique_name("client"));
        assert_ne!(one, two);
        assert_eq!(owner_of(&one), Some(std::process::id()));
        assert!(one.ends_with("-client"));
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in [
            "",
            "slc",
            "slc-1",
            "slc-1-2",
            "slc-x-2-a",
            "slc-1-x-a",
            "slc--2-a",
            "slc-1-2-",
            "slcx-1-2-a",
            "ns-1-2-a",
        ] {
            assert_eq!(owner_of(name), None, "{name}");
        }
        assert_eq!(owner_of("slc-12-3-backend-1"), Some(12));
        assert_eq!(lock_owner("slc-12.lock"), Some(12));
        assert_eq!(lock_owner("sweep.lock"), None);
    }

    #[test]
    fn this_process_is_alive() {
        assert!(!is_dead(std::process::id()));
        assert!(!is_dead(1));
    }
}
