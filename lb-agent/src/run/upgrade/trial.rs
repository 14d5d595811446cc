//! Whether a program could take an edge over, found out beside the agent that runs it: it reads the file and what
//! operators have changed, compares the pinned maps with its own, and has the kernel verify its XDP program. Nothing that
//! packets meet is touched.

use std::{
    ffi::OsString,
    io::Read,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::succession::HANDED_OVER;
use crate::{
    bpf::{self, PinDir, lock::RUN_DIR},
    object, overrides,
    run::{Options, start},
    sidecar::Directory,
};

/// What makes `run` a trial.
pub const FLAG: &str = "--trial";
/// The verifier takes its time, and more of it on a busy machine.
const LONGEST: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(20);

/// What a program says that could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Able {
    pub version: String,
}

/// Of this program.
pub fn run(options: Options) -> Result<Able> {
    let loaded = start::load_config(&options.config)?;
    bpf::capabilities::check()?;
    let edge = &loaded.config.edge;
    overrides::file::read(Directory::of_edge(RUN_DIR.as_ref(), &edge.name).path())?;
    let sizes = start::table_sizes(&edge.tables);
    let pins = PinDir::of_edge(&edge.name);
    match options.object {
        Some(path) => {
            let object = std::fs::read(&path)
                .with_context(|| format!("{}: cannot be read", path.display()))?;
            bpf::try_out(&object, &pins, &sizes)?;
        }
        None => bpf::try_out(object::ebpf()?, &pins, &sizes)?,
    }
    Ok(Able { version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// Has another program try, with the arguments that this process was started with.
pub fn of(program: &Path, arguments: &[OsString]) -> Result<Able> {
    let shown = program.display();
    let mut command = Command::new(program);
    // Its last line says what is wrong: for people, and without colours.
    command.args(arguments).arg(FLAG).env_remove(HANDED_OVER).env("NO_COLOR", "1");
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("{shown}: it cannot be executed"))?;
    let output = wait(child).with_context(|| format!("{shown}: its trial"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{shown} could not take this edge over ({}): {}", output.status, end_of(&said));
    }
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!("{shown}: it does not say that it could take this edge over; is it an lb-agent?")
    })
}

/// Waits for the end; one that does not come to it is killed.
fn wait(mut child: Child) -> Result<Output> {
    let mut pipes = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = (read(pipes.0.take()), read(pipes.1.take()));
    let end = Instant::now() + LONGEST;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            bail!("it has not ended after {LONGEST:?}");
        }
        thread::sleep(LOOK);
    };
    let get = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: get(stdout), stderr: get(stderr) })
}

fn read(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    const MOST: u64 = 64 << 10;
    thread::spawn(move || {
        let mut text = Vec::new();
        // What is missing is not missed: it is for a message.
        let _ = pipe.map(|pipe| pipe.take(MOST).read_to_end(&mut text));
        text
    })
}

/// The last lines that somebody has said.
fn end_of(said: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => "it says nothing".to_owned(),
        lines => lines[lines.len().saturating_sub(LINES)..].join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_agent_is_refused_with_what_it_said() {
        let error = |program: &str, arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            format!("{:#}", of(Path::new(program), &arguments).unwrap_err())
        };
        let failed = error("/bin/sh", &["-c", "echo first >&2; echo why >&2; exit 3"]);
        assert!(failed.contains("exit status: 3") && failed.ends_with("first; why"), "{failed}");
        let silent = error("/bin/false", &[]);
        assert!(silent.contains("it says nothing"), "{silent}");
        let other = error("/bin/echo", &["{}"]);
        assert!(other.contains("is it an lb-agent?"), "{other}");
        let none = error("/nonexistent", &[]);
        assert!(none.contains("/nonexistent: it cannot be executed"), "{none}");
    }

    #[test]
    fn what_is_able_says_its_version() {
        let script = OsString::from("echo '{\"version\": \"9.9.9\"}'");
        let able = of(Path::new("/bin/sh"), &["-c".into(), script]).unwrap();
        assert_eq!(able, Able { version: "9.9.9".to_owned() });
    }

    #[test]
    fn of_what_was_said_the_end_counts() {
        let said: String = (0..20).map(|n| format!("line {n}\n\n")).collect();
        assert!(end_of(&said).starts_with("line 12;") && end_of(&said).ends_with("line 19"));
    }
}
