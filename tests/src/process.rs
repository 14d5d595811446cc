//! Child processes that cannot outlive us and whose output can be waited for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::sweep::MARKER;

/// Pids of the children that live, for an end by signal.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A command whose child dies when the thread that spawned it ends: spawn it with [`Process::spawn`],
/// which has a thread that never does, or wait for it on the thread which started it.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let owner = Pid::this();
    // A group of its own: Ctrl-C on the terminal is for the owner, which ends its children in its order.
    command.env(MARKER, owner.to_string()).process_group(0);
    // SAFETY: prctl(2) and getppid(2) are async-signal-safe, and nothing is allocated on success.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The owner may have died before the line above: then no signal will come.
            if getppid() == owner { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
    command
}

/// Runs a command to its end and returns what it printed. The error has its arguments and its complaint.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

/// [`run`], with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| missing(command, error))?;
    // The inputs used here are shorter than a pipe, so that this cannot block on a child that writes first.
    child.stdin.take().expect("piped").write_all(input.as_bytes()).or_else(|error| match error
        .kind()
    {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let with_input =
            if input.is_empty() { String::new() } else { format!(" with input\n{input}") };
        bail!("{line}: {}: {}{with_input}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(std::ffi::OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn missing(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    let package = match program.as_str() {
        "ip" | "bridge" | "ss" => Some("iproute2"),
        "ethtool" => Some("ethtool"),
        "tcpdump" => Some("tcpdump"),
        _ => None,
    };
    match package {
        Some(package) if error.kind() == std::io::ErrorKind::NotFound => {
            anyhow::anyhow!("`{program}` is not installed: apt-get install -y {package}")
        }
        _ => anyhow::Error::new(error).context(format!("cannot start {program}")),
    }
}

/// Lets this process, and those that it starts from now on, open as many files as the system allows.
pub fn open_many_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// The path of a program that this workspace builds, beside the one that asks.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a program without a directory")?;
    let directory = if directory.ends_with("deps") {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    };
    let path = directory.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build -p tests --bins`", path.display());
    }
    Ok(path)
}

/// A child, killed (exactly that pid) on drop. What it prints is kept.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    status: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    kept: Vec<String>,
    open_ends: usize,
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(self: Arc<Self>, from: impl Read + Send + 'static, copy: Option<Arc<File>>) {
        self.lock().open_ends += 1;
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(mut file) = copy.as_deref() {
                    let _ = file.write_all(format!("{line}\n").as_bytes());
                }
                self.lock().kept.push(line);
                self.more.notify_all();
            }
            self.lock().open_ends -= 1;
            self.more.notify_all();
        });
    }
}

impl Process {
    /// Starts `command` and keeps its output.
    pub fn spawn(name: impl Into<String>, command: Command) -> Result<Self> {
        Self::start(name.into(), command, None)
    }

    /// Starts `command`, keeps its output and copies it to a file.
    pub fn spawn_logged(name: impl Into<String>, command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        Self::start(name.into(), command, Some(Arc::new(file)))
    }

    fn start(name: String, mut command: Command, copy: Option<Arc<File>>) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn_on_lasting_thread(command)?;
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).insert(child.id());
        let output = Arc::new(Output::default());
        Arc::clone(&output).read(child.stdout.take().expect("piped"), copy.clone());
        Arc::clone(&output).read(child.stderr.take().expect("piped"), copy);
        Ok(Self { name, child, output, status: None })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far, standard output and error in the order of their arrival.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        self.output.lock().kept.clone()
    }

    /// Waits for a line that `wanted` accepts, those already printed included.
    pub fn wait_for_line(
        &self,
        timeout: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        self.wait_for_line_after(0, timeout, wanted).map(|(_, line)| line)
    }

    /// Waits for an accepted line among those from number `first` on. Returns its number, too, from which
    /// a next wait can go on.
    pub fn wait_for_line_after(
        &self,
        first: usize,
        timeout: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Result<(usize, String)> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.output.lock();
        let mut next = first;
        loop {
            while next < lines.kept.len() {
                if wanted(&lines.kept[next]) {
                    return Ok((next, lines.kept[next].clone()));
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.open_ends == 0 {
                let why = if left.is_zero() { "in time" } else { "before it closed its output" };
                let tail = &lines.kept[lines.kept.len().saturating_sub(20)..];
                bail!(
                    "{}: the awaited line did not come {why}; it said:\n{}",
                    self.name,
                    tail.join("\n")
                );
            }
            lines = self
                .output
                .more
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            bail!("{}: has ended already", self.name);
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("{}: cannot send {signal}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                self.forget();
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{}: still runs after {timeout:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.try_wait()?.is_none() {
            self.child.kill()?;
        }
        self.wait(Duration::from_secs(10))
    }

    fn forget(&self) {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.child.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        self.forget();
    }
}

/// For an end by signal: no child may stay.
pub(crate) fn kill_all() {
    for pid in CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// `PR_SET_PDEATHSIG` follows the thread that made the child, not the process: children which shall live
/// longer than a test's helper thread come from one thread that never ends.
fn spawn_on_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let line = describe(&command);
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                crate::netns::leave_namespace();
                for (mut command, answer) in jobs {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread to spawn processes");
        sender
    });
    let (answer, child) = channel();
    spawner.send((command, answer)).expect("the spawner never ends");
    child.recv().expect("the spawner answers").with_context(|| format!("cannot start {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn shell(script: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_line_can_be_waited_for_and_the_next_one() {
        let process = Process::spawn("sh", shell("echo one; echo two >&2; exec sleep 60")).unwrap();
        assert_eq!(process.wait_for_line(SOON, |l| l.starts_with("tw")).unwrap(), "two");
        assert_eq!(process.wait_for_line(SOON, |l| l == "one").unwrap(), "one");
        let error = process.wait_for_line(Duration::from_millis(20), |l| l == "three").unwrap_err();
        assert!(error.to_string().contains("in time"), "{error}");
    }

    #[test]
    fn the_end_of_output_ends_the_wait() {
        let process = Process::spawn("sh", shell("echo bye")).unwrap();
        let error = process.wait_for_line(SOON, |l| l == "hello").unwrap_err();
        assert!(error.to_string().contains("closed its output"), "{error}");
        assert!(error.to_string().contains("bye"), "{error}");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let process = Process::spawn("sleep", shell("exec sleep 60")).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new("/proc").join(pid.to_string()).exists());
    }

    #[test]
    fn a_process_outlives_the_thread_that_started_it() {
        let mut process =
            std::thread::spawn(|| Process::spawn("cat", shell("echo up; exec sleep 60")).unwrap())
                .join()
                .unwrap();
        process.wait_for_line(SOON, |l| l == "up").unwrap();
        assert!(process.is_running());
    }

    #[test]
    fn a_failed_command_says_what_and_why() {
        let error = run(&mut shell("echo no such thing >&2; exit 3")).unwrap_err().to_string();
        assert!(
            error.contains("sh -c") && error.contains("no such thing") && error.contains('3'),
            "{error}"
        );
        assert_eq!(run_with_input(&mut command("cat"), "through").unwrap(), "through");
    }
}
