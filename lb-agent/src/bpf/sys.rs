//! The `bpf(2)` calls that aya does not offer, and no others.
//!
//! aya 0.14 has no batch calls; it hides the interface of a link; it turns an `EINVAL` of
//! `BPF_LINK_CREATE` into an attachment over netlink, which dies with nobody and cannot be pinned; and
//! it creates maps only with the flags that the object file names. Everything else goes through aya.
//!
//! All unsafe code of the agent's kernel side is in this file.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::{Pod, maps::MapInfo};
use nix::libc;

/// `BPF_F_NO_PREALLOC`: elements of a hash table are allocated as they come.
pub const NO_PREALLOC: u32 = 1 << 0;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// `BPF_LINK_TYPE_XDP` of `enum bpf_link_type`.
const LINK_TYPE_XDP: u32 = 6;

// Each struct below is one member of the kernel's `union bpf_attr`; the kernel takes a shorter union
// than its own and reads the rest as zero.

#[repr(C)]
#[derive(Clone, Copy)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

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

#[repr(C)]
#[derive(Clone, Copy)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Create: program, interface, attach type, flags. Update: link, new program, flags, old program.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkAttr([u32; 4]);

/// The beginning of `struct bpf_link_info`, for a link of XDP.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkInfoRaw {
    link_type: u32,
    id: u32,
    program_id: u32,
    _pad: u32,
    ifindex: u32,
    _rest: [u32; 11],
}

/// Plain integers only, so that a value of it can be handed to the kernel byte by byte.
trait Attr: Copy {}
impl Attr for MapCreateAttr {}
impl Attr for ElemAttr {}
impl Attr for BatchAttr {}
impl Attr for ObjAttr {}
impl Attr for InfoAttr {}
impl Attr for LinkAttr {}

/// # Safety
/// Every address in `attr` must be null or point to memory that is valid for what `command` reads and
/// writes there.
unsafe fn bpf<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is valid for reads and writes of its own size; the caller vouches for what it
    // points to.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As for [`bpf`], and `command` must be one that returns a new file descriptor.
unsafe fn bpf_fd<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for `attr`.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just made this descriptor for us (with O_CLOEXEC, as bpf(2) always
    // does), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Creates a map. The kernel keeps the first 15 bytes of the name, for people.
pub fn map_create(
    name: &str,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    let len = name.len().min(15);
    map_name[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut attr = MapCreateAttr {
        map_type,
        key_size,
        value_size,
        max_entries,
        map_flags,
        inner_map_fd: 0,
        numa_node: 0,
        map_name,
    };
    // SAFETY: the attributes hold no address, and BPF_MAP_CREATE returns a descriptor.
    unsafe { bpf_fd(MAP_CREATE, &mut attr) }
}

/// Pins a map, program or link on a bpffs; an existing path is refused.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(object), file_flags: 0 };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at the path, whatever it is: look at [`kind`] before using it.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `path` is a C string that outlives the call, and BPF_OBJ_GET returns a descriptor.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

/// What a descriptor of `bpf(2)` stands for: `bpf-map`, `bpf-prog`, `bpf_link`.
pub fn kind(object: BorrowedFd<'_>) -> io::Result<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    let link = link.to_string_lossy();
    let kind = link.strip_prefix("anon_inode:").unwrap_or(&link);
    Ok(kind.trim_matches(['[', ']']).to_owned())
}

/// The attachment of a program to an interface. It lasts as long as a descriptor or a pin does.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the kernel says about a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// Interface, numbered as in its own network namespace; 0 once the interface is gone.
    pub ifindex: u32,
}

impl Link {
    /// Attaches a program to an interface of the calling thread's network namespace. `xdp_flags` is
    /// one of the mode bits of `IFLA_XDP_FLAGS`.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, xdp_flags: u32) -> io::Result<Self> {
        let mut attr = LinkAttr([raw(program), ifindex, ATTACH_XDP, xdp_flags]);
        // SAFETY: the attributes hold no address, and BPF_LINK_CREATE returns a descriptor.
        unsafe { bpf_fd(LINK_CREATE, &mut attr) }.map(Self)
    }

    /// Opens a pinned link; anything else that is pinned there is an error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let link = Self(open_pin(path)?);
        link.info()?;
        Ok(link)
    }

    /// Replaces the program atomically: each packet sees the old one or the new one.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkAttr([raw(self.0.as_fd()), raw(program), 0, 0]);
        // SAFETY: the attributes hold no address.
        unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Detaches the program, whoever else holds a descriptor or a pin of this link.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = LinkAttr([raw(self.0.as_fd()), 0, 0, 0]);
        // SAFETY: the attributes hold no address.
        unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
    }

    /// What the link is attached to.
    pub fn info(&self) -> io::Result<LinkInfo> {
        let found = kind(self.0.as_fd())?;
        if found != "bpf_link" {
            return Err(io::Error::other(format!("not a link but {found}")));
        }
        // SAFETY: plain integers, for which zero is a value.
        let mut info: LinkInfoRaw = unsafe { zeroed() };
        let mut attr = InfoAttr {
            bpf_fd: raw(self.0.as_fd()),
            info_len: size_of::<LinkInfoRaw>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        // SAFETY: `info` is valid for writes of `info_len` bytes, outlives the call, and every bit
        // pattern is a value of it.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
        if info.link_type != LINK_TYPE_XDP {
            return Err(io::Error::other(format!(
                "not a link of XDP but of type {}",
                info.link_type
            )));
        }
        Ok(LinkInfo { id: info.id, program_id: info.program_id, ifindex: info.ifindex })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A hash map whose type and sizes were checked once, so that reading it in batches is safe.
#[derive(Debug)]
pub struct HashFd<K, V> {
    fd: OwnedFd,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

/// Where a walk in batches goes on: the number of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket(u32);

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
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: `open` has checked that this is a hash map, whose batch position is a u32, and
            // that its keys and values have the sizes of K and V; both vectors have room for `count`
            // of them, and all of it outlives the call.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let last = match result {
                Ok(_) => false,
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

/// The data plane's clock (`bpf_ktime_get_coarse_ns`) in ticks of [`lb_common::abi::TICK_SHIFT`].
pub fn now_ticks() -> u32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut now: libc::timespec = unsafe { zeroed() };
    // SAFETY: `now` is valid for writes. The call cannot fail: the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    let nanos = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    (nanos >> lb_common::abi::TICK_SHIFT) as u32
}
