//! Debian packages: is it there, install it, or say how.

mod services;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// A package, and the program that makes it unnecessary where it is already there by another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub program: Option<&'static str>,
}

pub const fn library(name: &'static str) -> Package {
    Package { name, program: None }
}

pub const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, program: Some(program) }
}

/// Debian's older mirrors drop superseded files: lists of last month name packages that are gone.
const LISTS_ARE_OLD: Duration = Duration::from_secs(3 * 24 * 3600);

/// Sees to it that the packages are there, for `purpose`.
pub fn packages(purpose: &str, wanted: &[Package]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    if !can_install() {
        bail!("missing for {purpose}: {}\ninstall it: {}", missing.join(" "), by_hand(&missing));
    }
    process::step("install", "debian", &format!("{} (for {purpose})", missing.join(" ")));
    let install = || -> Result<()> {
        let _denied = services::Denied::by(Path::new(services::POLICY))?;
        let absent = services::absent();
        install(&missing)?;
        services::disable(&absent)
    };
    install().with_context(|| {
        format!("could not install what {purpose} needs\ninstall it by hand: {}", by_hand(&missing))
    })
}

pub fn can_install() -> bool {
    process::is_root() && process::find_program("apt-get").is_some()
}

pub fn by_hand(packages: &[&str]) -> String {
    let sudo = if process::is_root() { "" } else { "sudo " };
    format!(
        "{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Names of those that are not there.
pub fn missing(wanted: &[Package]) -> Vec<&'static str> {
    wanted.iter().filter(|package| !is_there(package)).map(|package| package.name).collect()
}

fn is_there(package: &Package) -> bool {
    if package.program.is_some_and(|name| process::find_program(name).is_some()) {
        return true;
    }
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package.name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn install(packages: &[&str]) -> Result<()> {
    let fresh = lists_age().is_some_and(|age| age < LISTS_ARE_OLD);
    if !fresh {
        update()?;
    }
    let Err(first) = install_once(packages) else { return Ok(()) };
    process::step("install", "debian", "once more, with new package lists");
    update()?;
    install_once(packages).with_context(|| format!("at first: {first:#}"))
}

fn update() -> Result<()> {
    process::quiet(apt().arg("update")).map(drop)
}

fn install_once(packages: &[&str]) -> Result<()> {
    process::quiet(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
        .map(drop)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "--quiet",
        "--option",
        "DPkg::Lock::Timeout=120",
    ]);
    command
}

/// Time since a package list was last written here, `None` if there is none. Their modification time is the mirror's.
fn lists_age() -> Option<Duration> {
    let written = fs::read_dir("/var/lib/apt/lists")
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| u64::try_from(entry.metadata().ok()?.ctime()).ok())
        .max()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(now.saturating_sub(Duration::from_secs(written)))
}
