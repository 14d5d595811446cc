//! The clients and servers that others wrote: Debian's programs, and packages from npm and PyPI below `target/web`.
//!
//! Their versions are pinned by files in `tests/web`, where what runs on them lies, too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    process,
    provision::{self, Package, program},
    workspace::{self, Metadata},
};

/// The feature of the tests that need them.
pub const FEATURE: &str = "web";

const PROGRAMS: &[Package] = &[
    program("nodejs", "node"),
    program("npm", "npm"),
    program("python3", "python3"),
    program("python3-pip", "pip3"),
    program("curl", "curl"),
    program("chromium", "chromium"),
    // The machine on which the package is installed.
    program("systemd", "systemd-analyze"),
    program("procps", "ps"),
    // For whom Chromium trusts.
    program("libnss3-tools", "certutil"),
    program("nghttp2-client", "nghttp"),
    program("slowhttptest", "slowhttptest"),
    program("haproxy", "haproxy"),
    program("prometheus", "promtool"),
];

/// Sees to it that everything is there, in the versions of today's files.
pub fn install() -> Result<()> {
    provision::packages("the tests with clients of others", PROGRAMS)?;
    let target = Metadata::own(&workspace::root().join("Cargo.toml"))?.target_directory();
    let (source, target) = (workspace::root().join("tests/web"), target.join("web"));
    let npm = |to: &Path| {
        fs::copy(source.join("package.json"), to.join("package.json"))?;
        process::quiet(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(to))
    };
    unless_same(&source.join("package-lock.json"), &target, "npm", |to| npm(to).map(drop))?;
    let pip = |to: &Path, list: &Path| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--require-hashes"]);
        // One file for every machine, so that its hash is one.
        pip.args(["--only-binary=:all:", "--platform", "any", "--root-user-action=ignore"]);
        process::quiet(pip.arg("--target").arg(to.join("python")).arg("--requirement").arg(list))
    };
    let list = source.join("requirements.txt");
    unless_same(&list, &target, "pip", |to| pip(to, &list).map(drop))
}

/// Copies the file with the versions beside what `install` makes of it, and does nothing while the copy is the same.
fn unless_same(
    versions: &Path,
    target: &Path,
    tool: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let copy: PathBuf = target.join(versions.file_name().context("a path without a file")?);
    let wanted =
        fs::read(versions).with_context(|| format!("cannot read {}", versions.display()))?;
    let stamp = copy.with_extension("installed");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let shown = workspace::shown(versions);
    process::step("install", tool, &format!("{shown} into {}", workspace::shown(target)));
    fs::create_dir_all(target)?;
    fs::write(&copy, &wanted)?;
    install(target).with_context(|| format!("could not install what {shown} names"))?;
    // Last, so that it stands for an installation that is whole.
    Ok(fs::write(&stamp, &wanted)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_again_after_a_change_or_a_failure() {
        let directory = std::env::temp_dir().join(format!("xtask-web-{}", std::process::id()));
        let (versions, target) = (directory.join("list.txt"), directory.join("to"));
        fs::create_dir_all(&directory).unwrap();
        let mut done = 0;
        let mut run = |text: &str, fails: bool| {
            fs::write(&versions, text).unwrap();
            let result = unless_same(&versions, &target, "tool", |_| {
                done += 1;
                if fails { anyhow::bail!("no") } else { Ok(()) }
            });
            (result.is_ok(), done)
        };
        assert_eq!(run("1", true), (false, 1));
        assert_eq!(run("1", false), (true, 2));
        assert_eq!(run("1", false), (true, 2));
        assert_eq!(run("2", false), (true, 3));
        fs::remove_dir_all(&directory).unwrap();
    }
}
