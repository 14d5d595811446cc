//! Starting other programs, and saying so: one line per step, errors with the command that failed.

use std::{
    env,
    ffi::OsString,
    io::{ErrorKind, IsTerminal as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// One line per step: what is being done, to what, and how or with what outcome.
pub fn step(task: &str, thing: &str, detail: &str) {
    println!("{task:<7} {thing:<9} {detail}");
}

/// The cargo that runs this program, without what `cargo run` adds for the program alone: left in place, those
/// variables would look like a change to every build script that reads them.
pub fn cargo() -> Command {
    cargo_at(&env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from))
}

pub fn cargo_at(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Cargo's progress is for whoever waits in front of a terminal; in a log the steps are enough.
pub fn quiet_unless_watched() -> &'static [&'static str] {
    if std::io::stderr().is_terminal() { &[] } else { &["--quiet"] }
}

/// Runs to the end with the terminal; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| not_started(command, error))?;
    if !status.success() {
        bail!("`{}` failed: {status}", display(command));
    }
    Ok(())
}

/// Runs quietly. What it wrote appears only in the error.
pub fn quiet(command: &mut Command) -> Result<Output> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| not_started(command, error))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            display(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

pub fn stdout(command: &mut Command) -> Result<String> {
    let output = quiet(command)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not UTF-8", display(command)))
}

/// Becomes the other program, so that Ctrl-C reaches it alone and its exit code is ours.
pub fn replace(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(not_started(command, error))
}

/// Looks where a shell would, and where root's programs are even if the user's PATH leaves them out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// How to do `command` as root; cargo's directory is not in root's PATH.
pub fn with_sudo(command: &str) -> String {
    format!("sudo -E env \"PATH=$PATH\" {command}")
}

fn not_started(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!("`{program}` is not there: install it or put it in PATH")
    } else {
        anyhow::anyhow!("`{}` did not start: {error}", display(command))
    }
}

pub fn display(command: &Command) -> String {
    let words: Vec<OsString> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsString::from)
        .collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
