//! Takes everything of an edge out of the kernel.

use std::{fmt, fs};

use anyhow::{Context, Result};

use super::{
    attach,
    pins::{PinDir, list, optional},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unloaded {
    /// Interfaces whose link was removed.
    pub interfaces: Vec<String>,
    /// Names of the maps.
    pub maps: Vec<String>,
    /// Whether a program was pinned.
    pub program: bool,
}

impl Unloaded {
    /// Whether there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing was loaded");
        }
        let program = if self.program { "the program" } else { "no program" };
        write!(f, "removed {program}, {} maps", self.maps.len())?;
        match self.interfaces.as_slice() {
            [] => f.write_str(", and was attached nowhere"),
            names => write!(f, ", and detached from {}", names.join(", ")),
        }
    }
}

/// Detaches the program everywhere and removes every pin and the directories. Flows end: their packets
/// reach the host's own TCP stack. Doing it twice is harmless, and so is being interrupted.
pub fn unload(pins: &PinDir) -> Result<Unloaded> {
    let mut unloaded = Unloaded::default();
    // First the links, so that no packet meets half a data plane.
    for name in pins.interfaces()? {
        attach::detach(pins, &name)?;
        unloaded.interfaces.push(name);
    }
    unloaded.program = optional(fs::remove_file(pins.program_path()))?.is_some();
    let maps = pins.path().join("maps");
    for name in list(&maps)? {
        fs::remove_file(maps.join(&name)).with_context(|| format!("map {name}: cannot unpin"))?;
        unloaded.maps.push(name);
    }
    unloaded.maps.sort();
    for name in list(pins.path())? {
        let path = pins.path().join(name);
        // What is left is empty, but for a pin that was to replace another.
        let result = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        result.with_context(|| format!("{}: cannot remove", path.display()))?;
    }
    optional(fs::remove_dir(pins.path()))
        .with_context(|| format!("{}: cannot remove", pins.path().display()))?;
    if let Some(parent) = pins.path().parent().filter(|path| path.ends_with("sluice")) {
        // Stays if it has the pins of another edge.
        let _ = fs::remove_dir(parent);
    }
    Ok(unloaded)
}
