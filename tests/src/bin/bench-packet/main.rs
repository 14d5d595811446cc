//! What a packet of an established flow costs in the data plane (`cargo xtask bench packet`).
//!
//! ```text
//! BPF_PROG_TEST_RUN -> driver (restores the frame, another client) -> tail call -> floor | program
//! ```
//! docs/benchmarks.md has the method and the results.

mod driver;
mod edge;
mod frame;
mod measure;
mod memory;
mod report;
mod scenario;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tests::cpus;

use crate::{
    driver::{Driver, Order},
    edge::{Edge, Table},
    measure::Effort,
    report::{Line, Memory},
    scenario::Scenario,
};

/// What the flow table holds by default, and twice that: half empty at a million flows.
const CAPACITIES: [u32; 2] = [1 << 20, 1 << 21];
const FLOWS: [u32; 4] = [1, 1_000, 100_000, 1_000_000];

/// Measures an established packet against the floor: the same driver with a program that only returns
/// XDP_TX.
///
/// A flow is an entry of the flow table; a connection has two in nat. Without choices, every
/// scenario runs on a preallocated table of the default capacity, and ipip4 on the others too.
#[derive(Parser)]
struct Arguments {
    /// Fewer and shorter rounds: a first impression
    #[arg(long)]
    quick: bool,
    /// What to measure; all if not given
    #[arg(long = "mode", value_name = "MODE")]
    modes: Vec<Scenario>,
    /// How many flows the packets belong to
    #[arg(long, value_name = "N", default_values_t = FLOWS)]
    flows: Vec<u32>,
    /// Entries that the flow table has room for
    #[arg(long = "capacity", value_name = "N", default_values_t = CAPACITIES)]
    capacities: Vec<u32>,
    /// When the table takes its memory: at once, as flows come, or one after the other
    #[arg(long, value_enum, default_value_t = Preallocate::Both)]
    preallocate: Preallocate,
    /// In which order flows have their packets
    #[arg(long, value_enum, default_value_t = Order::Random)]
    order: Order,
    /// Samples of each number
    #[arg(long)]
    rounds: Option<u32>,
    /// Packets of one sample
    #[arg(long)]
    packets: Option<u32>,
    /// Build of the program to measure in place of the one in this binary; with several, in turn
    #[arg(long = "object", value_name = "FILE")]
    objects: Vec<PathBuf>,
    /// The results as JSON
    #[arg(long)]
    json: bool,
    /// The driver's object file
    #[arg(
        long,
        env = "SLUICE_BENCH_OBJECT",
        hide_env_values = true,
        default_value = "target/bpf/bench.o"
    )]
    driver: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preallocate {
    Yes,
    No,
    Both,
}

impl Arguments {
    fn effort(&self) -> Effort {
        let (rounds, packets, warm_up) =
            if self.quick { (5, 200_000, 100) } else { (21, 500_000, 300) };
        Effort {
            rounds: self.rounds.unwrap_or(rounds).max(1),
            packets: self.packets.unwrap_or(packets).max(1),
            warm_up: Duration::from_millis(warm_up),
            order: self.order,
        }
    }

    fn tables(&self) -> Vec<Table> {
        let kinds: &[bool] = match self.preallocate {
            Preallocate::Yes => &[true],
            Preallocate::No => &[false],
            Preallocate::Both => &[true, false],
        };
        let of = |&preallocate: &bool| {
            self.capacities.iter().map(move |&capacity| Table { capacity, preallocate })
        };
        kinds.iter().flat_map(of).collect()
    }

    fn scenarios(&self, is_first_table: bool) -> Vec<Scenario> {
        match (self.modes.is_empty(), is_first_table) {
            (false, _) => self.modes.clone(),
            (true, true) => Scenario::value_variants().to_vec(),
            (true, false) => vec![Scenario::Ipip4],
        }
    }

