//! The file with the keys that sign cookies, and the one with those that seal session tickets.
//!
//! ```text
//! # one key a line: its id, and a secret of at least 32 bytes in base64
//! k2 q0c1...=        the first one signs
//! k1 Zm9v...=        the others' cookies are accepted
//! ```
//!
//! A new key goes below the first one on every edge, then to the top on every edge; the old one goes when its cookies
//! have expired. No message of this module shows anything that could be a secret.

use std::{collections::HashMap, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lb_sidecar::settings::CookieKey;

use crate::{
    bounded_file::{self, Unusable},
    config::{ConfigErrors, Problem, Warning},
};

/// The largest file that is read, in bytes.
const MOST_BYTES: u64 = 64 << 10;
const MOST_KEYS: usize = 16;
const LEAST_SECRET: usize = 32;
const MOST_SECRET: usize = 1_024;

const LINE: &str = "write an id and a secret, as in: echo \"k1 $(openssl rand -base64 32)\"";

/// Reads and checks the file: 1 to 16 keys, the first of which signs. Whoever has them `can sign cookies`, say.
pub fn load(path: &Path, who: &str) -> Result<(Vec<CookieKey>, Vec<Warning>), ConfigErrors> {
    let name = path.display().to_string();
    let refuse = |why: Unusable| {
        let remedy = match why {
            Unusable::Unreadable(_) => {
                "make it, with one key a line: (umask 077; echo \"k1 $(openssl rand -base64 32)\" > FILE)"
            }
            _ => "name a file with one key a line, at most 16",
        };
        ConfigErrors::of_file(&name, why.to_string(), remedy.to_owned())
    };
    let contents = bounded_file::read(path, MOST_BYTES).map_err(refuse)?;
    let keys = parse(&name, contents.text().map_err(refuse)?)?;
    let what = format!("lets others at the keys, and whoever has them {who}");
    Ok((keys, contents.exposed(path, what).into_iter().collect()))
}

/// Checks the text of a key file. `file` is what messages call it.
pub fn parse(file: &str, text: &str) -> Result<Vec<CookieKey>, ConfigErrors> {
    let mut problems = Vec::new();
    let mut keys: Vec<CookieKey> = Vec::new();
    let mut lines_of: HashMap<&str, usize> = HashMap::new();
    for (line, content) in text.lines().enumerate().map(|(n, content)| (n + 1, content.trim())) {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let refused = match key(content) {
            Err(refused) => refused,
            Ok((id, _)) if lines_of.contains_key(id) => Refused {
                id: Some(id),
                what: format!("is already on line {}", lines_of[id]),
                remedy: "give each key an id of its own",
            },
            Ok(_) if keys.len() == MOST_KEYS => {
                let what = format!("is one more than the {MOST_KEYS} keys that a file may hold");
                Refused { id: None, what, remedy: "remove the oldest" }
            }
            Ok((id, secret)) => {
                lines_of.insert(id, line);
                keys.push(CookieKey { id: id.to_owned(), secret: secret.to_owned() });
                continue;
            }
        };
        problems.push(Problem {
            file: file.to_owned(),
            line: Some(line),
            thing: "key".to_owned(),
            value: refused.id.map(|id| format!("{id:?}")).unwrap_or_default(),
            what: refused.what,
            remedy: refused.remedy.to_owned(),
        });
    }
    if let Some(errors) = ConfigErrors::of(problems) {
        return Err(errors);
    }
    if keys.is_empty() {
        return Err(ConfigErrors::of_file(file, "has no key".to_owned(), LINE.to_owned()));
    }
    Ok(keys)
}

/// A line that is no key.
struct Refused<'a> {
    /// If it is one for certain: what stands in its place may be a secret.
    id: Option<&'a str>,
    what: String,
    remedy: &'static str,
}

/// Id and secret of a line.
fn key(line: &str) -> Result<(&str, &str), Refused<'_>> {
    let refused = |id, what: &str, remedy| Err(Refused { id, what: what.to_owned(), remedy });
    let mut words = line.split_whitespace();
    let (Some(id), Some(secret), None) = (words.next(), words.next(), words.next()) else {
        return refused(None, "is not an id and a secret", LINE);
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if id.len() > 16 || !id.bytes().all(allowed) {
        return refused(
            None,
            "has no id",
            "write 1 to 16 letters, digits, _ and - before the secret",
        );
    }
    match STANDARD.decode(secret) {
        Err(_) => refused(Some(id), "has a secret that is not base64", LINE),
        Ok(bytes) if bytes.len() < LEAST_SECRET => {
            refused(Some(id), "has a secret of fewer than 32 bytes", LINE)
        }
        Ok(bytes) if bytes.len() > MOST_SECRET => {
            refused(Some(id), "has a secret of more than 1024 bytes", LINE)
        }
        Ok(_) => Ok((id, secret)),
    }
}

#[cfg(test)]
mod tests;
