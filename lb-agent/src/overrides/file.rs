//! Where overrides outlive the agent: `/run/sluice/EDGE/overrides.json`, beside the workers' sockets.
//!
//! Like the pins of the data plane it goes with a reboot: a machine that starts anew is as its file says.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::Overrides;

const NAME: &str = "overrides.json";

/// Of the edge whose directory this is.
#[must_use]
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// What an earlier agent left: none if it left none. A file that cannot be read is an error: to forget a drain would
/// be to send clients where nobody wants them.
pub fn read(directory: &Path) -> Result<Overrides> {
    let path = path(directory);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Overrides::default()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{}: not what an agent of this version writes; remove the file to run as the configuration says",
            path.display()
        )
    })
}

/// Writes them in one piece; they are on the disk afterwards.
pub fn write(directory: &Path, overrides: &Overrides) -> Result<()> {
    let path = path(directory);
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(overrides)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_an_error_with_the_remedy() {
        let directory =
            std::env::temp_dir().join(format!("sluice-overrides-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(read(&directory).unwrap(), Overrides::default());
        let overrides = Overrides { revision: 3, ..Overrides::default() };
        write(&directory, &overrides).unwrap();
        assert_eq!(read(&directory).unwrap(), overrides);
        fs::write(path(&directory), "{").unwrap();
        let error = format!("{:#}", read(&directory).unwrap_err());
        assert!(error.contains("overrides.json") && error.contains("remove the file"), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }
}
