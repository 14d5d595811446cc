//! `[edge.sidecar]`: the processes that serve `mode = "l7"`.

use std::path::PathBuf;

use super::address;
use super::reader::{Field, Reader, Section};

pub(super) static SIDECAR: Section = Section {
    heading: "[edge.sidecar]",
    keys: &["user", "workers", "cookie_keys", "access_log", "ticket_keys"],
};

/// The processes that serve l7 services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Whom they run as, never root: 1 to 32 of `A-Za-z0-9._-`, not first a `-`. That this host knows the name is not
    /// known here.
    pub user: String,
    /// How many, 1 to 64; `None` for one per CPU.
    pub workers: Option<u32>,
    /// Absolute path of the file with the keys that sign cookies. There if a service has
    /// [`Affinity::Cookie`](super::Affinity::Cookie).
    pub cookie_keys: Option<PathBuf>,
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// Absolute path of the file with the keys that session tickets are sealed with. None: this agent makes one.
    pub ticket_keys: Option<PathBuf>,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// To the agent's standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// To the end of the file at this absolute path.
    File(PathBuf),
}

pub(super) fn read(reader: &Reader<'_>) -> Sidecar {
    Sidecar {
        user: reader
            .field("user")
            .and_then(|field| user(&field))
            .unwrap_or_else(|| "nobody".to_owned()),
        workers: Some(reader.integer("workers", 0..=64, 0)).filter(|workers| *workers > 0),
        cookie_keys: reader
            .field("cookie_keys")
            .and_then(|field| address::absolute_path(&field, r#""/etc/sluice/cookie.keys""#)),
        access_log: reader
            .field("access_log")
            .and_then(|field| access_log(&field))
            .unwrap_or(AccessLog::Stdout),
        ticket_keys: reader
            .field("ticket_keys")
            .and_then(|field| address::absolute_path(&field, r#""/etc/sluice/ticket.keys""#)),
    }
}

fn user(field: &Field<'_>) -> Option<String> {
    const EXAMPLE: &str = r#""nobody""#;
    let user = field.string(EXAMPLE)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=32).contains(&user.len()) || user.starts_with('-') || !user.chars().all(allowed) {
        field.refuse("is not the name of a user", format!("write e.g. {EXAMPLE}"));
    } else if user == "root" {
        field.refuse("needs no privilege and gets none", format!("write e.g. {EXAMPLE}"));
    } else {
        return Some(user.to_owned());
    }
    None
}

fn access_log(field: &Field<'_>) -> Option<AccessLog> {
    const EXAMPLE: &str = r#""stdout", "off" or "/var/log/sluice/access.log""#;
    match field.string(r#""stdout""#)? {
        "stdout" => Some(AccessLog::Stdout),
        "off" => Some(AccessLog::Off),
        _ => address::absolute_path(field, EXAMPLE).map(AccessLog::File),
    }
}
