//! `/run/sluice/EDGE`: where the workers' control sockets are, and how a later agent knows whose they are.
//!
//! ```text
//! worker-INDEX-GENERATION.sock     the worker listens there
//! worker-INDEX-GENERATION.json     its process, as the agent started it
//! ```
//! Only root may enter. A worker says its pid itself, but a process without privileges is not believed when something
//! is to be killed.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::fleet::Generation;
use crate::bpf::pins::file_name;

/// The directory of one edge.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// The name of a worker's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub generation: Generation,
    pub index: u16,
}

/// A program file, whatever its name is by now.
pub type Executable = (u64, u64);

/// A worker's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pid: u32,
    /// In ticks since the boot: no two processes have both in common.
    pub started: u64,
    pub executable: Executable,
}

impl Directory {
    pub fn of_edge(run_dir: &Path, edge: &str) -> Self {
        Self(run_dir.join(file_name(edge)))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory, if there is none.
    pub fn create(&self) -> Result<()> {
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        created.with_context(|| format!("{}: cannot be made", self.0.display()))
    }

    /// Makes a socket on which a new worker will listen.
    pub fn bind(&self, name: Name) -> Result<UnixListener> {
        self.create()?;
        let create = || {
            let path = self.socket(name);
            optional(fs::remove_file(&path))?;
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let result: io::Result<_> = create();
        result.with_context(|| format!("{}: cannot make it", self.socket(name).display()))
    }

    pub fn socket(&self, name: Name) -> PathBuf {
        self.0.join(format!("worker-{}-{}.sock", name.index, name.generation))
    }

    fn record_file(&self, name: Name) -> PathBuf {
        self.socket(name).with_extension("json")
    }

    /// All sockets, old ones first.
    pub fn sockets(&self) -> Result<Vec<Name>> {
        let Some(entries) = optional(fs::read_dir(&self.0))
            .with_context(|| format!("{}: cannot be read", self.0.display()))?
        else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            names.extend(file.to_str().and_then(Name::parse));
        }
        names.sort();
        Ok(names)
    }

    /// Takes note of the process that listens on a socket.
    pub fn record(&self, name: Name, record: &Record) -> Result<()> {
        let path = self.record_file(name);
        let text = serde_json::to_string(record)?;
        fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
    }

    /// The process that was noted, as long as it lives.
    pub fn process(&self, name: Name) -> Option<Record> {
        let text = fs::read_to_string(self.record_file(name)).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        (start_time(record.pid)? == record.started).then_some(record)
    }

    /// Ends a worker that does not answer.
    pub fn kill(&self, name: Name) -> Result<()> {
        let Some(record) = self.process(name) else { return Ok(()) };
        kill(Pid::from_raw(record.pid.cast_signed()), Signal::SIGKILL)
            .with_context(|| format!("worker {}, pid {}: cannot be killed", name.index, record.pid))
    }

    /// Removes the files of a worker that is no more.
    pub fn forget(&self, name: Name) -> Result<()> {
        for path in [self.socket(name), self.record_file(name)] {
            optional(fs::remove_file(&path))
                .with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
        Ok(())
    }

    /// Removes the directory and all that is left in it.
    pub fn remove(&self) -> Result<()> {
        optional(fs::remove_dir_all(&self.0))
            .with_context(|| format!("{}: cannot be removed", self.0.display()))?;
        Ok(())
    }
}

impl Name {
    fn parse(file: &str) -> Option<Self> {
        let (index, generation) =
            file.strip_prefix("worker-")?.strip_suffix(".sock")?.split_once('-')?;
        Some(Self { generation: generation.parse().ok()?, index: index.parse().ok()? })
    }
}

/// When a process was started, in ticks since the boot; none if there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, spaces and brackets too; 22nd field of proc_pid_stat(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// This process's own program.
pub fn own_executable() -> Result<Executable> {
    let file = fs::metadata("/proc/self/exe").context("/proc/self/exe: is /proc mounted?")?;
    Ok((file.dev(), file.ino()))
}

fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> Directory {
        let run_dir = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        Directory::of_edge(&run_dir, "edge-1")
    }

    #[test]
    fn sockets_are_found_again_in_the_order_of_their_workers() {
        let directory = directory("sockets");
        assert_eq!(directory.sockets().unwrap(), []);
        let names =
            [(9, 1), (10, 0), (11, 0)].map(|(generation, index)| Name { generation, index });
        for name in names.iter().rev() {
            directory.bind(*name).unwrap();
        }
        directory.bind(names[0]).expect("what a dead worker left is no obstacle");
        fs::write(directory.path().join("worker-x-1.sock"), "").unwrap();
        assert_eq!(directory.sockets().unwrap(), names);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(directory.path()), mode(&directory.socket(names[0]))), (0o700, 0o600));
        directory.forget(names[0]).unwrap();
        assert_eq!(directory.sockets().unwrap(), names[1..]);
        directory.remove().unwrap();
        directory.remove().expect("twice is harmless");
        fs::remove_dir(directory.path().parent().unwrap()).unwrap();
    }

    #[test]
    fn a_process_is_known_by_its_start_time_as_well() {
        let directory = directory("record");
        let name = Name { generation: 1, index: 0 };
        let _socket = directory.bind(name).unwrap();
        assert_eq!(directory.process(name), None);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        let record = Record { pid: child.id(), started, executable: own_executable().unwrap() };
        directory.record(name, &Record { started: started + 1, ..record }).unwrap();
        directory.kill(name).expect("nobody is killed");
        assert_eq!(directory.process(name), None, "another process has its pid");
        assert!(child.try_wait().unwrap().is_none());
        directory.record(name, &record).unwrap();
        assert_eq!(directory.process(name), Some(record));
        directory.kill(name).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(directory.process(name), None);
        directory.remove().unwrap();
        fs::remove_dir(directory.path().parent().unwrap()).unwrap();
    }
}
