//! `cargo xtask dist`: a Debian package of the release build, made by dpkg-deb alone, and tried out.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{self, Profile},
    process, workspace,
};

const NAME: &str = "sluice";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const AGENT: &str = "usr/sbin/lb-agent";
const EXAMPLE: &str = "usr/share/doc/sluice/examples/edge.example.toml";

/// A dashboard, alerts and their test, below [`SHARED`] as below `packaging`.
const MONITORING: [&str; 3] =
    ["grafana/sluice.json", "prometheus/sluice.rules.yml", "prometheus/sluice.rules.test.yml"];
const SHARED: &str = "usr/share/sluice";

pub fn dist() -> Result<()> {
    let binaries = build::build(Profile::Release)?;
    let dist = workspace::root().join("target/dist");
    let stage = dist.join("root");
    remove(&stage)?;
    fill(&stage, &binaries.join("lb-agent"))?;
    let architecture = process::stdout(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    write(&stage.join("DEBIAN/control"), &control(architecture, kibibytes(&stage)?), 0o644)?;
    let script =
        "#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n";
    for name in ["postinst", "postrm"] {
        write(&stage.join("DEBIAN").join(name), script, 0o755)?;
    }
    let package = dist.join(format!("{NAME}_{VERSION}_{architecture}.deb"));
    process::quiet(
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&stage).arg(&package),
    )?;
    try_out(&package, &dist.join("installed"))?;
    process::step("dist", "package", &workspace::shown(&package).to_string());
    Ok(())
}

/// Puts everything where it will be.
fn fill(stage: &Path, agent: &Path) -> Result<()> {
    copy(agent, &stage.join(AGENT), 0o755)?;
    let root = workspace::root();
    let unit = "usr/lib/systemd/system/sluice.service";
    copy(&root.join("packaging/sluice.service"), &stage.join(unit), 0o644)?;
    copy(&root.join("edge.example.toml"), &stage.join(EXAMPLE), 0o644)?;
    for file in MONITORING {
        copy(&root.join("packaging").join(file), &stage.join(SHARED).join(file), 0o644)?;
    }
    copy(&root.join("LICENSE"), &stage.join("usr/share/doc/sluice/copyright"), 0o644)?;
    for entry in fs::read_dir(root.join("docs"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        if path.extension().is_some_and(|it| it == "md") {
            copy(&path, &stage.join("usr/share/doc/sluice").join(name), 0o644)?;
        }
    }
    // The directory of the configuration, where keys will be.
    fs::create_dir_all(stage.join("etc/sluice"))?;
    fs::set_permissions(stage.join("etc/sluice"), fs::Permissions::from_mode(0o750))?;
    let (man, completions) = (stage.join("usr/share/man/man8"), stage.join("completions"));
    let mut generate = Command::new(agent);
    generate.arg("generate").arg("--man").arg(&man).arg("--completions").arg(&completions);
    process::quiet(&mut generate)?;
    for (from, to) in [
        ("lb-agent.bash", "usr/share/bash-completion/completions/lb-agent"),
        ("_lb-agent", "usr/share/zsh/vendor-completions/_lb-agent"),
        ("lb-agent.fish", "usr/share/fish/vendor_completions.d/lb-agent.fish"),
    ] {
        copy(&completions.join(from), &stage.join(to), 0o644)?;
    }
    remove(&completions)
}

fn control(architecture: &str, kibibytes: u64) -> String {
    format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: {architecture}\nMaintainer: The Sluice team <root@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {kibibytes}\nDepends: libc6 (>= 2.34), libgcc-s1\n\
         Recommends: iproute2\nDescription: load balancer for long-lived connections\n \
         An XDP program forwards TCP on the NIC path; a sidecar reads WebSocket handshakes,\n \
         keeps clients on their backends, and hands connections down to XDP.\n"
    )
}

/// Installs the package below a directory, and runs what is in it there.
fn try_out(package: &Path, root: &Path) -> Result<()> {
    remove(root)?;
    fs::create_dir_all(root.join("var/lib/dpkg/updates"))?;
    fs::create_dir_all(root.join("var/lib/dpkg/info"))?;
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    let mut install = Command::new("dpkg");
    install
        .arg(format!("--root={}", root.display()))
        .args(["--force-script-chrootless", "--force-depends", "--force-not-root", "--install"])
        .arg(package);
    process::quiet(&mut install)?;
    let agent = root.join(AGENT);
    let version = process::stdout(Command::new(&agent).arg("--version"))?;
    ensure!(version.contains(VERSION), "the installed agent says {version:?}");
    process::quiet(Command::new(&agent).args(["check", "--config"]).arg(root.join(EXAMPLE)))?;
    for file in [
        "usr/lib/systemd/system/sluice.service",
        "usr/share/man/man8/lb-agent.8",
        "usr/share/man/man8/lb-agent-drain.8",
        "usr/share/bash-completion/completions/lb-agent",
        "usr/share/sluice/grafana/sluice.json",
        "usr/share/sluice/prometheus/sluice.rules.yml",
    ] {
        let length = fs::metadata(root.join(file)).map(|it| it.len()).unwrap_or(0);
        ensure!(length > 0, "{file} is not in the package, or empty");
    }
    let mut remove_again = Command::new("dpkg");
    remove_again.arg(format!("--root={}", root.display())).args([
        "--force-script-chrootless",
        "--force-not-root",
        "--purge",
        NAME,
    ]);
    process::quiet(&mut remove_again)?;
    if agent.exists() {
        bail!("{} is left after the package was removed", agent.display());
    }
    remove(root)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let make = || -> std::io::Result<()> {
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(from, to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    let make = || -> std::io::Result<()> {
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(to, text)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("cannot write {}", to.display()))
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

fn kibibytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut left: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => left.push(entry.path()),
                false => bytes += entry.metadata()?.len(),
            }
        }
    }
    Ok(bytes.div_ceil(1_024))
}
