//! Hash maps, read in batches.

use std::{
    io,
    marker::PhantomData,
    mem::zeroed,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{Pod, maps::MapInfo};
use nix::libc;

use super::{Attr, BatchAttr, MAP_LOOKUP_BATCH, batch, bpf, kind, open_pin, raw};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct ElemAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    /// Of the value, or of the next key.
    value: u64,
    flags: u64,
}

impl Attr for ElemAttr {}

/// A hash map whose type and sizes were checked once, so that reading it in batches is safe.
#[derive(Debug)]
pub struct HashFd<K, V> {
    fd: OwnedFd,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

/// Whether an entry is there before it is put: anything else is an error, `EEXIST` or `ENOENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// `BPF_NOEXIST`.
    New = 1,
    /// `BPF_EXIST`.
    Existing = 2,
}

/// Where a walk in batches goes on: the number of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket(u32);

impl Bucket {
    /// One that was seen before. The kernel refuses numbers that no bucket has.
    pub const fn at(number: u32) -> Self {
        Self(number)
    }

    pub const fn number(self) -> u32 {
        self.0
    }
}

impl<K: Pod, V: Pod> HashFd<K, V> {
    /// Opens the map that is pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let found = kind(fd.as_fd())?;
        if found != "bpf-map" {
            return Err(io::Error::other(format!("{}: not a map but {found}", path.display())));
        }
        let map = aya::maps::MapData::from_fd(fd.try_clone()?).map_err(io::Error::other)?;
        let info = map.info().map_err(io::Error::other)?;
        Self::check(&info).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
        Ok(Self { fd, capacity: info.max_entries(), types: PhantomData })
    }

    fn check(info: &MapInfo) -> Result<(), String> {
        use aya::maps::MapType;
        let map_type = info.map_type().map_err(|e| e.to_string())?;
        if !matches!(map_type, MapType::Hash | MapType::LruHash) {
            return Err(format!("not a hash map but {map_type:?}"));
        }
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        let wanted = (size_of::<K>(), size_of::<V>());
        if sizes != wanted {
            return Err(format!("key and value of {sizes:?} bytes, wanted {wanted:?}"));
        }
        Ok(())
    }

    /// Most entries that the map can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Reads about `size` entries (more if one bucket holds more), starting at the bucket `from`, and
    /// replaces the contents of `entries` by them. `None` comes back after the last bucket.
    ///
    /// What changes meanwhile may or may not be seen; what does not change is seen exactly once.
    pub fn lookup_batch(
        &self,
        from: Option<Bucket>,
        size: usize,
        entries: &mut Vec<(K, V)>,
    ) -> io::Result<Option<Bucket>> {
        entries.clear();
        let mut size = size.max(1);
        loop {
            let mut keys: Vec<K> = Vec::with_capacity(size);
            let mut values: Vec<V> = Vec::with_capacity(size);
            let start = from.map_or(0, |bucket| bucket.0);
            let mut next = 0_u32;
            let mut attr = BatchAttr {
                in_batch: if from.is_some() { std::ptr::from_ref(&start) as u64 } else { 0 },
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: size as u32,
                map_fd: raw(self.fd.as_fd()),
                ..BatchAttr::default()
            };
            // SAFETY: `open` has checked that this is a hash map, whose batch position is a u32, and
            // that its keys and values have the sizes of K and V; both vectors have room for `count`
            // of them, and all of it outlives the call.
            let result = unsafe { batch(MAP_LOOKUP_BATCH, &mut attr) };
            let last = match result {
                Ok(()) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // One bucket alone holds more than fits.
                    Some(libc::ENOSPC) if size < 1 << 20 => {
                        size *= 2;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let count = attr.count as usize;
            assert!(count <= size, "the kernel returned more entries than it was asked for");
            // SAFETY: the kernel has written `count` keys and values, at most as many as there is room
            // for, and every bit pattern is a value of a Pod type.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            entries.extend(keys.into_iter().zip(values));
            return Ok((!last).then_some(Bucket(next)));
        }
    }

    /// The key after `key` in the map's order, the first one for `None` or for a key that is gone.
    pub fn next_key(&self, key: Option<&K>) -> io::Result<Option<K>> {
        // SAFETY: every bit pattern, zero too, is a value of a Pod type.
        let mut next: K = unsafe { zeroed() };
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            _pad: 0,
            key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
            value: std::ptr::from_mut(&mut next) as u64,
            flags: 0,
        };
        // SAFETY: `open` has checked the key's size; both keys outlive the call.
        found(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) }).map(|found| found.then_some(next))
    }

    /// The value of a key.
    pub fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: every bit pattern, zero too, is a value of a Pod type.
        let mut value: V = unsafe { zeroed() };
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_mut(&mut value) as u64,
            flags: 0,
        };
        // SAFETY: `open` has checked the sizes of key and value; both outlive the call.
        found(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }).map(|found| found.then_some(value))
    }

    /// Writes an entry.
    pub fn put(&self, key: &K, value: &V, put: Put) -> io::Result<()> {
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: put as u64,
        };
        // SAFETY: `open` has checked the sizes of key and value; both outlive the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes a key; false if it was not there.
    pub fn delete(&self, key: &K) -> io::Result<bool> {
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: 0,
            flags: 0,
        };
        // SAFETY: `open` has checked the key's size; it outlives the call.
        found(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
    }
}

fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
