//! `cargo xtask run`: the lab, or the agent on this host.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    process,
    provision::{self, program},
    workspace,
};

/// The embedded default: namespaces, real agent, real traffic.
pub fn lab(stay: bool) -> Result<()> {
    need_root("the lab makes network namespaces", "cargo xtask run")?;
    provision::packages("the lab", &[program("iproute2", "ip"), program("ethtool", "ethtool")])?;
    let binaries = build::build(Profile::Release)?;
    for name in ["chat-server", "chat-client", "lab"] {
        testbed_binary(name)?;
    }
    let mut lab = std::process::Command::new(binaries.join("lab"));
    lab.env("SLUICE_AGENT", binaries.join("lb-agent"));
    if stay {
        lab.arg("--stay");
    }
    process::replace(&mut lab)
}

/// The agent on this host.
pub fn edge(config: &Path) -> Result<()> {
    if !config.is_file() {
        bail!("{}: no such file; edge.example.toml is one to start from", config.display());
    }
    need_root(
        "the agent loads XDP programs",
        &format!("cargo xtask run --config {}", config.display()),
    )?;
    let binaries = build::build(Profile::Release)?;
    let mut agent = std::process::Command::new(binaries.join("lb-agent"));
    process::replace(agent.args(["run", "--config"]).arg(config))
}

/// Builds one binary of the testbed, optimised.
pub fn testbed_binary(name: &str) -> Result<()> {
    process::run(
        process::cargo()
            .current_dir(workspace::root())
            .args(["build", "--release", "--package", "tests", "--bin", name])
            .args(process::quiet_unless_watched()),
    )
    .with_context(|| format!("could not build `{name}` of the tests crate"))
}

pub fn need_root(why: &str, command: &str) -> Result<()> {
    if process::is_root() {
        return Ok(());
    }
    bail!("{why}, which needs root\nrun: {}", process::with_sudo(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_before_anything_is_built() {
        let error = edge(Path::new("/nowhere/edge.toml")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/nowhere/edge.toml: no such file; edge.example.toml is one to start from"
        );
    }
}
