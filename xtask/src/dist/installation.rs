//! The package below a directory: what is in it runs, reads well, and goes away again. No service is started, and nothing
//! outside of the directory is touched.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail, ensure};

use super::{
    NAME, VERSION,
    contents::{AGENT, EXAMPLE, MAN, UNIT},
    files, remove,
};
use crate::process;

/// Installs the package below a directory, looks at it, and purges it.
pub fn try_out(package: &Path, root: &Path) -> Result<()> {
    remove(root)?;
    fs::create_dir_all(root.join("var/lib/dpkg/updates"))?;
    fs::create_dir_all(root.join("var/lib/dpkg/info"))?;
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    process::quiet(dpkg(root).arg("--install").arg(package))?;
    let agent = root.join(AGENT);
    let version = process::stdout(Command::new(&agent).arg("--version"))?;
    ensure!(version.contains(VERSION), "the installed agent says {version:?}");
    process::quiet(Command::new(&agent).args(["check", "--config"]).arg(root.join(EXAMPLE)))?;
    for file in [
        UNIT,
        "usr/share/bash-completion/completions/lb-agent",
        "usr/share/sluice/grafana/sluice.json",
        "usr/share/sluice/prometheus/sluice.rules.yml",
        "etc/sluice",
    ] {
        let length = fs::metadata(root.join(file)).map(|it| it.len()).unwrap_or(0);
        ensure!(length > 0, "{file} is not in the package, or empty");
    }
    pages(&root.join(MAN))?;
    process::quiet(dpkg(root).args(["--purge", NAME]))?;
    let left = [AGENT, "etc/sluice", "usr/share/doc/sluice"].map(|it| root.join(it));
    if let Some(left) = left.iter().find(|it| it.exists()) {
        bail!("{} is left after the package was removed", left.display());
    }
    remove(root)
}

/// The machine's own packages do not count, and the scripts run here.
fn dpkg(root: &Path) -> Command {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display())).args([
        "--force-script-chrootless",
        "--force-depends",
        "--force-not-root",
    ]);
    dpkg
}

/// Every page is made to text without a warning.
fn pages(directory: &Path) -> Result<()> {
    let pages = files(directory)?;
    ensure!(pages.len() > 20, "only {} manual pages", pages.len());
    for page in pages {
        let mut man = Command::new("man");
        man.args(["--warnings", "--encoding=UTF-8", "--local-file"]).arg(&page);
        man.env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "");
        let output = process::quiet(&mut man)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.trim().is_empty(), "{}: {said}", page.display());
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("SYNOPSIS"), "{}: no manual page: {text}", page.display());
    }
    Ok(())
}
