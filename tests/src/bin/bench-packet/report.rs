//! What was measured, for people and for programs.

use serde::Serialize;

use crate::{edge::Table, measure::Spread, scenario::Scenario};

/// What an established IPv4 `ipip` packet may cost above the floor, in floors.
const HOT: Target = Target { flows: 1, floors: 3.0 };
const MILLION: Target = Target { flows: 1_000_000, floors: 7.5 };
/// What an entry of the IPv4 flow table may take, in bytes.
const ENTRY_BYTES: f64 = 160.0;

struct Target {
    flows: u32,
    floors: f64,
}

/// One line: a scenario, with so many flows, by one build of the program.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub scenario: &'static str,
    pub capacity: u32,
    pub preallocate: bool,
    pub flows: u32,
    pub object: String,
    pub floor: Spread,
    pub packet: Spread,
    /// How many floors the packet costs above the floor.
    pub floors: f64,
    /// The floor was far above the lowest of this run, so something else was going on: a ratio to it
    /// would flatter.
    pub disturbed: bool,
}

/// From so much of the lowest floor on, a floor is not one.
const DISTURBED: f64 = 1.25;

impl Line {
    pub fn new(
        scenario: Scenario,
        table: Table,
        flows: u32,
        object: &str,
        floor: Spread,
        packet: Spread,
    ) -> Self {
        Self {
            scenario: scenario.name(),
            capacity: table.capacity,
            preallocate: table.preallocate,
            flows,
            object: object.to_owned(),
            floor,
            packet,
            floors: (packet.median - floor.median) / floor.median,
            disturbed: false,
        }
    }

    /// Compares the floor with the lowest one of the run so far.
    pub fn against(mut self, lowest_floor: f64) -> Self {
        self.disturbed = self.floor.median > lowest_floor * DISTURBED;
        self
    }

    /// The target that this line is measured against, and whether it is reached.
    fn target(&self) -> Option<(f64, bool)> {
        let named = self.scenario == Scenario::Ipip4.name() && self.preallocate;
        let target = [HOT, MILLION].into_iter().find(|target| target.flows == self.flows)?;
        named.then_some((target.floors, self.floors <= target.floors))
    }
}

/// What the entries of a flow table take.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub scenario: &'static str,
    pub capacity: u32,
    pub preallocate: bool,
    /// Bytes accounted to the table when it is empty, for each entry of its capacity.
    pub empty: f64,
    pub flows: u32,
    /// Bytes by which what is accounted to it has grown, for each flow in it.
    pub accounted: f64,
    /// Bytes by which the kernel's allocators have grown, for each flow in it.
    pub allocated: f64,
}

pub fn head(objects: usize) {
    let object = if objects > 1 { "object                " } else { "" };
    println!(
        "{object}scenario    table                flows   floor ns   packet ns       quartiles   \
         floors above"
    );
}

pub fn line(line: &Line, objects: usize) {
    if objects > 1 {
        print!("{:<22}", line.object);
    }
    let target = match line.target() {
        _ if line.disturbed => "  disturbed: measure again".to_owned(),
        Some((most, true)) => format!("  reached (at most {most})"),
        Some((most, false)) => format!("  MISSED (at most {most})"),
        None => String::new(),
    };
    println!(
        "{:<11} {:<17} {:>8}   {:>8.1}   {:>9.1}   {:>6.1} {:>6.1}   {:>12.2}{target}",
        line.scenario,
        table(line.capacity, line.preallocate),
        line.flows,
        line.floor.median,
        line.packet.median,
        line.packet.quartiles[0],
        line.packet.quartiles[1],
        line.floors,
    );
}

pub fn memory(memories: &[Memory]) {
    println!(
        "\nscenario    table              empty: bytes/capacity   growth: bytes/flow accounted   allocated"
    );
    for it in memories {
        let limited = it.scenario == Scenario::Ipip4.name() && it.preallocate;
        let target = match limited {
            true if it.empty <= ENTRY_BYTES => format!("  reached (at most {ENTRY_BYTES})"),
            true => format!("  MISSED (at most {ENTRY_BYTES})"),
            false => String::new(),
        };
        println!(
            "{:<11} {:<17}   {:>21.1}   {:>28.1} {:>11.1}{target}",
            it.scenario,
            table(it.capacity, it.preallocate),
            it.empty,
            it.accounted,
            it.allocated,
        );
    }
}

fn table(capacity: u32, preallocate: bool) -> String {
    format!("{capacity}{}", if preallocate { "" } else { " on demand" })
}
