//! Where the packages are, and how a program that needs them is started.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::NsHandle;

/// The installed packages.
#[derive(Clone, Debug)]
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    pub fn find() -> Result<Self> {
        // target/PROFILE/deps/TEST
        let own = std::env::current_exe()?;
        let mut candidates = own.ancestors().skip(1).take(4).map(|up| up.join("web"));
        let found = candidates.find(|path| path.join("node_modules/ws").is_dir());
        let root = found.context("target/web is not there: `cargo xtask test --full` makes it")?;
        Ok(Self { root })
    }

    /// Runs a script of `tests/web` with Node.js in a namespace.
    #[must_use]
    pub fn node(&self, namespace: &NsHandle, script: &str) -> Command {
        let mut command = namespace.command("node");
        command.arg(scripts().join(script)).env("NODE_PATH", self.root.join("node_modules"));
        command
    }

    /// Runs a script of `tests/web` with Python in a namespace.
    #[must_use]
    pub fn python(&self, namespace: &NsHandle, script: &str) -> Command {
        let mut command = namespace.command("python3");
        command.arg(scripts().join(script)).env("PYTHONPATH", self.root.join("python"));
        command
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("web")
}
