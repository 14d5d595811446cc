//! The data plane under test: loaded by the agent's own loader, with maps of the wanted sizes.
//!
//! Nothing of it is seen outside: the pins are on a bpffs that only this process has.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
    programs::ProgramFd,
};
use lb_agent::{
    bpf::{Counters, Loaded, PinDir, TableSizes, load, specs::names, sys::open_pin},
    state::{maps::Maps, op::MapOp},
};
use lb_common::{
    abi::{Edge as Settings, VERSION},
    addr::{Addr, Tuple, V4, V6},
    counters::BackendCounters,
    flow::Flow,
    next_hop::NextHop,
    outcome::{DropReason, NO_SERVICE},
    service::{Backend, Service, affinity, family},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    frame::Link,
    memory,
    scenario::{self, BACKENDS, FromIp, Scenario, TO_CLIENTS},
};

/// The loopback device: where `BPF_PROG_TEST_RUN` says that packets come from. With next hops on the
/// same device the program answers `XDP_TX`, as the floor does.
const DEVICE: u32 = 1;
/// Id of the only service.
const SERVICE: u16 = 1;
const BPFFS: &str = "/sys/fs/bpf";

/// Gives this process a bpffs of its own, which vanishes with it.
pub fn private_bpffs() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot leave the mount namespace: is this root?")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("{BPFFS}: cannot mount a bpffs"))
}

/// How large the flow tables are, and whether their memory is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pub capacity: u32,
    pub preallocate: bool,
}

/// A loaded data plane.
pub struct Edge {
    loaded: Loaded,
    maps: Maps,
    counters: Counters,
    flows4: HashMap<MapData, Tuple<V4>, Flow<V4>>,
    flows6: HashMap<MapData, Tuple<V6>, Flow<V6>>,
    /// The same two again, for what only their descriptors tell.
    tables: [OwnedFd; 2],
}

impl Edge {
    pub fn load(object: &[u8], name: &str, table: Table) -> Result<Self> {
        let pins = PinDir::at(Path::new(BPFFS).join(name));
        let sizes = TableSizes {
            flows_ipv4: table.capacity,
            flows_ipv6: table.capacity,
            handshakes: 1024,
            preallocate: table.preallocate,
            services: u32::from(SERVICE),
            backends: u32::from(BACKENDS),
        };
        let loaded = load(object, &pins, &sizes)?;
        let edge = Self {
            maps: Maps::from_pins(&pins.path().join("maps"))?,
            counters: Counters::open(&pins)?,
            flows4: flows(&pins, names::FLOWS4)?,
            flows6: flows(&pins, names::FLOWS6)?,
            tables: [
                open_pin(&pins.map_path(names::FLOWS4))?,
                open_pin(&pins.map_path(names::FLOWS6))?,
            ],
            loaded,
        };
        // From here on the descriptors keep it all.
        lb_agent::bpf::unload(&pins)?;
        Ok(edge)
    }

    pub fn program(&self) -> &ProgramFd {
        self.loaded.program()
    }

    /// Writes the service's backends and next hops.
    pub fn configure(&mut self, scenario: Scenario) -> Result<()> {
        self.maps.apply(&MapOp::SetEdge(Settings {
            abi_version: VERSION,
            nat_port_count: 1,
            ..Settings::default()
        }))?;
        let service =
            Service { forward: scenario.forward(), affinity: affinity::NONE, ..Service::default() };
        self.maps.apply(&MapOp::SetService { id: SERVICE, service })?;
        for id in 1..=BACKENDS {
            self.maps.apply(&MapOp::SetBackend { id, backend: backend(scenario, id) })?;
        }
        for id in 1..=TO_CLIENTS {
            self.maps.apply(&MapOp::SetNextHop { id, hop: next_hop(id) })?;
        }
        Ok(())
    }

    /// Enters the flows with these numbers.
    pub fn fill(&mut self, scenario: Scenario, numbers: std::ops::Range<u32>) -> Result<()> {
        if scenario.is_ipv4() {
            fill(&mut self.flows4, scenario, numbers)
        } else {
            fill(&mut self.flows6, scenario, numbers)
        }
    }

    /// Removes the flows with these numbers.
    pub fn clear(&mut self, scenario: Scenario, numbers: std::ops::Range<u32>) -> Result<()> {
        if scenario.is_ipv4() {
            clear(&mut self.flows4, scenario, numbers)
        } else {
            clear(&mut self.flows6, scenario, numbers)
        }
    }

