//! Files that operators name: read to a bound and without waiting for anybody, and judged by who else may read them.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use nix::libc;

use crate::config::{Problem, Warning};

/// What a file holds.
pub struct Contents {
    pub bytes: Vec<u8>,
    /// The permissions of owner, group and others.
    mode: u32,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum Unusable {
    Unreadable(io::Error),
    /// A directory, a device or a FIFO.
    NoFile,
    /// Than so many bytes.
    Larger(u64),
    NotUtf8,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NoFile => f.write_str("is not a file"),
            Self::Larger(most) => write!(f, "is larger than {} KiB", most >> 10),
            Self::NotUtf8 => f.write_str("is not UTF-8"),
        }
    }
}

/// Reads a file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Contents, Unusable> {
    // Opening a FIFO would wait for its other end.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(Unusable::Unreadable)?;
    let metadata = file.metadata().map_err(Unusable::Unreadable)?;
    if !metadata.is_file() {
        return Err(Unusable::NoFile);
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Unusable::Unreadable)?;
    if bytes.len() as u64 > most {
        return Err(Unusable::Larger(most));
    }
    Ok(Contents { bytes, mode: metadata.permissions().mode() & 0o777 })
}

impl Contents {
    /// The text.
    pub fn text(&self) -> Result<&str, Unusable> {
        str::from_utf8(&self.bytes).map_err(|_| Unusable::NotUtf8)
    }

    /// If somebody but its owner may do something with the file, which holds a secret: `lets others at the keys, ...`.
    pub fn exposed(&self, path: &Path, what: impl Into<String>) -> Option<Warning> {
        let file = path.display().to_string();
        (self.mode & 0o077 != 0).then(|| Problem {
            line: None,
            thing: "mode".to_owned(),
            value: format!("{:04o}", self.mode),
            what: what.into(),
            remedy: format!("chmod 600 {file}"),
            file,
        })
    }
}
