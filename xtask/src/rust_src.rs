//! The sources of `core`, by way of rustup: tried once, and a failure remembered for a while.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{attempt, process, workspace};

/// How long `rustup component add` may take.
const PATIENCE: Duration = Duration::from_secs(90);

fn memory() -> PathBuf {
    workspace::root().join("target/tools/rust-src-unavailable")
}

pub fn failed_lately() -> bool {
    attempt::is_fresh(&memory())
}

/// Tries once. Offline it fails, which is remembered and no error: there are other ways.
pub fn add() {
    process::step("install", "rustup", "component add rust-src");
    let child = Command::new("rustup")
        .args(["component", "add", "rust-src"])
        .env("RUSTUP_MAX_RETRIES", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let added = child.is_ok_and(|mut child| {
        let start = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                _ => {
                    let _ = child.kill().and_then(|()| child.wait());
                    return false;
                }
            }
        }
    });
    if !added {
        let file = memory();
        process::step("install", "rustup", "rust-src cannot be had, trying without for a day");
        // Not being able to remember costs the next build a second, no more.
        let _ = file.parent().map(fs::create_dir_all);
        let _ = fs::write(
            &file,
            "`rustup component add rust-src` failed; remove this file to try again\n",
        );
    }
}