    /// The builds of the program, by the names under which they are reported.
    fn programs(&self) -> Result<Vec<(String, Vec<u8>)>> {
        if self.objects.is_empty() {
            return Ok(vec![("sluice".to_owned(), lb_agent::object::ebpf()?.to_vec())]);
        }
        let name = |path: &PathBuf| path.file_stem().unwrap_or_default().display().to_string();
        self.objects.iter().map(|path| Ok((name(path), edge::object(path)?))).collect()
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut flows = arguments.flows.clone();
    flows.sort_unstable();
    flows.dedup();
    flows.iter().try_for_each(|&flows| driver::check_flows(flows))?;
    edge::private_bpffs()?;
    stay_on_one_cpu()?;

    let mut bench = Bench {
        driver: Driver::load(&arguments.driver)?,
        programs: arguments.programs()?,
        effort: arguments.effort(),
        prints: !arguments.json,
        flows,
        lowest_floor: f64::INFINITY,
        lines: Vec::new(),
        memories: Vec::new(),
    };
    if bench.prints {
        report::head(bench.programs.len());
    }
    for (n, table) in arguments.tables().into_iter().enumerate() {
        bench.table(table, &arguments.scenarios(n == 0))?;
    }
    if arguments.json {
        let all = serde_json::json!({ "order": arguments.order, "packets": bench.lines, "memory": bench.memories });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        report::memory(&bench.memories);
    }
    Ok(())
}

struct Bench {
    driver: Driver,
    programs: Vec<(String, Vec<u8>)>,
    effort: Effort,
    prints: bool,
    /// In ascending order: the table is filled on from one to the next.
    flows: Vec<u32>,
    /// In nanoseconds a packet, of all that was measured so far.
    lowest_floor: f64,
    lines: Vec<Line>,
    memories: Vec<Memory>,
}

impl Bench {
    /// Measures some scenarios on a table of one kind.
    fn table(&mut self, table: Table, scenarios: &[Scenario]) -> Result<()> {
        let load = |(n, (name, object)): (usize, &(String, Vec<u8>))| {
            Edge::load(object, &format!("bench-{n}"), table).with_context(|| name.clone())
        };
        let mut edges = self.programs.iter().enumerate().map(load).collect::<Result<Vec<_>>>()?;
        for &scenario in scenarios {
            self.scenario(&mut edges, table, scenario)?;
        }
        Ok(())
    }

    fn scenario(&mut self, edges: &mut [Edge], table: Table, scenario: Scenario) -> Result<()> {
        let empty = edges[0].table_bytes(scenario)?;
        let before = memory::unreclaimable()?;
        edges.iter_mut().try_for_each(|edge| edge.configure(scenario))?;
        let mut filled = 0;
        for flows in self.flows.clone() {
            ensure!(
                flows <= table.capacity,
                "{flows} flows do not fit into a table of {}",
                table.capacity
            );
            for edge in &mut *edges {
                edge.fill(scenario, filled..flows)?;
            }
            filled = flows;
            let spreads =
                measure::interleaved(&mut self.driver, edges, scenario, flows, &self.effort)?;
            for ((name, _), packet) in self.programs.iter().zip(&spreads[1..]) {
                self.lowest_floor = self.lowest_floor.min(spreads[0].median);
                let line = Line::new(scenario, table, flows, name, spreads[0], *packet)
                    .against(self.lowest_floor);
                if self.prints {
                    report::line(&line, self.programs.len());
                }
                self.lines.push(line);
            }
        }
        let grown = |now: u64, then: u64| (now as f64 - then as f64) / f64::from(filled);
        self.memories.push(Memory {
            scenario: scenario.name(),
            capacity: table.capacity,
            preallocate: table.preallocate,
            empty: empty as f64 / f64::from(table.capacity),
            flows: filled,
            accounted: grown(edges[0].table_bytes(scenario)?, empty),
            allocated: grown(memory::unreclaimable()?, before) / edges.len() as f64,
        });
        edges.iter_mut().try_for_each(|edge| edge.clear(scenario, 0..filled))
    }
}

/// Moves this process to the last CPU it may use; the first one has more interrupts to serve.
fn stay_on_one_cpu() -> Result<()> {
    let allowed = cpus::allowed()?;
    cpus::keep_to(&[*allowed.last().context("this process may run on no CPU")?])
}
