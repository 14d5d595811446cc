//! `cargo xtask test`: every tier of tests, in the order in which a failure is cheapest to understand.
//!
//! A package with tests that need root has a feature `privileged` for them. Such a package is tested once, with the
//! feature where there is root and without where there is none. With `--full` it is tested with its feature `web`, too,
//! if it has one.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{
    build, process,
    provision::{self, Package, program},
    runner::{self, Binary},
    web,
    workspace::{self, Metadata},
};

const FEATURE: &str = "privileged";

/// In the order of testing.
const PRIVILEGED: [&str; 3] = ["lb-sidecar", "lb-agent", "tests"];

/// What the namespaces are made with, and what is a client also without `--full`.
const PACKAGES: &[Package] = &[
    program("iproute2", "ip"),
    program("ethtool", "ethtool"),
    program("curl", "curl"),
    program("openssl", "openssl"),
];

pub struct Options {
    pub full: bool,
    pub unprivileged: bool,
    pub threads: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Privilege {
    Host,
    Root,
}

/// A run of cargo and what it gave.
struct Tier {
    name: &'static str,
    binaries: Vec<Binary>,
    seconds: f32,
}

pub fn test(options: &Options) -> Result<()> {
    let privilege = privilege(process::is_root(), process::in_ci(), options.unprivileged)?;
    let mut tiers = Vec::new();
    if privilege == Privilege::Root {
        provision::packages("the namespace tests", PACKAGES)?;
        build::build(build::Profile::Release)?;
        if options.full {
            web::install()?;
        }
    }
    let metadata = Metadata::own(&workspace::root().join("Cargo.toml"))?;
    let privileged = match privilege {
        Privilege::Root => privileged_packages(&metadata),
        Privilege::Host => Vec::new(),
    };
    let mut host = cargo_test(options);
    host.arg("--workspace");
    for package in &privileged {
        host.args(["--exclude", package]);
    }
    tiers.push(run("host", host)?);
    for package in privileged {
        let mut command = cargo_test(options);
        command.args(["--package", package, "--features", FEATURE]);
        if metadata.has_feature(package, web::FEATURE) {
            if options.full {
                command.args(["--features", web::FEATURE]);
            } else {
                let what = format!("{package}: clients from npm, PyPI and Debian: --full");
                process::step("test", "skipped", &what);
            }
        }
        if package == "tests" {
            command.args(["--", &format!("--test-threads={}", options.threads)]);
        }
        tiers.push(run(package, command)?);
    }
    if privilege == Privilege::Host {
        process::step(
            "test",
            "skipped",
            "tiers 3 (packet tables) and 4 (namespaces): they need root",
        );
    }
    let failed = report(&tiers);
    if failed > 0 {
        // Quietly: the line of counts must stay the last one.
        std::process::exit(1);
    }
    Ok(())
}

/// Never skips where the result decides about a change.
fn privilege(root: bool, ci: bool, unprivileged: bool) -> Result<Privilege> {
    let again = process::with_sudo("cargo xtask test");
    match (root, ci, unprivileged) {
        (_, true, true) => {
            bail!("--unprivileged skips tiers 3 and 4, and with CI=true nothing may be skipped")
        }
        (false, true, false) => bail!(
            "tiers 3 (packet tables) and 4 (namespaces) need root, and with CI=true nothing may be skipped\nrun: {again}"
        ),
        (false, false, false) => bail!(
            "tiers 3 (packet tables) and 4 (namespaces) need root\nrun: {again}\nor, for the host tests alone: cargo xtask test --unprivileged"
        ),
        (_, false, true) => Ok(Privilege::Host),
        (true, _, false) => Ok(Privilege::Root),
    }
}

fn privileged_packages(metadata: &Metadata) -> Vec<&'static str> {
    let (with, without): (Vec<_>, Vec<_>) =
        PRIVILEGED.into_iter().partition(|package| metadata.has_feature(package, FEATURE));
    for package in without {
        process::step(
            "test",
            "note",
            &format!("{package} has no feature `{FEATURE}`: host tests only"),
        );
    }
    with
}

fn cargo_test(options: &Options) -> Command {
    let mut command = process::cargo();
    command.current_dir(workspace::root()).args(["test", "--no-fail-fast"]);
    if options.full {
        command.env("SLUICE_TEST_FULL", "1");
    }
    command
}

fn run(name: &'static str, command: Command) -> Result<Tier> {
    process::step("test", name, &process::display(&command));
    let start = Instant::now();
    let binaries = runner::run(command)?;
    Ok(Tier { name, binaries, seconds: start.elapsed().as_secs_f32() })
}

/// Prints the table and the closing line; returns the number of failures.
fn report(tiers: &[Tier]) -> u32 {
    println!(
        "\n{:<10} {:<34} {:>7} {:>7} {:>8} {:>9}",
        "tier", "tests", "passed", "failed", "ignored", "time"
    );
    for tier in tiers {
        for it in tier.binaries.iter().filter(|it| it.passed + it.failed + it.ignored > 0) {
            let name = shown(it);
            println!(
                "{:<10} {name:<34} {:>7} {:>7} {:>8} {:>7.1} s",
                tier.name, it.passed, it.failed, it.ignored, it.seconds
            );
        }
        let (passed, failed) = totals(std::slice::from_ref(tier));
        let all = "all, building included";
        println!(
            "{:<10} {all:<34} {passed:>7} {failed:>7} {:>8} {:>7.1} s",
            tier.name, "", tier.seconds
        );
    }
    let (passed, failed) = totals(tiers);
    println!("\n{passed} passed, {failed} failed");
    failed
}

fn shown(binary: &Binary) -> String {
    let Binary { name, package, .. } = binary;
    match name.strip_prefix("unittests ") {
        Some(file) => format!("{package} {file}"),
        None => name.clone(),
    }
}

fn totals(tiers: &[Tier]) -> (u32, u32) {
    let binaries = tiers.iter().flat_map(|tier| &tier.binaries);
    binaries.fold((0, 0), |(passed, failed), it| (passed + it.passed, failed + it.failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ci_never_skips() {
        assert!(privilege(false, true, false).is_err());
        assert!(privilege(true, true, true).is_err());
        assert!(privilege(true, true, false).is_ok());
    }

    #[test]
    fn without_root_the_host_tests_must_be_asked_for() {
        let error = privilege(false, false, false).err().unwrap().to_string();
        assert!(error.contains("need root") && error.contains("--unprivileged"), "{error}");
        assert!(privilege(false, false, true).is_ok_and(|it| it == Privilege::Host));
    }

    #[test]
    fn totals_are_sums_over_all_tiers() {
        let binary = |passed, failed| Binary { passed, failed, ..Binary::default() };
        let tier = |binaries| Tier { name: "host", binaries, seconds: 0.0 };
        let tiers = [tier(vec![binary(3, 0), binary(4, 1)]), tier(vec![binary(5, 2)])];
        assert_eq!(totals(&tiers), (12, 3));
    }
}
