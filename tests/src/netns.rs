//! Network namespaces that remove themselves.
//!
//! Code and programs enter only the network namespace (`setns` with `CLONE_NEWNET`). `ip netns exec` also
//! gives a private mount namespace with a fresh /sys, in which BPF pins vanish with the process.

use std::fs::{self, File};
use std::future::Future;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;

use crate::owner::{self, NETNS_DIR, unique_name};
use crate::{process, sweep};

pub use crate::sweep::{Swept, sweep_stale};

/// A way into a namespace. It keeps the namespace alive, but not its name.
#[derive(Clone, Debug)]
pub struct NsHandle {
    name: String,
    file: Arc<File>,
}

impl NsHandle {
    /// Opens a namespace by its name in /run/netns, or by its path.
    pub fn open(name: &str) -> Result<Self> {
        let path =
            if name.contains('/') { PathBuf::from(name) } else { Path::new(NETNS_DIR).join(name) };
        let file = File::open(&path).with_context(|| {
            format!(
                "network namespace {name}: cannot open {}; `ip netns list` shows those that exist",
                path.display()
            )
        })?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file) })
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `nsenter --net=` and the like take.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Moves the calling thread, for good, into the namespace. Threads that it starts are there, too.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).with_context(|| {
            format!("cannot enter network namespace {} (needs CAP_SYS_ADMIN)", self.name)
        })
    }

    /// Runs `f` on a thread in the namespace and waits for it. A panic in it goes on here.
    ///
    /// # Panics
    /// If the namespace cannot be entered, or `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().unwrap_or_else(|error| panic!("{error:#}"));
                f()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `f` on a thread in the namespace.
    ///
    /// # Panics
    /// If no thread can be had.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                namespace.enter().unwrap_or_else(|error| panic!("{error:#}"));
                f()
            })
            .expect("a thread")
    }

    /// Runs a future on a current-thread tokio runtime, on a thread of its own in the namespace. The future
    /// need not be `Send`; `tokio::task::spawn_local` works in it. It gets a [`Stop`] to end in order; when
    /// the [`NsTask`] is dropped, it is cancelled.
    ///
    /// # Panics
    /// If no thread can be had.
    pub fn spawn_async<T, F, Fut>(&self, name: &str, f: F) -> NsTask<T>
    where
        T: Send + 'static,
        F: FnOnce(Stop) -> Fut + Send + 'static,
        Fut: Future<Output = T>,
    {
        NsTask::start(Some(self), name, f)
    }

    /// A command whose child enters the namespace (and no other), and dies when the thread that spawned it
    /// ends: see [`process::command`]. Start what shall last with [`process::Process::spawn`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = process::command(program);
        let file = Arc::clone(&self.file);
        // SAFETY: setns(2) is async-signal-safe; the descriptor lives as long as the closure.
        unsafe {
            command.pre_exec(move || Ok(setns(&*file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Runs a program in the namespace to its end and returns what it printed.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::run(self.command(program).args(arguments))
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs lines of `ip` in the namespace: `ns.ip("link set lo up\nroute add ...")`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        process::run_with_input(self.command("ip").args(["-batch", "-"]), lines)
            .map(drop)
            .with_context(|| format!("in {}", self.name))
    }

    /// Sets a sysctl below `net`, as in `ns.sysctl("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.sysctls(&[(name, value)])
    }

    /// [`NsHandle::sysctl`] for several.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("{}: {} = {value}", self.name, path.display()))
            })
        })
    }
}

/// A namespace with a name of ours; removed on drop, and what runs in it killed.
#[derive(Debug)]
pub struct Netns {
    handle: NsHandle,
}

impl Netns {
    /// Makes a namespace `slc-<pid>-<n>-<role>` with `lo` up, no IPv6 duplicate address detection and no
    /// reverse path filter (packets of one connection go different ways here).
    pub fn new(role: &str) -> Result<Self> {
        owner::claim()?;
        let name = unique_name(role);
        if Path::new(NETNS_DIR).join(&name).exists() {
            // Our pid was another's before: nobody else can have this name.
            sweep::kill_inside(&name);
            sweep::remove_namespace(&name);
        }
        process::run(process::command("ip").args(["netns", "add", &name]))?;
        let handle = NsHandle::open(&name).inspect_err(|_| sweep::remove_namespace(&name))?;
        let netns = Self { handle };
        netns.sysctls(&[
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/dad_transmits", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/all/keep_addr_on_down", "1"),
            ("ipv6/conf/default/keep_addr_on_down", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    #[must_use]
    pub fn handle(&self) -> &NsHandle {
        &self.handle
    }
}

impl Deref for Netns {
    type Target = NsHandle;

    fn deref(&self) -> &NsHandle {
        &self.handle
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        sweep::kill_inside(&self.handle.name);
        sweep::remove_namespace(&self.handle.name);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Run,
    Stop,
    Cancel,
}

/// Tells an asynchronous task that it shall end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    /// Ready once the task shall end.
    pub async fn requested(&mut self) {
        // An error means that the handle is gone, which is a wish to end as well.
        let _ = self.0.wait_for(|phase| *phase != Phase::Run).await;
    }

    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() != Phase::Run
    }
}

/// A future that runs in a namespace; cancelled on drop.
#[derive(Debug)]
pub struct NsTask<T> {
    stop: watch::Sender<Phase>,
    thread: Option<JoinHandle<Option<T>>>,
}

impl<T> NsTask<T> {
    /// [`NsHandle::spawn_async`]; without a namespace, in the caller's, which needs no privileges.
    ///
    /// # Panics
    /// If no thread can be had.
    pub fn start<F, Fut>(namespace: Option<&NsHandle>, name: &str, f: F) -> Self
    where
        T: Send + 'static,
        F: FnOnce(Stop) -> Fut + Send + 'static,
        Fut: Future<Output = T>,
    {
        let (stop, stopped) = watch::channel(Phase::Run);
        let mut cancelled = stopped.clone();
        let namespace = namespace.cloned();
        let body = move || {
            if let Some(namespace) = namespace {
                namespace.enter().unwrap_or_else(|error| panic!("{error:#}"));
            }
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("a tokio runtime");
            let local = tokio::task::LocalSet::new();
            runtime.block_on(local.run_until(async {
                tokio::select! {
                    value = f(Stop(stopped)) => Some(value),
                    _ = cancelled.wait_for(|phase| *phase == Phase::Cancel) => None,
                }
            }))
        };
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread");
        Self { stop, thread: Some(thread) }
    }

    /// Asks the task to end; it may take its time.
    pub fn stop(&self) {
        self.stop.send_replace(Phase::Stop);
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the task's value. A panic in it goes on here.
    ///
    /// # Panics
    /// If the task did.
    pub fn join(mut self) -> T {
        let thread = self.thread.take().expect("joined once");
        let value = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        value.expect("only a drop cancels the task")
    }
}

impl<T> Drop for NsTask<T> {
    fn drop(&mut self) {
        self.stop.send_replace(Phase::Cancel);
        if let Some(thread) = self.thread.take() {
            // A panic in the task has been printed; another one here could abort the process.
            let _ = thread.join();
        }
    }
}

/// Brings the calling thread to the process's own namespace: a lasting thread may have been started
/// from one that was elsewhere.
pub(crate) fn leave_namespace() {
    if let Ok(own) = NsHandle::open("/proc/self/ns/net") {
        // Without privileges no thread of ours can be elsewhere.
        let _ = own.enter();
    }
}
