//! Starts a worker: the same program as this one, as another user, without any privilege.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixListener,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::sync_channel,
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    libc,
    unistd::{Gid, Uid, User, geteuid},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::directory::{Record, own_executable, start_time};

/// Whom the workers run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// Looks a user up.
    pub fn named(name: &str) -> Result<Self> {
        let user = User::from_name(name).with_context(|| {
            format!("[edge.sidecar] user = {name:?}: users cannot be looked up")
        })?;
        let Some(User { uid, gid, .. }) = user else {
            bail!(
                "[edge.sidecar] user = {name:?}: there is no such user; create one (`useradd --system \
                 --no-create-home --shell /usr/sbin/nologin {name}`), or name another"
            )
        };
        if uid.is_root() || gid.as_raw() == 0 {
            bail!(
                "[edge.sidecar] user = {name:?}: the sidecar does not run as root; name another user"
            );
        }
        Ok(Self { name: name.to_owned(), uid, gid })
    }
}

/// What a worker is started with.
pub struct Start<'a> {
    pub edge: &'a str,
    pub index: u16,
    pub control: UnixListener,
    /// None: nothing is logged.
    pub access_log: Option<&'a File>,
    pub account: &'a Account,
    /// How it logs.
    pub arguments: &'a [OsString],
}

/// Starts a worker, and calls `ended` with its pid once it has ended.
pub fn start(
    start: Start<'_>,
    ended: impl FnOnce(u32, io::Result<ExitStatus>) + Send + 'static,
) -> Result<Record> {
    let Start { edge, index, control, access_log, account, arguments } = start;
    // Not by the path of the file: another one may lie there by now, and the user may not be able to reach it.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("lb-agent")
        .args(["sidecar", "--edge", edge, "--index", &index.to_string()])
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(control)))
        .stdout(match access_log {
            Some(file) => Stdio::from(file.try_clone()?),
            None => Stdio::null(),
        })
        .current_dir("/")
        // What an operator's terminal sends to the agent is not for the workers.
        .process_group(0);
    if account.uid != geteuid() {
        // Supplementary groups go with it.
        command.gid(account.gid.as_raw()).uid(account.uid.as_raw());
    }
    let executable = own_executable()?;
    let (sender, started) = sync_channel(1);
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        match give_up_privileges().and_then(|()| Ok(command.spawn()?)) {
            Ok(mut child) => {
                // The sockets are the worker's now.
                drop(command);
                let pid = child.id();
                // One that has ended already is not found again, and need not be.
                let record = Record { pid, started: start_time(pid).unwrap_or(0), executable };
                let _ = sender.send(Ok(record));
                ended(pid, child.wait());
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    })?;
    started.recv().map_err(anyhow::Error::from).flatten().with_context(|| {
        format!("worker {index}: lb-agent cannot be started as user {:?}", account.name)
    })
}

/// Calls `ended` once a child has ended that another program has started in this process.
pub fn follow(
    index: u16,
    pid: u32,
    ended: impl FnOnce(u32, io::Result<ExitStatus>) + Send + 'static,
) -> Result<()> {
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let mut status = 0;
        // SAFETY: `status` is written to, and lives for longer than the call.
        let result = unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, 0) };
        ended(
            pid,
            match result {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(ExitStatus::from_raw(status)),
            },
        );
    })?;
    Ok(())
}

/// Takes from this thread what its children could ever win by starting another program. What remains lets it become
/// another user, which takes the rest.
fn give_up_privileges() -> Result<()> {
    set_no_new_privs(true).context("no_new_privs")?;
    clear_ambient_capability_set().context("ambient capabilities")?;
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    if effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            // One that this kernel does not know is in no set.
            if capability_is_in_bounding_set(capability).unwrap_or(false) {
                remove_capability_from_bounding_set(capability).context("bounding set")?;
            }
        }
    }
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
    Ok(())
}
