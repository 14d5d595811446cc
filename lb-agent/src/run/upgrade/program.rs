//! The file of a program that root's agent is going to execute.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

/// Which file a path led to, whatever it leads to by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl File {
    /// Looks a program up. Nobody but root and the agent's own user may be able to write to it.
    pub fn of(path: &Path) -> Result<Self> {
        let shown = path.display();
        ensure!(
            path.is_absolute(),
            "{shown}: not an absolute path: write all of it, from the root"
        );
        let file = fs::metadata(path).with_context(|| {
            format!(
                "{shown}: there is no such program for the agent; see whether the path is right"
            )
        })?;
        ensure!(file.is_file(), "{shown}: not a file: name the new lb-agent itself");
        ensure!(
            file.mode() & 0o111 != 0,
            "{shown}: mode {:04o}, nobody may execute it: `chmod 0755 {shown}`",
            file.mode() & 0o7777
        );
        let owner = file.uid();
        if owner != 0 && owner != geteuid().as_raw() {
            bail!("{shown}: it belongs to user {owner}, who could change it: `chown root {shown}`");
        }
        // A group of root's is root.
        let others = if file.gid() == 0 { 0o002 } else { 0o022 };
        ensure!(
            file.mode() & others == 0,
            "{shown}: mode {:04o}, others than its owner may change it: `chmod 0755 {shown}`",
            file.mode() & 0o7777
        );
        let changed = (file.ctime(), file.ctime_nsec());
        Ok(Self { device: file.dev(), inode: file.ino(), changed })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_anybody_could_change_or_nobody_can_execute_is_refused() {
        let path = std::env::temp_dir().join(format!("sluice-program-{}", std::process::id()));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let error = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            File::of(&path).map_err(|error| format!("{error:#}")).err().unwrap_or_default()
        };
        for (mode, part) in [
            (0o755, ""),
            (0o500, ""),
            (0o644, "mode 0644, nobody may execute it"),
            (0o757, "mode 0757, others than its owner may change it"),
        ] {
            let error = error(mode);
            assert!(
                error.contains(part) && error.is_empty() == part.is_empty(),
                "{mode:o} {error}"
            );
        }
        fs::remove_file(&path).unwrap();
        let text = |path: &str| format!("{:#}", File::of(Path::new(path)).unwrap_err());
        assert!(text("lb-agent").contains("not an absolute path"));
        assert!(text("/").contains("not a file"));
        assert!(text(&path.display().to_string()).contains("no such program"));
    }

    #[test]
    fn another_file_at_the_path_is_another_program() {
        let path = std::env::temp_dir().join(format!("sluice-replaced-{}", std::process::id()));
        let write = |path: &Path| {
            fs::write(path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        write(&path);
        let before = File::of(&path).unwrap();
        assert_eq!(File::of(&path).unwrap(), before);
        let new = path.with_extension("new");
        write(&new);
        fs::rename(&new, &path).unwrap();
        assert_ne!(File::of(&path).unwrap(), before);
        fs::remove_file(path).unwrap();
    }
}
