//! The traced variant of the program, and what it tells.

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, RingBuf},
    util::nr_cpus,
};
use lb_common::trace::{Counts, Filter, Stage, Trace};

use super::{Dataplane, Sizes};

/// Its maps.
pub struct Tracer {
    filter: Array<MapData, Filter>,
    records: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Counts>,
}

impl Dataplane {
    /// Loads the traced variant, which tells nobody anything until there is a filter.
    ///
    /// # Panics
    /// If the object is not built or the kernel refuses it.
    #[must_use]
    pub fn load_traced(sizes: Sizes) -> (Self, Tracer) {
        let mut plane = Self::load_object(sizes, "traced");
        let tracer = Tracer::take(&mut plane.ebpf);
        (plane, tracer)
    }
}

impl Tracer {
    fn take(ebpf: &mut Ebpf) -> Self {
        let mut take = |name: &str| ebpf.take_map(name).unwrap_or_else(|| panic!("no map {name}"));
        Self {
            filter: take("TRACE_FILTER").try_into().expect("TRACE_FILTER"),
            records: take("TRACES").try_into().expect("TRACES"),
            counts: take("TRACE_COUNTS").try_into().expect("TRACE_COUNTS"),
        }
    }

    /// Sets a filter, which lasts for an hour, and zeroes the counts.
    ///
    /// # Panics
    /// If the map cannot be written.
    pub fn filter(&mut self, filter: Filter) {
        let hour = lb_common::abi::ticks_from_millis(3_600_000);
        let until = lb_agent::bpf::sys::now_ticks().wrapping_add(hour);
        self.filter_until(Filter { until, ..filter });
    }

    /// The same, as it is.
    ///
    /// # Panics
    /// If the map cannot be written.
    pub fn filter_until(&mut self, filter: Filter) {
        while self.records.next().is_some() {}
        let zeros = vec![Counts::default(); nr_cpus().expect("the kernel knows its CPUs")];
        let zeros = PerCpuValues::try_from(zeros).expect("one for each CPU");
        self.counts.set(0, zeros, 0).expect("the counts can be written");
        self.filter.set(0, filter, 0).expect("the filter can be written");
    }

    /// What was told since the filter was set, or this was asked.
    ///
    /// # Panics
    /// If a record is none.
    pub fn take_records(&mut self) -> Vec<Trace> {
        let mut records = Vec::new();
        while let Some(record) = self.records.next() {
            assert_eq!(record.len(), size_of::<Trace>());
            // SAFETY: as many bytes as a `Trace` has, which is integers without padding.
            records.push(unsafe { record.as_ptr().cast::<Trace>().read_unaligned() });
        }
        records
    }

    /// The counts of all CPUs.
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.counts.get(&0, 0).expect("the counts can be read").iter().for_each(|it| sum += *it);
        sum
    }
}

/// The stages of a record.
///
/// # Panics
/// If there is one that has no name.
#[must_use]
pub fn stages(record: &Trace) -> Vec<Stage> {
    let steps = &record.steps[..usize::from(record.len)];
    steps.iter().map(|it| Stage::from_number(it.stage).expect("a stage")).collect()
}
