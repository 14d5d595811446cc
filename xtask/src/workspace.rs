//! Where things are, and what cargo knows about them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// The repository. xtask is always run by cargo from its own source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository's top directory")
}

/// The objects, at the same place whatever the target directory is: lb-agent/build.rs looks for them here.
pub fn objects() -> PathBuf {
    root().join("target/bpf")
}

pub fn ebpf_manifest() -> PathBuf {
    root().join("lb-ebpf/Cargo.toml")
}

/// Where cargo keeps the sources of dependencies.
pub fn cargo_home() -> PathBuf {
    let default = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

/// A path as a person in the repository would type it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// What `cargo metadata` says of one workspace.
pub struct Metadata(Value);

impl Metadata {
    /// The workspace's own packages.
    pub fn own(manifest: &Path) -> Result<Self> {
        Self::read(manifest, &["--no-deps"])
    }

    /// All dependencies too. Only for Linux: other systems' crates would have to be downloaded first.
    pub fn full(manifest: &Path) -> Result<Self> {
        Self::read(manifest, &["--filter-platform", "x86_64-unknown-linux-gnu"])
    }

    fn read(manifest: &Path, extra: &[&str]) -> Result<Self> {
        let text = process::stdout(
            process::cargo()
                .args(["metadata", "--quiet", "--format-version", "1", "--manifest-path"])
                .arg(manifest)
                .args(extra),
        )?;
        serde_json::from_str(&text).map(Self).context("`cargo metadata` wrote something unexpected")
    }

    pub fn target_directory(&self) -> PathBuf {
        self.0["target_directory"].as_str().map_or_else(|| root().join("target"), PathBuf::from)
    }

    pub fn packages(&self) -> &[Value] {
        self.0["packages"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Names of the binaries of one package.
    pub fn binaries(&self, package: &str) -> Vec<String> {
        let is_binary = |target: &&Value| {
            target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
        };
        self.package(package)
            .and_then(|package| package["targets"].as_array())
            .into_iter()
            .flatten()
            .filter(is_binary)
            .filter_map(|target| target["name"].as_str().map(String::from))
            .collect()
    }

    pub fn has_feature(&self, package: &str, feature: &str) -> bool {
        self.package(package).is_some_and(|package| package["features"].get(feature).is_some())
    }

    fn package(&self, name: &str) -> Option<&Value> {
        self.packages().iter().find(|package| package["name"] == name)
    }
}
