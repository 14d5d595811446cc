//! `cargo xtask dist`: a Debian package and a tarball of the release build, made by dpkg-deb and tar alone, and the package
//! tried out. The test of package `tests` named `package` installs it for good, on a machine of its own with systemd.

mod contents;
mod installation;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    process,
    provision::{self, Package, program},
    workspace::{self, Metadata},
};

pub const NAME: &str = "sluice";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What it is made, and tried out, with.
const PROGRAMS: &[Package] = &[
    program("dpkg", "dpkg-deb"),
    program("binutils", "strip"),
    program("man-db", "man"),
    program("groff-base", "groff"),
    program("gzip", "gzip"),
];

pub fn dist() -> Result<()> {
    provision::packages("the package", PROGRAMS)?;
    let binaries = build::build(Profile::Release)?;
    let metadata = Metadata::own(&workspace::root().join("Cargo.toml"))?;
    let dist = metadata.target_directory().join("dist");
    let stage = dist.join("root");
    remove(&stage)?;
    contents::fill(&stage, &binaries.join("lb-agent"))?;
    let architecture = process::stdout(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let name = format!("{NAME}_{VERSION}_{architecture}");
    tarball(&stage, &dist.join(format!("{name}.tar.gz")))?;
    contents::control(&stage, architecture)?;
    let package = dist.join(format!("{name}.deb"));
    process::quiet(
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&stage).arg(&package),
    )?;
    installation::try_out(&package, &dist.join("installed"))?;
    process::step("dist", "package", &shown(&package)?);
    Ok(())
}

/// The same files as a tarball, for systems without dpkg: to be unpacked at the root.
fn tarball(stage: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--create", "--gzip"]);
    tar.arg("--file").arg(to).arg("--directory").arg(stage).args(["etc", "usr"]);
    process::quiet(&mut tar)?;
    process::step("dist", "tarball", &shown(to)?);
    Ok(())
}

fn shown(file: &Path) -> Result<String> {
    let bytes = fs::metadata(file)?.len();
    Ok(format!("{}  ({:.1} MB)", workspace::shown(file), bytes as f64 / 1e6))
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Every file below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => left.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.sort();
    Ok(files)
}
