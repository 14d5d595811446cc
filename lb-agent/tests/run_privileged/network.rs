//! Network namespaces, and waiting for conditions.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Output, id},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

/// How long a condition is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until there is a value, and fails with `what` if there never is.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The same for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// A namespace; removed on drop.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("slc-{}-run-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &format!("netns add {name}"));
        let netns = Self { name };
        netns.ip("link set lo up");
        // Addresses that can be used at once, and no router's either.
        netns.run(|| {
            for (key, value) in [("accept_dad", "0"), ("accept_ra", "0")] {
                for of in ["all", "default"] {
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{key}"), value).unwrap();
                }
            }
            // Answers may come by another interface than their questions went.
            for of in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"), "0").unwrap();
            }
        });
        netns
    }

    /// `ip -n NAME ...`, which must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        run("ip", &format!("-n {} {arguments}", self.name))
    }

    pub fn file(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).unwrap()
    }

    /// Runs `f` on a thread in the namespace.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let file = self.file();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects from the namespace.
    pub fn connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run(move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Status line and body of an HTTP request from the namespace; nothing if nobody answers.
    pub fn http(&self, to: &str, path: &str) -> Option<(String, String)> {
        let to: SocketAddr = to.parse().unwrap();
        let answer = self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
                .ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    }

    /// A veth pair, one end here and one there, both up, with whole checksums, and ready for frames that XDP sends.
    pub fn link(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.name));
        for (netns, device) in [(self, here), (other, there)] {
            netns.ip(&format!("link set {device} up"));
            netns.run(|| run("ethtool", &format!("-K {device} tx off gro on")));
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program said, either way.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat())
        .into_owned()
}
