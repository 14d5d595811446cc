//! What each test has for itself: pins, and a network namespace with a veth pair.

use std::{
    env,
    fs::File,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use lb_agent::bpf::{self, Loaded, PinDir, TableSizes, pins, specs};
use nix::sched::{CloneFlags, setns};

use crate::object::object;

pub const SIZES: TableSizes = TableSizes {
    flows_ipv4: 1_000,
    flows_ipv6: 1_000,
    handshakes: 1_000,
    preallocate: true,
    services: 4,
    backends: 8,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

fn unique() -> String {
    format!("slc-{}-bpf-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Pins that end with the test.
pub struct Pins(PinDir);

impl Pins {
    pub fn new() -> Self {
        pins::mount_bpffs().expect("the tests need a bpffs");
        Self(PinDir::of_edge(&unique()))
    }

    /// Loads a program with the usual maps.
    pub fn load(&self, instructions: &[u64]) -> anyhow::Result<Loaded> {
        self.load_sizes(instructions, &SIZES)
    }

    pub fn load_sizes(&self, instructions: &[u64], sizes: &TableSizes) -> anyhow::Result<Loaded> {
        bpf::load(&object(instructions, &specs::maps(sizes)), self, sizes)
    }
}

impl std::ops::Deref for Pins {
    type Target = PinDir;

    fn deref(&self) -> &PinDir {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = bpf::unload(&self.0) {
            // A second panic would abort, and hide the first one.
            assert!(std::thread::panicking(), "the test's pins cannot be removed: {error:#}");
        }
    }
}

/// A network namespace that ends with the test, entered by the test's own thread.
pub struct Namespace(String);

impl Namespace {
    /// Makes and enters a namespace with the veth pair `in0`, `out0`.
    pub fn enter() -> Self {
        let name = unique();
        ip(&format!("netns add {name}"));
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        let namespace = Self(name);
        add_veth("in0", "out0");
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.0]).status();
        assert!(deleted.is_ok_and(|s| s.success()) || std::thread::panicking(), "{}", self.0);
    }
}

pub fn add_veth(name: &str, peer: &str) {
    ip(&format!("link add {name} type veth peer name {peer}"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {peer} up"));
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip can be run");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Where the built data plane is. Without it the tests of it skip themselves, except with CI=true.
pub fn built_object() -> Option<PathBuf> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/sluice.o");
    let path = env::var_os("SLUICE_EBPF_OBJECT").map_or_else(default, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    let remedy = format!("{} is not there: run `cargo xtask build`", path.display());
    assert!(env::var_os("CI").is_none(), "{remedy}");
    eprintln!("skipped: {remedy}");
    None
}

/// The whole text of an error.
pub fn text<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => format!("{error:#}"),
    }
}

/// Asserts that a text has all of these parts.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}