    /// What the flow table keeps of a flow: when it was last seen, in ticks, and its packets.
    pub fn seen(&self, scenario: Scenario, number: u32) -> Result<(u32, u32)> {
        if scenario.is_ipv4() {
            seen(&self.flows4, scenario, number)
        } else {
            seen(&self.flows6, scenario, number)
        }
    }

    /// Bytes which the kernel accounts to the flow table of a scenario.
    pub fn table_bytes(&self, scenario: Scenario) -> Result<u64> {
        let [v4, v6] = &self.tables;
        memory::accounted(if scenario.is_ipv4() { v4 } else { v6 }.as_raw_fd())
    }

    /// Packets that were forwarded, by the counters of all backends; an error if any was dropped.
    pub fn forwarded(&self, scenario: Scenario) -> Result<u64> {
        for service in [NO_SERVICE, SERVICE] {
            let outcomes = self.counters.service(service)?;
            for &reason in DropReason::ALL {
                let drops = outcomes.drops(reason);
                ensure!(drops == 0, "{drops} packets were dropped: {}", reason.help());
            }
        }
        let mut sum = BackendCounters::default();
        for id in 1..=BACKENDS {
            sum += self.counters.backend(id)?;
        }
        let (counted, other) = if scenario.is_back() {
            (sum.to_client_packets, sum.to_backend_packets)
        } else {
            (sum.to_backend_packets, sum.to_client_packets)
        };
        ensure!(other == 0, "{other} packets went the wrong way");
        Ok(counted)
    }

    /// Sets all counters to zero.
    pub fn clear_counters(&mut self) -> Result<()> {
        for service in [NO_SERVICE, SERVICE] {
            self.counters.clear_service(service)?;
        }
        (1..=BACKENDS).try_for_each(|id| self.counters.clear_backend(id))
    }
}

/// The MAC addresses in frames to a next hop.
pub fn link_of(next_hop: u16) -> Link {
    let [high, low] = next_hop.to_be_bytes();
    [[2, 0, 0, 1, high, low], [2, 0, 0, 0, 0, 1]]
}

fn next_hop(id: u16) -> NextHop {
    let [dst, src] = link_of(id);
    NextHop { ifindex: DEVICE, mtu: 1500, dst, src, ..NextHop::default() }
}

fn backend(scenario: Scenario, id: u16) -> Backend {
    let v4 = scenario.backends_are_ipv4();
    Backend {
        addr: words(scenario::backend(v4, id)),
        tunnel_source: words(scenario::tunnel_source(v4)),
        port: 9000_u16.to_be(),
        service: SERVICE,
        next_hop: id,
        family: if v4 { family::V4 } else { family::V6 },
        ..Backend::default()
    }
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [V4::from(address).0, 0, 0, 0],
        IpAddr::V6(address) => V6::from(address).0,
    }
}

fn flows<A: Addr>(pins: &PinDir, name: &str) -> Result<HashMap<MapData, Tuple<A>, Flow<A>>>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    match pins.map(name)? {
        map @ Map::HashMap(_) => Ok(map.try_into()?),
        _ => bail!("map {name}: not a hash map"),
    }
}

fn fill<A: Addr + FromIp>(
    flows: &mut HashMap<MapData, Tuple<A>, Flow<A>>,
    scenario: Scenario,
    numbers: std::ops::Range<u32>,
) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    for number in numbers {
        let (key, flow) = scenario.entry(number);
        flows.insert(key, flow, 0).with_context(|| format!("flow {number} finds no room"))?;
    }
    Ok(())
}

fn clear<A: Addr + FromIp>(
    flows: &mut HashMap<MapData, Tuple<A>, Flow<A>>,
    scenario: Scenario,
    numbers: std::ops::Range<u32>,
) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    for number in numbers {
        flows
            .remove(&scenario.entry(number).0)
            .with_context(|| format!("flow {number} is gone"))?;
    }
    Ok(())
}

fn seen<A: Addr + FromIp>(
    flows: &HashMap<MapData, Tuple<A>, Flow<A>>,
    scenario: Scenario,
    number: u32,
) -> Result<(u32, u32)>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let flow = flows.get(&scenario.entry(number).0, 0)?;
    Ok((flow.last_seen, flow.packets))
}

/// Reads an object file.
pub fn object(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: run `cargo xtask build`", path.display()))
}
