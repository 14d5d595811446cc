//! Per-CPU arrays, read and zeroed in one system call: aya has no batch calls, and element by element
//! the counters would take longer than all else in a packet case.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use lb_agent::bpf::sys::{self, BatchAttr, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH};
use nix::libc;

/// A per-CPU array whose type and value size were checked.
pub struct PerCpu<V> {
    map: MapData,
    len: usize,
    cpus: usize,
    values: PhantomData<V>,
}

impl<V: Pod + Default> PerCpu<V> {
    /// # Panics
    /// If it is another kind of map, or one with other values.
    pub fn new(map: Map) -> Self {
        let Map::PerCpuArray(map) = map else {
            panic!("not a per-CPU array: {map:?}");
        };
        let info = map.info().expect("the kernel describes the map");
        assert_eq!((info.key_size(), info.value_size()), (4, size_of::<V>() as u32));
        // The kernel gives each CPU's value a multiple of eight bytes.
        assert_eq!(size_of::<V>() % 8, 0);
        let cpus = aya::util::nr_cpus().expect("the number of CPUs is known");
        Self { len: info.max_entries() as usize, map, cpus, values: PhantomData }
    }

    /// The elements, each with one value for every CPU.
    pub fn read(&self) -> Vec<Vec<V>> {
        let mut values = vec![V::default(); self.len * self.cpus];
        let mut keys = vec![0_u32; self.len];
        let read = self.batch(MAP_LOOKUP_BATCH, &mut keys, &mut values);
        assert_eq!(read, self.len, "all elements at once");
        values.chunks(self.cpus).map(<[V]>::to_vec).collect()
    }

    /// Sets all values of all CPUs to zero.
    pub fn zero(&mut self) {
        let mut values = vec![V::default(); self.len * self.cpus];
        let mut keys: Vec<u32> = (0..self.len as u32).collect();
        let written = self.batch(MAP_UPDATE_BATCH, &mut keys, &mut values);
        assert_eq!(written, self.len, "all elements at once");
    }

    fn batch(&self, command: libc::c_int, keys: &mut [u32], values: &mut [V]) -> usize {
        assert_eq!((keys.len(), values.len()), (self.len, self.len * self.cpus));
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: self.len as u32,
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: the keys are u32 and the values have the size of V for each CPU (`new` checked it);
        // there is room for as many of them as `count` says, and all of it outlives the call.
        let result = unsafe { sys::batch(command, &mut attr) };
        // ENOENT says that there is nothing after the last element.
        if let Err(error) = result {
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "batch call: {error}");
        }
        attr.count as usize
    }
}
