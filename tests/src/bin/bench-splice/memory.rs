//! What an idle connection takes of the edge's memory: processes, kernel and tables.
//!
//! Clients and servers are on the same machine, and their sockets are in the same kernel. What these take is
//! measured without an edge, by routed connections, and taken off.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::bench::{
    Spread, haproxy,
    load::{self, Echoes},
    report::Report,
};

use crate::{
    What,
    clients::{Idle, MOST},
    table,
    target::{Running, Target},
};

/// After it everybody has given back what only handshakes and messages need.
const SETTLE: Duration = Duration::from_secs(4);
/// Connections that are opened and closed before memory is taken as the ground.
const FIRST: usize = 200;

pub struct Plan {
    pub connections: usize,
    pub rounds: u32,
    pub threads: u32,
}

/// Bytes of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes {
    processes: f64,
    kernel: f64,
    /// Of tables that are taken at start, by their capacity.
    table: f64,
}

pub fn measure(targets: &[Target], plan: &Plan, report: &mut Report<What>) -> Result<()> {
    let ends = samples(Target::Routed, plan)?;
    let ends = Spread::of(ends.iter().map(|it| it.kernel).collect());
    report.number(What::Memory, "bytes of both ends", "routed", ends);
    for &target in
        targets.iter().filter(|target| !matches!(target, Target::Routed | Target::HaproxyXdp))
    {
        let samples = samples(target, plan)?;
        type Number<'a> = &'a dyn Fn(&Bytes) -> f64;
        let numbers: [(&str, Number<'_>); 4] = [
            ("bytes of processes", &|it| it.processes),
            ("bytes of the kernel", &|it| it.kernel - ends.median),
            ("bytes of tables", &|it| it.table),
            ("bytes/connection", &|it| it.processes + it.kernel - ends.median + it.table),
        ];
        for (unit, number) in numbers {
            let spread = Spread::of(samples.iter().map(number).collect());
            report.number(What::Memory, unit, target.name(), spread);
        }
    }
    report.bound(What::Memory, "bytes/connection", "spliced", ("<=", 400.0));
    report.ratio(What::Memory, "bytes/connection", ["spliced", "haproxy"], None);
    report.ratio(What::Memory, "bytes/connection", ["spliced", "nginx"], None);
    Ok(())
}

fn samples(target: Target, plan: &Plan) -> Result<Vec<Bytes>> {
    let most = match target {
        Target::Routed | Target::Spliced => plan.connections,
        // One process has all of its descriptors, two for each connection.
        Target::Haproxy | Target::HaproxyXdp => {
            plan.connections.min(haproxy::most_connections()? as usize)
        }
        // Its workers do not share them out evenly.
        Target::Relay | Target::Nginx => {
            let each = haproxy::most_connections()? as usize * 9 / 10;
            plan.connections.min(each * plan.threads as usize * 8 / 10)
        }
    };
    let one = |_| sample(target, plan.threads, most);
    let samples = (0..plan.rounds).map(one).collect::<Result<Vec<_>>>();
    samples.with_context(|| format!("{most} idle connections through {}", target.name()))
}

fn sample(target: Target, threads: u32, connections: usize) -> Result<Bytes> {
    let servers = u16::try_from(connections.div_ceil(MOST / 2))?;
    let running = Running::start(target, threads, servers, connections)?;
    let warm_up = || Echoes::start(load::open(&running.entrance(), FIRST)?)?.finish();
    drop(running.site.client.run(warm_up)?);
    sleep(SETTLE);
    let before = (running.account.memory()?, kernel()?);
    let opened = Idle::open(&running, connections);
    let idle = opened.with_context(|| running.counted())?;
    running.wait_spliced(connections)?;
    sleep(SETTLE);
    let after = (running.account.memory()?, kernel()?);
    idle.check()?;
    let each = |after: u64, before: u64| (after as f64 - before as f64) / connections as f64;
    let table = match (target, running.edge()) {
        (Target::Spliced, Some(edge)) => 2.0 * table::bytes_of_entry(edge)?,
        _ => 0.0,
    };
    Ok(Bytes { processes: each(after.0, before.0), kernel: each(after.1, before.1), table })
}

/// Bytes of the kernel's slabs for sockets, files, readiness, packets and what has no slab of its own.
///
/// Names of files have one, but those of /proc are in it, too, and come and go: each socket's is one more entry.
fn kernel() -> Result<u64> {
    const SLABS: [&str; 16] = [
        "TCP",
        "UNIX",
        "tw_sock_",
        "request_sock_",
        "tcp_bind",
        "sock_inode",
        "filp",
        "lsm_file",
        "lsm_inode",
        "eventpoll_",
        "ep_head",
        "skbuff_",
        "kmalloc-",
        "ip_dst",
        "ip6_dst",
        "xfrm_dst",
    ];
    // What is cached of files that nobody has open goes.
    fs::write("/proc/sys/vm/drop_caches", "2").context("/proc/sys/vm/drop_caches")?;
    let path = "/proc/slabinfo";
    let text = fs::read_to_string(path).context(path)?;
    let (mut bytes, mut sockets, mut name) = (0, 0, 0);
    for line in text.lines().skip(2) {
        // name active objects size per-slab pages : tunables ... : slabdata active slabs shared
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| words.get(place).and_then(|it| it.parse::<u64>().ok());
        let all = [2, 3, 5, 14].map(number);
        let [Some(objects), Some(size), Some(pages), Some(slabs)] = all else { continue };
        match words[0] {
            "sock_inode_cache" => sockets = objects,
            "dentry" => name = size,
            _ => {}
        }
        if SLABS.iter().any(|it| words[0].starts_with(it)) {
            bytes += slabs * pages * 4096;
        }
    }
    ensure!(sockets > 0 && name > 0, "{path}: not as expected");
    Ok(bytes + sockets * name)
}
