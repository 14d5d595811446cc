//! What the next agent must know of the sidecar, and what is not in any worker: kept in a file beside their sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::directory::Directory;

const FILE: &str = "memory.json";

/// Plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Addresses of listeners that the host may have from an agent.
    pub vips: BTreeSet<IpAddr>,
    /// Since when backends drain, in milliseconds of Unix time: by service and name.
    pub drains: BTreeMap<String, BTreeMap<String, u64>>,
    /// Since when the whole edge drains, likewise, if it does.
    pub edge_drains: Option<u64>,
    /// Backends that are down: service and address.
    pub down: BTreeSet<(String, SocketAddr)>,
    /// Backends that are up.
    pub up: BTreeSet<(String, SocketAddr)>,
}

impl Memory {
    /// What an earlier agent left; nothing if it left none, or none that can be read.
    pub fn read(directory: &Directory) -> Self {
        let path = directory.path().join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                return Self::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; drains begin anew", path.display());
            Self::default()
        })
    }

    /// Whether an earlier agent took the backend for live; none if it did not know it.
    pub fn was_live(&self, service: &str, address: SocketAddr) -> Option<bool> {
        let key = (service.to_owned(), address);
        (self.up.contains(&key)).then_some(true).or(self.down.contains(&key).then_some(false))
    }

    /// Writes it in one piece.
    pub fn write(&self, directory: &Directory) -> Result<()> {
        directory.create()?;
        let path = directory.path().join(FILE);
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            fs::write(&new, serde_json::to_vec(self)?)?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("{}: cannot be written", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_nothing() {
        let run_dir = std::env::temp_dir().join(format!("sluice-memory-{}", std::process::id()));
        let directory = Directory::of_edge(&run_dir, "edge-1");
        assert_eq!(Memory::read(&directory), Memory::default());
        let [up, down] = ["10.2.0.2:1", "[fd00::2]:1"].map(|it| it.parse().unwrap());
        let memory = Memory {
            vips: ["10.1.0.10".parse().unwrap()].into(),
            drains: [("chat".into(), [("b2".into(), 77)].into())].into(),
            edge_drains: Some(78),
            up: [("chat".into(), up)].into(),
            down: [("chat".into(), down)].into(),
        };
        memory.write(&directory).unwrap();
        let read = Memory::read(&directory);
        assert_eq!(read, memory);
        assert_eq!(read.was_live("chat", up), Some(true));
        assert_eq!(read.was_live("chat", down), Some(false));
        assert_eq!(read.was_live("other", up), None);
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(Memory::read(&directory), Memory::default());
        fs::remove_dir_all(run_dir).unwrap();
    }
}
