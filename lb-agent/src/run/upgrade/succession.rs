//! One program after the other in the same process. What the next one must know stands in its environment: a file could be
//! that of a process which has died.

use std::{
    env,
    ffi::OsString,
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Error, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        signal::{SigHandler, Signal, signal},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Order, program};
use crate::run::status::Upgrade;

/// The variable that the next program finds.
pub const HANDED_OVER: &str = "SLUICE_HANDED_OVER";

/// A program that is not ready by then is not going to be.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a program is told by the one before it in its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Of the order.
    pub id: String,
    /// Which program the order was to run.
    pub program: PathBuf,
    /// Of the program before.
    pub version: String,
    /// Id of its XDP program.
    pub program_id: u32,
    /// What it was started with, and what whoever follows is.
    arguments: Vec<OsString>,
    /// Descriptor of its file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    previous: Option<RawFd>,
    /// Why the ordered program did not come up: this is the one that was to be replaced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

impl Told {
    /// How the agent came to where another was: for people.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.refused {
            None => format!(", in place of lb-agent {}", self.version),
            Some(why) => format!("; {} has not come up: {why}", self.program.display()),
        }
    }
}

impl From<&Told> for Upgrade {
    fn from(told: &Told) -> Self {
        Self {
            id: told.id.clone(),
            program: told.program.display().to_string(),
            from_version: told.version.clone(),
            from_program_id: told.program_id,
            refused: told.refused.clone(),
        }
    }
}

/// How this program came into its process.
#[derive(Debug, Default)]
pub struct Succession {
    told: Option<Told>,
    previous: Option<OwnedFd>,
}

impl Succession {
    /// As the environment says, which then says it no more: children are not meant. To be called while the process has
    /// one thread.
    #[must_use]
    pub fn of_environment() -> Self {
        let Some(text) = env::var_os(HANDED_OVER) else { return Self::default() };
        // SAFETY: no other thread reads or writes the environment yet; that is asked of the caller.
        unsafe { env::remove_var(HANDED_OVER) };
        let told = text.to_str().and_then(|text| serde_json::from_str::<Told>(text).ok());
        let Some(told) = told else { return Self::default() };
        reap();
        let previous = told.previous.and_then(take);
        Self { told: Some(told), previous }
    }

    /// What the program before has said, if there was one.
    #[must_use]
    pub fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    /// Whether the program before can be had again.
    #[must_use]
    pub fn can_go_back(&self) -> bool {
        self.previous.is_some()
    }

    /// There is no way back from now on.
    pub fn settle(&mut self) {
        self.previous = None;
    }

    /// Has the program before in this one's place again, if there is one. Returns why it does not.
    pub fn go_back(self, error: Error) -> Error {
        let Self { told: Some(told), previous: Some(previous) } = self else { return error };
        tracing::error!("{error:#}; the program before takes over again");
        let told = Told { previous: None, refused: Some(format!("{error:#}")), ..told };
        let again = execute_again(&previous, &told);
        error.context(format!("the program before cannot be executed again: {again:#}"))
    }
}

/// Becomes the program of an order. Returns only if neither that is possible nor to begin anew with this one.
pub fn hand_over(order: Order, program_id: u32) -> Error {
    let Order { id, program, file, version } = order;
    tracing::info!(program = %program.display(), version, "another program takes over");
    let own = env!("CARGO_PKG_VERSION").to_owned();
    let arguments = env::args_os().collect();
    let told =
        Told { id, program, version: own, program_id, arguments, previous: None, refused: None };
    let previous = match File::open("/proc/self/exe") {
        Ok(previous) => OwnedFd::from(previous),
        Err(error) => return anyhow!(error).context("/proc/self/exe: cannot be opened"),
    };
    let error = become_new(&told, file, &previous);
    tracing::error!("{error:#}; this program begins anew");
    let told = Told { refused: Some(format!("{error:#}")), ..told };
    execute_again(&previous, &told)
}

fn become_new(told: &Told, tried: program::File, previous: &OwnedFd) -> Error {
    let shown = told.program.display();
    let execute = || -> Result<Error> {
        let now = program::File::of(&told.program)?;
        ensure!(now == tried, "{shown}: another file lies there than the one that was tried out");
        keep(previous)?;
        let told = Told { previous: Some(previous.as_raw_fd()), ..told.clone() };
        let error = execute(Command::new(&told.program), &told)?;
        Ok(error.context(format!("{shown}: it cannot be executed")))
    };
    execute().unwrap_or_else(|error| error)
}

fn execute_again(program: &OwnedFd, told: &Told) -> Error {
    // Its name may be another file's by now.
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    keep(program)
        .and_then(|()| execute(Command::new(path), told))
        .unwrap_or_else(|error| error)
        .context("the program before")
}

/// Replaces this process's program.
fn execute(mut command: Command, told: &Told) -> Result<Error> {
    let (name, arguments) = told.arguments.split_first().context("a process without a name")?;
    // Until the program listens, a wish to read the file would end it; it reads the file anyway.
    // SAFETY: no handler of ours is left out, the process's program ends here.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }.context("SIGHUP")?;
    let text = serde_json::to_string(told)?;
    Ok(anyhow!(command.arg0(name).args(arguments).env(HANDED_OVER, text).exec()))
}

/// For the next program.
fn keep(descriptor: &OwnedFd) -> Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))
        .context("a descriptor for the way back")?;
    Ok(())
}

/// Takes a descriptor that the program before has left, not to be given on to anybody.
fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the program before has left it for this one; if not, nothing in this process has a descriptor of its own
    // yet beside the standard ones, which are left alone.
    let descriptor = (number > 2).then(|| unsafe { OwnedFd::from_raw_fd(number) })?;
    match fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Some(descriptor),
        Err(_) => {
            // Nothing is open there: nothing is to be closed.
            let _ = std::os::fd::IntoRawFd::into_raw_fd(descriptor);
            None
        }
    }
}

/// Children of the program before that have ended meanwhile. To be called while this one has none.
fn reap() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Whether a process is a child of this one, as those are that a program before has started.
#[must_use]
pub fn is_child(pid: u32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid.cast_signed())), flags) != Err(Errno::ECHILD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_as_it_was_written() {
        let told = Told {
            id: "7".to_owned(),
            program: "/usr/sbin/lb-agent".into(),
            version: "1.2.3".to_owned(),
            program_id: 9,
            arguments: vec!["lb-agent".into(), "run".into()],
            previous: Some(5),
            refused: None,
        };
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told);
    }

    #[test]
    fn without_a_program_before_an_error_is_an_error() {
        let error = Succession::default().go_back(anyhow!("why"));
        assert_eq!(format!("{error:#}"), "why");
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_none() {
        assert!(take(2).is_none());
        assert!(take(9_999).is_none());
    }

    #[test]
    fn a_child_is_known_until_somebody_has_waited_for_it() {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        assert!(is_child(child.id()));
        let pid = child.id();
        child.wait().unwrap();
        assert!(!is_child(pid) && !is_child(1));
    }
}
