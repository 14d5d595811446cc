//! One agent per edge: a lock that dies with its process.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Where the locks are, unless a test says otherwise.
pub const RUN_DIR: &str = "/run/sluice";

/// Held for as long as this process runs an edge. The kernel releases it when the process ends,
/// however it ends, and the descriptor is not inherited by children that exec.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, never looked at")] Flock<File>);

impl Lock {
    /// Takes the lock of an edge in the directory `run_dir`, or says which process has it.
    pub fn acquire(run_dir: &Path, edge: &str) -> Result<Self> {
        fs::create_dir_all(run_dir).with_context(|| {
            format!("{}: cannot create the directory of the agents' locks", run_dir.display())
        })?;
        let path = run_dir.join(format!("{}.lock", super::pins::file_name(edge)));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("{}: cannot open the edge's lock", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())?;
                Ok(Self(lock))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                let pid = match pid.trim() {
                    "" => "just starting",
                    pid => &format!("pid {pid}"),
                };
                bail!(
                    "edge {edge:?}: another agent ({pid}) runs it and holds {}; stop that one first, \
                     or give this edge another name",
                    path.display()
                )
            }
            Err((_, error)) => {
                Err(error).with_context(|| format!("{}: cannot lock", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_learns_the_pid_of_the_first() {
        let dir = std::env::temp_dir().join(format!("sluice-lock-{}", std::process::id()));
        let first = Lock::acquire(&dir, "edge/1").unwrap();
        let error = format!("{:#}", Lock::acquire(&dir, "edge/1").unwrap_err());
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        Lock::acquire(&dir, "edge/2").expect("another edge has a lock of its own");
        drop(first);
        Lock::acquire(&dir, "edge/1").expect("the lock ends with its holder");
        fs::remove_dir_all(dir).unwrap();
    }
}
