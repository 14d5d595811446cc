//! What packages bring as services stays off: Debian would start them at once, and at each boot.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// Whom Debian asks before it starts a service (invoke-rc.d(8), deb-systemd-invoke(1p)).
pub const POLICY: &str = "/usr/sbin/policy-rc.d";
/// By which a policy of this module is known.
const MARK: &str = "# Of Sluice's `cargo xtask`";

/// Says no while it lives. A policy that was there before stays as it is.
pub struct Denied(Option<PathBuf>);

impl Denied {
    pub fn by(policy: &Path) -> Result<Self> {
        match fs::read_to_string(policy) {
            Ok(text) if !text.contains(MARK) => return Ok(Self(None)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| policy.display().to_string());
            }
            _ => {}
        }
        let write = || -> io::Result<()> {
            fs::write(policy, text(std::process::id()))?;
            fs::set_permissions(policy, fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| policy.display().to_string())?;
        Ok(Self(Some(policy.to_owned())))
    }
}

impl Drop for Denied {
    fn drop(&mut self) {
        if let Some(policy) = &self.0 {
            _ = fs::remove_file(policy);
        }
    }
}

/// 101 is no, 0 is yes: also when whoever wrote it was killed and could not take it away.
fn text(owner: u32) -> String {
    format!(
        "#!/bin/sh\n{MARK}, while it installs packages: it uses their programs, not their services.\n\
         [ -d /proc/{owner} ] && exit 101\nexit 0\n"
    )
}

/// Servers that are installed for the programs in their packages, or in those that these bring.
const SERVERS: [&str; 3] = ["haproxy.service", "nginx.service", "prometheus.service"];
const UNITS: &str = "/usr/lib/systemd/system";

/// Those that are not installed.
pub fn absent() -> Vec<&'static str> {
    SERVERS.into_iter().filter(|unit| !is_there(unit)).collect()
}

/// Takes those that have come since out of the boot.
pub fn disable(absent: &[&'static str]) -> Result<()> {
    let come: Vec<_> = absent.iter().filter(|unit| is_there(unit)).collect();
    if come.is_empty() || process::find_program("systemctl").is_none() {
        return Ok(());
    }
    process::quiet(Command::new("systemctl").args(["--quiet", "disable"]).args(come)).map(drop)
}

fn is_there(unit: &str) -> bool {
    Path::new(UNITS).join(unit).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(policy: &Path) -> Option<i32> {
        Command::new(policy).args(["web.service", "start"]).status().unwrap().code()
    }

    #[test]
    fn the_policy_says_no_for_as_long_as_its_owner_is_there() {
        let directory = std::env::temp_dir().join(format!("sluice-policy-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let policy = directory.join("policy-rc.d");
        let denied = Denied::by(&policy).unwrap();
        assert_eq!(said(&policy), Some(101));
        drop(denied);
        assert!(!policy.exists());

        // Of one that was killed, with a process id that nobody has.
        fs::write(&policy, text(u32::MAX)).unwrap();
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(said(&policy), Some(0));
        drop(Denied::by(&policy).unwrap());
        assert!(!policy.exists(), "taken away by the next one");

        fs::write(&policy, "#!/bin/sh\nexit 7\n").unwrap();
        drop(Denied::by(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 7\n", "somebody else's");
        fs::remove_dir_all(&directory).unwrap();
    }
}
