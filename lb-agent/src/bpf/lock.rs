//! One agent per edge: a lock that dies with its process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
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
pub struct Lock {
    #[allow(dead_code, reason = "held, never looked at")]
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of an edge in the directory `run_dir`, or says which process has it.
    pub fn acquire(run_dir: &Path, edge: &str) -> Result<Self> {
        fs::create_dir_all(run_dir).with_context(|| {
            format!("{}: cannot create the directory of the agents' locks", run_dir.display())
        })?;
        let path = run_dir.join(format!("{}.lock", super::pins::file_name(edge)));
        loop {
            let mut file = open(&path)
                .with_context(|| format!("{}: cannot open the edge's lock", path.display()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    // The holder before may have removed the file since it was opened.
                    let same = fs::metadata(&path).is_ok_and(|now| {
                        file.metadata().is_ok_and(|opened| opened.ino() == now.ino())
                    });
                    if !same {
                        continue;
                    }
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())?;
                    return Ok(Self { file, path });
                }
                Err((refused, Errno::EWOULDBLOCK)) => file = refused,
                Err((_, error)) => {
                    return Err(error).with_context(|| format!("{}: cannot lock", path.display()));
                }
            }
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            let holder = match pid.trim() {
                "" => "just starting".to_owned(),
                pid => format!("pid {pid}"),
            };
            bail!(
                "edge {edge:?}: another agent ({holder}) runs it and holds {}; stop that one first, or \
                 give this edge another name",
                path.display()
            )
        }
    }

    /// Releases the lock and removes its file: what unloading does last.
    pub fn remove(self) -> Result<()> {
        // While it is still held, so that nobody else's file is removed.
        fs::remove_file(&self.path)
            .with_context(|| format!("{}: cannot remove", self.path.display()))?;
        if let Some(run_dir) = self.path.parent() {
            // Stays if it has the lock of another edge.
            let _ = fs::remove_dir(run_dir);
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
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
        let last = Lock::acquire(&dir, "edge/1").expect("the lock ends with its holder");
        last.remove().unwrap();
        assert!(!dir.join("edge%2f1.lock").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
