//! The program `decap`, driven in the same way.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData},
    programs::{Program, Xdp},
};
use lb_common::{
    addr::{V4, V6},
    decap::{self, DecapDrop, DecapEvent, Key},
};

use super::{Output, batch::PerCpu, object, run};
use crate::privilege::require_root;

/// The program `decap` in the kernel, with its maps.
pub struct Decap {
    ebpf: Ebpf,
    counters: PerCpu<u64>,
}

impl Decap {
    /// Loads the program, for these VIPs.
    ///
    /// # Panics
    /// If the object is not built or the kernel refuses it.
    #[must_use]
    pub fn load(vips: &[IpAddr]) -> Self {
        require_root();
        let mut ebpf =
            EbpfLoader::new().load(&object("decap")).expect("the object's maps can be made");
        let program: &mut Xdp = ebpf
            .program_mut("decap")
            .expect("the object has the program")
            .try_into()
            .expect("it is an XDP program");
        program.load().expect("the kernel accepts the program");
        let map = ebpf.take_map(decap::VIPS).expect("the object has the map of VIPs");
        let mut map: HashMap<MapData, V6, u32> = map.try_into().expect("keys are addresses");
        for vip in vips {
            let key = match *vip {
                IpAddr::V4(addr) => V4::from(addr).key(),
                IpAddr::V6(addr) => V6::from(addr).key(),
            };
            map.insert(key, 0, 0).expect("the map has room");
        }
        let counters = ebpf.take_map(decap::COUNTERS).expect("the object has the counters");
        Self { ebpf, counters: PerCpu::new(counters) }
    }

    /// The test binary's one, loaded for these VIPs by whoever comes first. Tests take turns.
    pub fn shared(vips: &[IpAddr]) -> MutexGuard<'static, Self> {
        static SHARED: OnceLock<Mutex<Decap>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Mutex::new(Self::load(vips)));
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the program on a frame; `metadata` bytes before it take that much of the headroom away.
    pub fn run(&self, frame: &[u8], metadata: usize) -> Output {
        match self.ebpf.program("decap") {
            Some(Program::Xdp(program)) => run(program, frame, metadata),
            _ => unreachable!("loaded as such"),
        }
    }

    /// The counters that are not zero, by name.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let events = DecapEvent::ALL.iter().map(|event| (event.label(), event.index()));
        let drops = DecapDrop::ALL.iter().map(|reason| (reason.label(), reason.index()));
        let values = self.counters.read();
        let read = |index: u32| -> u64 { values[index as usize].iter().sum() };
        events
            .chain(drops)
            .map(|(label, index)| (label, read(index)))
            .filter(|it| it.1 > 0)
            .collect()
    }
}
