//! The file with the token that allows changes over TCP.

use std::path::Path;

use crate::{
    bounded_file::{self, Contents},
    config::{Edge, Problem, Warning},
};

/// A token that could be guessed is none.
const LEAST: usize = 16;
const MOST_BYTES: u64 = 4 << 10;

pub const REMEDY: &str = "make the file anew: (umask 077; openssl rand -hex 32 > FILE)";

/// The token. The error says what it is: `is not a file`.
pub fn load(file: &Path) -> Result<String, String> {
    read(file).map(|(token, _)| token)
}

/// What is wrong with the file, if the edge has one: without a token that can be used nobody changes anything over TCP.
#[must_use]
pub fn warning(edge: &Edge) -> Option<Warning> {
    let file = edge.admin_token_file.as_deref()?;
    match read(file) {
        Ok((_, contents)) => contents.exposed(
            file,
            "lets others at the token, and whoever has it can change everything on this edge",
        ),
        Err(what) => Some(Problem {
            file: file.display().to_string(),
            line: None,
            thing: "[edge] admin_token_file".to_owned(),
            value: String::new(),
            what,
            remedy: REMEDY.to_owned(),
        }),
    }
}

fn read(file: &Path) -> Result<(String, Contents), String> {
    let contents = bounded_file::read(file, MOST_BYTES).map_err(|why| why.to_string())?;
    let token = contents.text().map_err(|why| why.to_string())?.trim().to_owned();
    match token.len() {
        LEAST.. => Ok((token, contents)),
        _ => Err(format!("has fewer than {LEAST} characters")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// The warning for a file that `make` makes.
    fn warned(name: &str, make: impl FnOnce(&Path)) -> String {
        let file = std::env::temp_dir().join(format!("sluice-token-{name}-{}", std::process::id()));
        make(&file);
        let text = format!(
            "[edge]\nname = \"e\"\ninterfaces = [\"eth0\"]\nsource_addresses = [\"10.2.0.1\"]\nhash_seed = \"s\"\n\
             admin_token_file = {file:?}\n[[service]]\nname = \"chat\"\nlisten = [\"203.0.113.10:80\"]\n\
             backend = [{{ address = \"10.2.0.2:9000\" }}]\n"
        );
        let (config, _) = crate::config::parse("edge.toml", &text).unwrap();
        let warning = warning(&config.edge).map(|it| it.to_string()).unwrap_or_default();
        let _ = fs::remove_file(&file);
        warning.replace(&file.display().to_string(), "FILE")
    }

    fn with_mode(mode: u32) -> impl FnOnce(&Path) {
        move |file| {
            fs::write(file, "0123456789abcdef\n").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    fn a_token_that_others_may_read_is_a_warning() {
        assert_eq!(warned("600", with_mode(0o600)), "");
        for mode in [0o644, 0o640] {
            let warning = warned(&format!("{mode:o}"), with_mode(mode));
            assert!(
                warning.starts_with(&format!("FILE: mode {mode:04o} lets others")),
                "{warning}"
            );
            assert!(warning.ends_with(": chmod 600 FILE"), "{warning}");
        }
    }

    #[test]
    fn a_file_that_holds_no_token_is_a_warning_and_nobody_waits_for_it() {
        let fifo = |file: &Path| mkfifo(file, Mode::from_bits_truncate(0o600)).unwrap();
        let holds = |text: String| move |file: &Path| fs::write(file, text).unwrap();
        for (warning, part) in [
            (warned("missing", |_| {}), "cannot be read: No such file"),
            (warned("fifo", fifo), "is not a file"),
            (warned("short", holds("short".into())), "has fewer than 16 characters"),
            (warned("long", holds("x".repeat(4_097))), "is larger than 4 KiB"),
        ] {
            assert!(warning.starts_with("FILE: [edge] admin_token_file "), "{warning}");
            assert!(warning.contains(part) && warning.contains("openssl rand"), "{warning}");
        }
    }
}
