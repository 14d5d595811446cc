//! Arrays with a value for each CPU, many elements in one call.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{Pod, maps::MapType};

use super::{BatchAttr, MAP_LOOKUP_BATCH, batch, kind, open_pin, raw};

/// An array whose type and sizes were checked once, so that reading it in batches is safe.
#[derive(Debug)]
pub struct PerCpuFd<V> {
    fd: OwnedFd,
    capacity: u32,
    cpus: usize,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> PerCpuFd<V> {
    /// Opens the map that is pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let wrong = |what: String| io::Error::other(format!("{}: {what}", path.display()));
        // The kernel gives each value room for whole words of eight bytes.
        assert!(size_of::<V>().is_multiple_of(8), "values that lie closely");
        let fd = open_pin(path)?;
        let found = kind(fd.as_fd())?;
        if found != "bpf-map" {
            return Err(wrong(format!("not a map but {found}")));
        }
        let map = aya::maps::MapData::from_fd(fd.try_clone()?).map_err(io::Error::other)?;
        let info = map.info().map_err(io::Error::other)?;
        let map_type = info.map_type().map_err(io::Error::other)?;
        if map_type != MapType::PerCpuArray {
            return Err(wrong(format!("not an array for each CPU but {map_type:?}")));
        }
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        let wanted = (size_of::<u32>(), size_of::<V>());
        if sizes != wanted {
            return Err(wrong(format!("key and value of {sizes:?} bytes, wanted {wanted:?}")));
        }
        let cpus =
            aya::util::nr_cpus().map_err(|(path, error)| wrong(format!("{path}: {error}")))?;
        Ok(Self { fd, capacity: info.max_entries(), cpus, types: PhantomData })
    }

    /// The elements `first` to `first + number`, each with a value for every CPU, one after the other.
    pub fn read(&self, first: u32, number: u32) -> io::Result<Vec<V>> {
        // Beyond its end the kernel would begin anew.
        if first.checked_add(number).is_none_or(|end| end > self.capacity) {
            let what = format!("no elements {first} and {number} more: it has {}", self.capacity);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let wanted = number as usize;
        let mut keys: Vec<u32> = Vec::with_capacity(wanted);
        let mut values: Vec<V> = Vec::with_capacity(wanted * self.cpus);
        // The kernel begins after the element that it is given.
        let (before, mut last) = (first.wrapping_sub(1), 0_u32);
        let mut attr = BatchAttr {
            in_batch: if first > 0 { std::ptr::from_ref(&before) as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut last) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: number,
            map_fd: raw(self.fd.as_fd()),
            ..BatchAttr::default()
        };
        // SAFETY: `open` has checked that this is an array for each CPU, whose keys and batch positions are u32, and
        // that its values have the size of V, of which the kernel writes one for each CPU and element; there is room for
        // `count` keys and as many times `cpus` values, and all of it outlives the call.
        unsafe { batch(MAP_LOOKUP_BATCH, &mut attr) }?;
        if attr.count != number {
            return Err(io::Error::other(format!("{} elements of {number} were read", attr.count)));
        }
        // SAFETY: the kernel has written a value for each CPU of all `number` elements, and every bit pattern is a value
        // of a Pod type.
        unsafe { values.set_len(wanted * self.cpus) };
        Ok(values)
    }

    /// How many values an element has.
    pub fn cpus(&self) -> usize {
        self.cpus
    }
}
