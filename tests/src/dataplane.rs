//! The data plane, driven frame by frame through `BPF_PROG_TEST_RUN`, with maps of its own.
//!
//! The object that `cargo xtask build` made is loaded once per test binary, since verifying it takes
//! seconds; [`Dataplane::fresh`] empties every table, writes a [`Scenario`] and zeroes the counters
//! before each test. Nothing is pinned or attached. The maps are written by the agent's own writer.

mod batch;
mod decap;
pub mod expect;
mod object;
pub mod scenario;
mod tables;
pub mod traced;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, TestRun, TestRunOptions, Xdp},
};
use nix::sched::{CloneFlags, unshare};

pub use decap::Decap;
pub use expect::{Backends, Counted, Expect};
pub use object::{Object, object, path as object_path};
pub use scenario::{Scenario, ServiceSpec, hop, id};
pub use tables::{Punted, Tables};

use crate::{netns::NsHandle, privilege::require_root};

/// What a program says that becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Transmit,
    Redirect,
    /// None of the numbers that the kernel knows.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// What a program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub action: Action,
    pub frame: Vec<u8>,
}

/// Bytes by which a frame may grow in a test run.
const ROOM: usize = 512;

/// The shortest frame that the kernel lets a program see.
pub const SHORTEST: usize = 14;

/// Names the object to be tested in the place of `sluice`.
pub const VARIANT: &str = "SLUICE_TEST_VARIANT";

/// Interface that every frame comes by: the loopback device, where test runs happen.
pub const INGRESS: u32 = 1;

/// Runs a program on a frame. `metadata` bytes before it take that much of the headroom away.
fn run(program: &Xdp, frame: &[u8], metadata: usize) -> Output {
    let data: Vec<u8> = std::iter::repeat_n(0, metadata).chain(frame.iter().copied()).collect();
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> = [metadata as u32, data.len() as u32, 0, 0, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let mut out = vec![0; data.len() + ROOM];
    let options = TestRunOptions {
        data_in: Some(&data),
        data_out: Some(&mut out),
        ctx_in: (metadata > 0).then_some(&context),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).expect("the kernel runs the program on the frame");
    out.truncate(result.data_size_out as usize);
    Output { action: result.return_value.into(), frame: out.split_off(metadata) }
}

/// A network namespace for test runs, with nothing in it: what the host routes must not matter.
fn empty_namespace() -> NsHandle {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
        let handle = NsHandle::current().expect("the new namespace can be opened");
        // IPv4 settings are inherited from the host; with forwarding off, bpf_fib_lookup has no answer.
        for name in ["ipv4/conf/all/forwarding", "ipv4/conf/lo/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "0").expect("/proc/sys is writable");
        }
        handle
    };
    thread::spawn(make).join().expect("the thread ends")
}

/// How large the tables are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of each flow table.
    pub flows: u32,
    /// Entries of each handshake table.
    pub handshakes: u32,
}

impl Sizes {
    /// Small enough to be filled by a test.
    pub const SMALL: Self = Self { flows: 64, handshakes: 4096 };
}

/// The program `sluice` in the kernel, with its maps.
pub struct Dataplane {
    ebpf: Ebpf,
    namespace: NsHandle,
    pub tables: Tables,
    /// What is written in the maps now.
    pub scenario: Scenario,
}

impl Dataplane {
    /// Loads the program.
    ///
    /// # Panics
    /// If the object is not built or the kernel refuses it.
    #[must_use]
    pub fn load(sizes: Sizes) -> Self {
        let variant = std::env::var(VARIANT);
        Self::load_object(sizes, variant.as_deref().unwrap_or("sluice"))
    }

