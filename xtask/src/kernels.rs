//! `cargo xtask kernels`: the agent on other kernels than this one, in virtual machines without KVM.
//!
//! Each kernel's verifier has its own mind. What is booted is a Debian kernel with nothing but busybox
//! and the agent, which loads its program, puts the traced variant in its place and takes it back, is killed, adopts it, and removes it.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{self, Profile},
    process,
    provision::{self, program},
    run::need_root,
    workspace,
};

/// The oldest long-term kernel that Sluice runs on, and one between it and the newest.
const RELEASES: [&str; 2] = ["6.1", "6.12"];

const PACKAGES: &[provision::Package] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("busybox-static", "busybox"),
    program("cpio", "cpio"),
];

const INIT: &str = include_str!("kernels/init.sh");
const EDGE: &str = include_str!("kernels/edge.toml");

/// Longer than a slow machine takes without KVM; a kernel that hangs ends here.
const TIMEOUT_SECONDS: &str = "300";

pub fn kernels() -> Result<()> {
    need_root("kernels are fetched as Debian packages", "cargo xtask kernels")?;
    provision::packages("booting other kernels", PACKAGES)?;
    let agent = build::build(Profile::Release)?.join("lb-agent");
    let place = workspace::root().join("target/kernels");
    fs::create_dir_all(&place)?;
    let disk = initramfs(&place, &agent)?;
    let mut failed = Vec::new();
    for release in RELEASES {
        let kernel = kernel(&place, release)?;
        let console = boot(&kernel, &disk)?;
        let wanted = ["SLUICE-READY", "SLUICE-TRACED", "SLUICE-ADOPTED", "SLUICE-DONE"];
        let missing: Vec<_> = wanted.into_iter().filter(|word| !console.contains(word)).collect();
        let version = console.lines().find_map(|line| Some(line.split_once("SLUICE-KERNEL ")?.1));
        let version = version.unwrap_or(release).trim();
        if missing.is_empty() {
            process::step("kernels", version, "loaded, traced, killed, adopted, unloaded: ok");
        } else {
            let log = place.join(format!("{release}.log"));
            fs::write(&log, &console)?;
            let text = format!("never said {}: see {}", missing.join(", "), log.display());
            process::step("kernels", version, &text);
            failed.push(release);
        }
    }
    ensure!(failed.is_empty(), "Sluice does not run on Linux {}", failed.join(", "));
    Ok(())
}

/// The newest of Debian's kernels for clouds of a release, unpacked once.
fn kernel(place: &Path, release: &str) -> Result<PathBuf> {
    let directory = place.join(release);
    if let Some(kernel) = find(&directory.join("boot"), "vmlinuz-") {
        return Ok(kernel);
    }
    let names = process::stdout(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let newest = names
        .lines()
        .filter(|name| name.strip_prefix("linux-image-").is_some_and(|rest| is_of(rest, release)))
        .filter(|name| name.ends_with("-cloud-amd64-unsigned"))
        .max_by_key(|name| numbers(name))
        .with_context(|| format!("Debian offers no kernel {release} here; run: apt-get update"))?;
    process::step("install", "kernel", &format!("{newest} into target/kernels, once"));
    fs::create_dir_all(&directory)?;
    process::quiet(
        Command::new("apt-get").args(["--quiet", "download", newest]).current_dir(&directory),
    )?;
    let package = find(&directory, "linux-image-").context("apt-get download left no package")?;
    process::quiet(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&directory))?;
    fs::remove_file(package)?;
    find(&directory.join("boot"), "vmlinuz-")
        .with_context(|| format!("{newest} has no boot/vmlinuz-..."))
}

/// Whether a version, `6.1.0-56-cloud...` or `6.12.107+deb...`, is of a release.
fn is_of(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| rest.starts_with('.'))
}

/// The numbers in a name, by which versions are in order.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn find(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix))
    })
}

/// A file system of busybox, the agent with its libraries, and what the machine is to do.
fn initramfs(place: &Path, agent: &Path) -> Result<PathBuf> {
    let root = place.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for directory in ["bin", "dev", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let busybox = process::find_program("busybox").context("busybox is not there")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::copy(agent, root.join("lb-agent"))?;
    fs::write(root.join("edge.toml"), EDGE)?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let libraries = process::stdout(Command::new("ldd").arg(agent))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(&library[1..]);
        fs::create_dir_all(copy.parent().unwrap_or(&root))?;
        fs::copy(library, copy)?;
    }
    let disk = place.join("initramfs");
    process::quiet(
        Command::new("sh")
            .args(["-c", "find . | cpio --quiet -o -H newc > \"$1\"", "sh"])
            .arg(&disk)
            .current_dir(&root),
    )?;
    Ok(disk)
}

/// Boots, and returns what the console showed.
fn boot(kernel: &Path, disk: &Path) -> Result<String> {
    let output = Command::new("timeout")
        .args([TIMEOUT_SECONDS, "qemu-system-x86_64", "-accel", "tcg", "-m", "1024"])
        .args(["-nographic", "-no-reboot", "-net", "none", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(disk)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .output()
        .context("qemu-system-x86_64 did not start")?;
    if output.stdout.is_empty() {
        bail!("qemu failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_of_the_release_that_was_asked_for() {
        assert!(is_of("6.1.0-56-cloud-amd64-unsigned", "6.1"));
        assert!(!is_of("6.12.107+deb12-cloud-amd64-unsigned", "6.1"));
        assert!(is_of("6.12.107+deb12-cloud-amd64-unsigned", "6.12"));
    }

    #[test]
    fn the_newest_is_newest_by_number() {
        let newest = ["linux-image-6.1.0-9-cloud", "linux-image-6.1.0-56-cloud"]
            .into_iter()
            .max_by_key(|name| numbers(name));
        assert_eq!(newest, Some("linux-image-6.1.0-56-cloud"));
    }
}
