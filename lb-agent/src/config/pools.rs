//! `[[service.pool]]`: backends beside those of the default pool, for routes to send requests to.

use lb_sidecar::settings::{Balance, DEFAULT_POOL};

use super::address;
use super::backend::{self, Backend, Known};
use super::error::{Place, Problems};
use super::l7;
use super::reader::{Reader, Section};
use super::service::ModeKind;
use super::unique::Unique;

pub(super) static POOL: Section =
    Section { heading: "[[service.pool]]", keys: &["name", "balance", "backend"] };

/// Each may need a ring of 128 KiB in every worker.
const MOST_POOLS: usize = 64;

/// A pool without its backends.
pub(super) struct ReadPool {
    pub name: String,
    /// If it is another than the service's.
    pub balance: Option<Balance>,
    /// The table.
    pub place: Place,
}

/// The pools of a service, and their backends.
pub(super) struct ReadPools {
    pub pools: Vec<ReadPool>,
    pub backends: Vec<(Backend, Place)>,
    /// False if a backend could not be read.
    pub complete: bool,
}

impl Default for ReadPools {
    fn default() -> Self {
        Self { pools: Vec::new(), backends: Vec::new(), complete: true }
    }
}

pub(super) fn read(
    outer: &Reader<'_>,
    known: &mut Known<'_>,
    problems: &Problems<'_>,
) -> ReadPools {
    let mut read = ReadPools::default();
    let mut names = Unique::new(problems);
    let (number, readers) = outer.tables("pool", &POOL);
    read.complete = number == readers.len();
    for (n, reader) in readers.into_iter().enumerate() {
        let reader = reader.named_by(&outer.place, "pool", n + 1, &["name"]);
        if n == MOST_POOLS {
            let remedy = "make services of their own of some";
            problems.error(&reader.place, format!("is one more than {MOST_POOLS}"), remedy);
        }
        let name = name(&reader, &mut names);
        let number = u16::try_from(n + 1).unwrap_or(u16::MAX);
        match backend::read(&reader, number, Some(ModeKind::L7), known) {
            Some(backends) => read.backends.extend(backends),
            None => read.complete = false,
        }
        read.pools.push(ReadPool { name, balance: l7::balance(&reader), place: reader.place });
    }
    read
}

fn name(reader: &Reader<'_>, names: &mut Unique<'_, String>) -> String {
    const EXAMPLE: &str = r#""canary""#;
    let Some(field) = reader.required("name", EXAMPLE) else { return String::new() };
    let Some(name) = address::name(&field, "._-", EXAMPLE) else { return String::new() };
    if name == DEFAULT_POOL {
        let remedy = "write another name, or make its backends [[service.backend]]";
        field.refuse("is the pool of [[service.backend]]", remedy);
    }
    names.insert(name.clone(), &field.place, "give each pool of a service a name of its own");
    name
}
