//! One agent per edge: a lock that dies with its process.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

/// Where the locks are, unless a test says otherwise.
pub const RUN_DIR: &str = "/run/sluice";

/// Held for as long as this process runs an edge. The kernel releases it when the process ends,
/// however it ends, and the descriptor is not inherited by children that exec.
///
/// Who can open the file, even to read, can hold the lock: it is for its owner alone.
#[derive(Debug)]
pub struct Lock {
    #[allow(dead_code, reason = "held, never looked at")]
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of an edge in the directory `run_dir`, or says which process has it.
    pub fn acquire(run_dir: &Path, edge: &str) -> Result<Self> {
        make_private(run_dir).with_context(|| {
            format!("{}: cannot make the private directory of the agents' locks", run_dir.display())
        })?;
        let path = path(run_dir, edge);
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
                    // Others may have opened it, and wait for it to be free: they are left with a file without a name.
                    if is_wide(&file.metadata()?) {
                        fs::remove_file(&path)?;
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

    /// Whether a process has the lock of an edge. Makes and writes nothing; an error if this user may not look.
    pub fn is_held(run_dir: &Path, edge: &str) -> io::Result<bool> {
        let file = match File::open(path(run_dir, edge)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        // Shared, so that those who look are not in each other's way, and given back at once.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, error)) => Err(error.into()),
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

fn path(run_dir: &Path, edge: &str) -> PathBuf {
    run_dir.join(format!("{}.lock", super::pins::file_name(edge)))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes the directory, or closes to others one of this user's that was open to them.
fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    match is_wide(&fs::metadata(directory)?) {
        true => fs::set_permissions(directory, Permissions::from_mode(0o700)),
        false => Ok(()),
    }
}

/// It is this user's, and others may do something with it.
fn is_wide(of: &fs::Metadata) -> bool {
    of.uid() == geteuid().as_raw() && of.mode() & 0o077 != 0
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

    #[test]
    fn nobody_else_can_hold_the_lock() {
        let dir = std::env::temp_dir().join(format!("sluice-private-{}", std::process::id()));
        let path = path(&dir, "edge-1");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let first = Lock::acquire(&dir, "edge-1").unwrap();
        assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
        drop(first);

        // As an older agent has left them, and somebody has opened the file meanwhile.
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let others = File::open(&path).unwrap();
        let first = Lock::acquire(&dir, "edge-1").unwrap();
        assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
        let _others = Flock::lock(others, FlockArg::LockExclusiveNonblock).expect("it is no lock");
        drop(first);
        Lock::acquire(&dir, "edge-1").expect("the other's file is none of the edge's");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn who_looks_for_the_holder_changes_nothing() {
        let dir = std::env::temp_dir().join(format!("sluice-held-{}", std::process::id()));
        assert!(!Lock::is_held(&dir, "edge-1").unwrap());
        assert!(!dir.exists());
        let first = Lock::acquire(&dir, "edge-1").unwrap();
        assert!(Lock::is_held(&dir, "edge-1").unwrap());
        drop(first);
        let path = path(&dir, "edge-1");
        fs::write(&path, "7\n").unwrap();
        assert!(!Lock::is_held(&dir, "edge-1").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
        Lock::acquire(&dir, "edge-1").expect("it was given back");
        fs::remove_dir_all(&dir).unwrap();
        fs::write(&dir, "").unwrap();
        let error = Lock::is_held(&dir, "edge-1").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotADirectory);
        fs::remove_file(dir).unwrap();
    }
}
