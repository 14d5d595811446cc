//! The tables of the data plane which hold flows, read in batches.

use std::{io, path::Path};

use aya::Pod;
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    flow::Flow,
    handshake::{self, Handshake},
};
use nix::libc;

use super::aging::{Entry, Stage};
use crate::bpf::{
    PinDir,
    specs::names,
    sys::{Bucket, HashFd},
};

/// Entries that are read at once: 300 KiB of IPv4 flows.
const BATCH: usize = 4_096;

/// What the sweep needs of a table.
pub trait FlowTable<A> {
    /// Where a walk goes on.
    type Position: Copy;

    /// Replaces the contents of `entries` by those that follow `from`, or the first ones, and returns
    /// where the next ones are. An entry that stays is seen once in a walk; one that comes or goes
    /// meanwhile may be missed, or seen twice.
    fn batch(
        &mut self,
        from: Option<Self::Position>,
        entries: &mut Vec<Entry<A>>,
    ) -> io::Result<Option<Self::Position>>;

    /// The entry of a key.
    fn get(&self, key: &Tuple<A>) -> io::Result<Option<Entry<A>>>;

    /// Removes a key; false if it was not there.
    fn remove(&mut self, key: &Tuple<A>) -> io::Result<bool>;
}

/// What a table keeps for a tuple.
pub trait Value<A>: Pod {
    fn flow(&self) -> &Flow<A>;

    fn stage(&self) -> Stage;

    fn entry(&self, key: Tuple<A>) -> Entry<A>
    where
        A: Copy,
    {
        Entry { key, flow: *self.flow(), stage: self.stage() }
    }
}

impl<A: Copy + 'static> Value<A> for Flow<A>
where
    Self: Pod,
{
    fn flow(&self) -> &Self {
        self
    }

    fn stage(&self) -> Stage {
        Stage::Flow
    }
}

impl<A: Copy + 'static> Value<A> for Handshake<A>
where
    Self: Pod,
{
    fn flow(&self) -> &Flow<A> {
        &self.flow
    }

    fn stage(&self) -> Stage {
        match self.flags & handshake::flags::COMPLETED {
            0 => Stage::HalfOpen,
            _ => Stage::Waiting,
        }
    }
}

/// An IP version that has tables.
pub trait Family: Addr {
    /// Name of the flow table.
    const FLOWS: &str;
    /// Name of the handshake table, which also has the flows that found no room in the other one.
    const HANDSHAKES: &str;
}

impl Family for V4 {
    const FLOWS: &str = names::FLOWS4;
    const HANDSHAKES: &str = names::HANDSHAKES4;
}

impl Family for V6 {
    const FLOWS: &str = names::FLOWS6;
    const HANDSHAKES: &str = names::HANDSHAKES6;
}

/// A pinned table in the kernel.
pub struct KernelTable<A, V> {
    map: HashFd<Tuple<A>, V>,
    batches: bool,
    buffer: Vec<(Tuple<A>, V)>,
}

/// Where a walk through a [`KernelTable`] goes on.
#[derive(Clone, Copy, Debug)]
pub enum Position<A> {
    Bucket(Bucket),
    /// A kernel without batches: the next key, and how many were walked.
    Key(Tuple<A>, u32),
}

/// The established flows of an edge.
pub fn flows<A: Family>(pins: &PinDir) -> io::Result<KernelTable<A, Flow<A>>>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    KernelTable::open(&pins.map_path(A::FLOWS))
}

/// The handshakes of an edge. They too name backends, so an id is free only when neither table has it.
pub fn handshakes<A: Family>(pins: &PinDir) -> io::Result<KernelTable<A, Handshake<A>>>
where
    Tuple<A>: Pod,
    Handshake<A>: Pod,
{
    KernelTable::open(&pins.map_path(A::HANDSHAKES))
}

impl<A: Addr, V: Value<A>> KernelTable<A, V>
where
    Tuple<A>: Pod,
{
    /// Opens the table that is pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { map: HashFd::open(path)?, batches: true, buffer: Vec::new() })
    }

    /// Most entries that the table can hold.
    pub fn capacity(&self) -> u32 {
        self.map.capacity()
    }

    /// Walks key by key, as kernels have to that cannot read this map in batches.
    pub fn without_batches(mut self) -> Self {
        self.batches = false;
        self
    }

    fn one_by_one(
        &self,
        start: Option<(Tuple<A>, u32)>,
        entries: &mut Vec<Entry<A>>,
    ) -> io::Result<Option<Position<A>>> {
        let (mut key, mut walked) = match start {
            Some((key, walked)) => (Some(key), walked),
            None => (self.map.next_key(None)?, 0),
        };
        while let Some(current) = key {
            // If a key is removed while it is the position, the kernel starts over: end at some time.
            if walked > self.capacity() {
                return Ok(None);
            }
            if entries.len() == BATCH {
                return Ok(Some(Position::Key(current, walked)));
            }
            if let Some(value) = self.map.lookup(&current)? {
                entries.push(value.entry(current));
            }
            key = self.map.next_key(Some(&current))?;
            walked += 1;
        }
        Ok(None)
    }
}

impl<A: Addr, V: Value<A>> FlowTable<A> for KernelTable<A, V>
where
    Tuple<A>: Pod,
{
    type Position = Position<A>;

    fn batch(
        &mut self,
        from: Option<Position<A>>,
        entries: &mut Vec<Entry<A>>,
    ) -> io::Result<Option<Position<A>>> {
        entries.clear();
        let bucket = match from {
            Some(Position::Bucket(bucket)) => Some(bucket),
            Some(Position::Key(key, walked)) => {
                return self.one_by_one(Some((key, walked)), entries);
            }
            None if !self.batches => return self.one_by_one(None, entries),
            None => None,
        };
        match self.map.lookup_batch(bucket, BATCH, &mut self.buffer) {
            Ok(next) => {
                entries.extend(self.buffer.iter().map(|(key, value)| value.entry(*key)));
                Ok(next.map(Position::Bucket))
            }
            // The kernel's own ENOTSUPP, which libc does not have, is 524.
            Err(error)
                if from.is_none()
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EINVAL | libc::EOPNOTSUPP | 524)
                    ) =>
            {
                tracing::debug!("the kernel cannot read this map in batches: {error}");
                self.batches = false;
                self.one_by_one(None, entries)
            }
            Err(error) => Err(error),
        }
    }

    fn get(&self, key: &Tuple<A>) -> io::Result<Option<Entry<A>>> {
        Ok(self.map.lookup(key)?.map(|value| value.entry(*key)))
    }

    fn remove(&mut self, key: &Tuple<A>) -> io::Result<bool> {
        self.map.delete(key)
    }
}
