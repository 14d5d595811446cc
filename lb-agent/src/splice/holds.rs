//! What an agent that died in the midst of a splice left in the flow tables: entries that drop all that comes.

use std::io;

use aya::Pod;
use lb_common::{
    addr::{Tuple, V4, V6},
    flow::{Flow, flags, forward},
};

use crate::{
    bpf::PinDir,
    flows::table::{self, Family, FlowTable},
};

/// Removes them all; how many there were. Only before the first offer is heard: later they may be one's own.
pub fn clear(pins: &PinDir) -> io::Result<usize> {
    Ok(clear_family::<V4>(pins)? + clear_family::<V6>(pins)?)
}

fn clear_family<A: Family>(pins: &PinDir) -> io::Result<usize>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let mut table = table::flows::<A>(pins)?;
    let (mut entries, mut position, mut cleared) = (Vec::new(), None, 0);
    loop {
        position = table.batch(position, &mut entries)?;
        for entry in &entries {
            let Flow { forward, flags, .. } = entry.flow;
            if forward == forward::SPLICE && flags & flags::HOLD != 0 {
                cleared += usize::from(table.remove(&entry.key)?);
            }
        }
        if position.is_none() {
            return Ok(cleared);
        }
    }
}