    fn load_object(sizes: Sizes, name: &str) -> Self {
        require_root();
        let object = object(name);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS4", sizes.flows)
            .map_max_entries("FLOWS6", sizes.flows)
            .map_max_entries("HANDSHAKES4", sizes.handshakes)
            .map_max_entries("HANDSHAKES6", sizes.handshakes)
            .map_max_entries("SERVICES", tables::SERVICES)
            .map_max_entries("RINGS", tables::RINGS)
            .map_max_entries("BACKENDS", tables::BACKENDS)
            .map_max_entries("BACKEND_COUNTERS", tables::BACKENDS)
            .map_max_entries("NEXT_HOPS", tables::NEXT_HOPS)
            .map_max_entries("OUTCOMES", tables::OUTCOMES)
            .load(&object)
            .expect("the object's maps can be made");
        let program: &mut Xdp = ebpf
            .program_mut("sluice")
            .expect("the object has the program")
            .try_into()
            .expect("it is an XDP program");
        program.load().expect("the kernel accepts the program");
        let tables = Tables::take(&mut ebpf);
        Self { ebpf, namespace: empty_namespace(), tables, scenario: Scenario::default() }
    }

    /// The test binary's data plane, as if it had just been loaded with a scenario in its maps. Tests
    /// take turns.
    pub fn fresh(scenario: Scenario) -> MutexGuard<'static, Self> {
        static SHARED: OnceLock<Mutex<Dataplane>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Mutex::new(Self::load(Sizes::SMALL)));
        // A test that failed leaves nothing that is not written anew here.
        let mut plane = shared.lock().unwrap_or_else(PoisonError::into_inner);
        plane.reset(scenario);
        plane
    }

    /// Empties the tables, zeroes the counters and writes a scenario.
    pub fn reset(&mut self, scenario: Scenario) {
        self.namespace.enter().expect("the namespace can be entered");
        self.tables.clear();
        self.tables.write(&scenario);
        self.scenario = scenario;
    }

    /// Changes what is in the maps, as the agent would while packets flow.
    pub fn change(&mut self, change: impl FnOnce(&mut Scenario)) {
        change(&mut self.scenario);
        self.tables.write(&self.scenario);
    }

    /// Runs the program on a frame, and nothing else.
    pub fn run(&self, frame: &[u8]) -> Output {
        run(self.program(), frame, 0)
    }

    /// The same where the driver leaves less than the usual room in front of the frame.
    pub fn run_with_metadata(&self, frame: &[u8], metadata: usize) -> Output {
        run(self.program(), frame, metadata)
    }

    fn program(&self) -> &Xdp {
        match self.ebpf.program("sluice") {
            Some(Program::Xdp(program)) => program,
            _ => unreachable!("loaded as such"),
        }
    }

    /// Runs the program on a frame and asserts all that came of it.
    #[track_caller]
    pub fn check(&mut self, name: &str, sent: &[u8], expected: &Expect) {
        self.check_by(name, sent, |_| expected.clone());
    }

    /// The same where the data plane has a choice: what is expected may depend on what it chose.
    #[track_caller]
    pub fn check_by(
        &mut self,
        name: &str,
        sent: &[u8],
        expected: impl FnOnce(&Output) -> Expect,
    ) -> Output {
        let before = self.tables.counters();
        let output = self.run(sent);
        let counters = self.tables.counters().since(&before);
        expected(&output).assert(name, sent, &output, &counters);
        output
    }

    /// The backend of a client's new connection, computed from the agent's ring.
    #[must_use]
    pub fn pick(&self, client: SocketAddr, listener: SocketAddr) -> u16 {
        self.scenario.pick(client, listener)
    }
}

/// Counters that are not zero, by service and outcome and by backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub outcomes: BTreeMap<(u16, Counted), u64>,
    pub backends: Backends,
}

impl Counters {
    /// What has been added since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = Self::default();
        for (key, now) in &self.outcomes {
            let rise = now - before.outcomes.get(key).copied().unwrap_or(0);
            if rise > 0 {
                since.outcomes.insert(*key, rise);
            }
        }
        for (id, now) in &self.backends {
            let rise = expect::rise(before.backends.get(id).copied().unwrap_or_default(), *now);
            if rise != Default::default() {
                since.backends.insert(*id, rise);
            }
        }
        since
    }

    /// The sum over all outcomes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.outcomes.values().sum()
    }
}
