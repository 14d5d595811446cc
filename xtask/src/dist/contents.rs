//! What is in the package, and where.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{NAME, VERSION, files, remove};
use crate::{process, workspace};

pub const AGENT: &str = "usr/sbin/lb-agent";
pub const EXAMPLE: &str = "usr/share/doc/sluice/examples/edge.example.toml";
pub const UNIT: &str = "usr/lib/systemd/system/sluice.service";
pub const MAN: &str = "usr/share/man/man8";
const DOC: &str = "usr/share/doc/sluice";

/// A dashboard, alerts and their test, below [`SHARED`] as below `packaging`.
const MONITORING: [&str; 3] =
    ["grafana/sluice.json", "prometheus/sluice.rules.yml", "prometheus/sluice.rules.test.yml"];
const SHARED: &str = "usr/share/sluice";

/// Puts everything where it will be.
pub fn fill(stage: &Path, agent: &Path) -> Result<()> {
    let to = stage.join(AGENT);
    copy(agent, &to, 0o755)?;
    // Names of functions stay for backtraces; lines are four fifths of the file.
    process::quiet(Command::new("strip").arg("--strip-debug").arg(&to))?;
    let root = workspace::root();
    copy(&root.join("packaging/sluice.service"), &stage.join(UNIT), 0o644)?;
    copy(&root.join("edge.example.toml"), &stage.join(EXAMPLE), 0o644)?;
    for file in MONITORING {
        copy(&root.join("packaging").join(file), &stage.join(SHARED).join(file), 0o644)?;
    }
    let doc = stage.join(DOC);
    copy(&root.join("packaging/debian/copyright"), &doc.join("copyright"), 0o644)?;
    // A package without a Debian revision has one changelog.
    copy(&root.join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    for entry in fs::read_dir(root.join("docs"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        if path.extension().is_some_and(|it| it == "md") {
            copy(&path, &doc.join(name), 0o644)?;
        }
    }
    // The directory of the configuration, where keys will be.
    fs::create_dir_all(stage.join("etc/sluice"))?;
    fs::set_permissions(stage.join("etc/sluice"), fs::Permissions::from_mode(0o750))?;
    let (man, completions) = (stage.join(MAN), stage.join("completions"));
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
    remove(&completions)?;
    for file in files(&man)?.iter().chain([&doc.join("changelog")]) {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
        // Without name and time, so that it is the same each time.
        process::quiet(Command::new("gzip").args(["--best", "--no-name"]).arg(file))?;
    }
    Ok(())
}

/// What dpkg reads and runs.
pub fn control(stage: &Path, architecture: &str) -> Result<()> {
    let to = stage.join("DEBIAN");
    let mut bytes = 0;
    let (mut sums, all) = (Command::new("md5sum"), files(stage)?);
    sums.current_dir(stage);
    for file in &all {
        bytes += fs::metadata(file)?.len();
        sums.arg(file.strip_prefix(stage)?);
    }
    let sums = process::stdout(&mut sums)?;
    write(&to.join("md5sums"), &sums, 0o644)?;
    write(&to.join("control"), &about(architecture, bytes.div_ceil(1_024)), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        let from = workspace::root().join("packaging/debian").join(script);
        copy(&from, &to.join(script), 0o755)?;
    }
    Ok(())
}

fn about(architecture: &str, kibibytes: u64) -> String {
    format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: {architecture}\nMaintainer: The Sluice authors <root@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {kibibytes}\nDepends: libc6 (>= 2.34), libgcc-s1\n\
         Recommends: iproute2\nDescription: load balancer for long-lived connections\n \
         An XDP program forwards TCP on the NIC path; a sidecar reads WebSocket handshakes,\n \
         keeps clients on their backends, and hands connections down to XDP.\n"
    )
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let make = || -> io::Result<()> {
        parents(to)?;
        fs::copy(from, to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    let make = || -> io::Result<()> {
        parents(to)?;
        fs::write(to, text)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("cannot write {}", to.display()))
}

/// Whatever this user's mask is: a package's directories are for everybody.
fn parents(of: &Path) -> io::Result<()> {
    let Some(directory) = of.parent() else { return Ok(()) };
    if directory.exists() {
        return Ok(());
    }
    parents(directory)?;
    fs::create_dir(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}
