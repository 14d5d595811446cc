//! A network namespace for one test.

use std::{
    fs::File,
    future::Future,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

/// How long a test waits for a condition before it fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Removed on drop, and with it everything in it.
pub struct Netns {
    pub name: String,
}

impl Netns {
    /// A new namespace with loopback up.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("slc-{}-nl-{number}", std::process::id());
        run(&["netns", "add", &name]);
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// `ip -n NAME ...`, which must succeed.
    pub fn ip(&self, arguments: &str) {
        run(&self.arguments(arguments));
    }

    /// `ip -n NAME ...`; whether it succeeded.
    pub fn try_ip(&self, arguments: &str) -> bool {
        Command::new("ip").args(self.arguments(arguments)).output().unwrap().status.success()
    }

    fn arguments<'a>(&'a self, arguments: &'a str) -> Vec<&'a str> {
        ["-n", &self.name].into_iter().chain(arguments.split_whitespace()).collect()
    }

    /// A veth pair, one end here and one there, both up.
    pub fn link(&self, here: &str, other: &Netns, there: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.name));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }

    /// Writes a sysctl of the namespace: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/{name}"), value).unwrap());
    }

    /// Runs `f` on a thread in the namespace.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future on a runtime of one thread in the namespace.
    pub fn block_on<R: Send, F: Future<Output = R>>(&self, f: impl FnOnce() -> F + Send) -> R {
        self.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { f().await })
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip(8), as root");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
}
