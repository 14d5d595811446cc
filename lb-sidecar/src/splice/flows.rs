//! The flow tables, as a worker may see them: whether XDP has an entry for a tuple.
//!
//! The agent sends descriptors that can only read. Looking something up with one needs no privilege (Linux 5.19).

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use lb_common::{
    addr::{Tuple, V4, V6},
    flow::Flow,
};
use nix::{errno::Errno, libc};
use tracing::warn;

/// Whether flows are there. A trait, so that a port's choice can be tried without a kernel's table.
pub trait Flows {
    /// Whether those to addresses of this IP version can be known.
    fn are_known(&self, address: IpAddr) -> bool;

    /// Whether packets from this backend to this address belong to a flow. None if that cannot be known.
    fn holds(&self, backend: SocketAddr, local: SocketAddr) -> Option<bool>;
}

/// The tables that an agent has sent.
#[derive(Default)]
pub struct Tables {
    v4: RefCell<Option<OwnedFd>>,
    v6: RefCell<Option<OwnedFd>>,
}

impl Tables {
    /// Takes a table in place of the former one. One that this version cannot read is an error, and leaves none.
    pub fn put(&self, ipv6: bool, table: OwnedFd) -> io::Result<()> {
        let (place, wanted) = if ipv6 {
            (&self.v6, (size_of::<Tuple<V6>>(), size_of::<Flow<V6>>()))
        } else {
            (&self.v4, (size_of::<Tuple<V4>>(), size_of::<Flow<V4>>()))
        };
        *place.borrow_mut() = None;
        let (key, value) = sizes(table.as_fd())?;
        if (key as usize, value as usize) != wanted {
            let what = format!(
                "keys of {key} bytes and values of {value}, not of {} and {}",
                wanted.0, wanted.1
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        *place.borrow_mut() = Some(table);
        Ok(())
    }
}

impl Flows for Tables {
    fn are_known(&self, address: IpAddr) -> bool {
        let place = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        place.borrow().is_some()
    }

    fn holds(&self, backend: SocketAddr, local: SocketAddr) -> Option<bool> {
        let (sport, dport) = (backend.port().to_be(), local.port().to_be());
        let (place, held) = match (backend.ip(), local.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let [src, dst] = [src, dst].map(|it| V4(u32::from_ne_bytes(it.octets())));
                let tuple = Tuple { src, dst, sport, dport };
                (&self.v4, held(self.v4.borrow().as_ref()?.as_fd(), &tuple, Flow::default()))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let [src, dst] = [src, dst].map(|it| v6(it.octets()));
                let tuple = Tuple { src, dst, sport, dport };
                (&self.v6, held(self.v6.borrow().as_ref()?.as_fd(), &tuple, Flow::default()))
            }
            _ => return None,
        };
        held.map_err(|error| {
            warn!("the flow table cannot be read: {error}: connections are not spliced");
            *place.borrow_mut() = None;
        })
        .ok()
    }
}

fn v6(octets: [u8; 16]) -> V6 {
    let (words, _) = octets.as_chunks::<4>();
    V6(std::array::from_fn(|i| u32::from_ne_bytes(words[i])))
}

/// `union bpf_attr` for BPF_MAP_LOOKUP_ELEM.
#[repr(C)]
struct LookUp {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct GetInfo {
    object: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// Whether a table whose value is an `A` has the key. Of these sizes: see [`Tables::put`].
fn held<A>(table: BorrowedFd<'_>, key: &Tuple<A>, mut value: Flow<A>) -> io::Result<bool> {
    let mut attributes = LookUp {
        map: table.as_raw_fd() as u32,
        _padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key and writes a value of the sizes which `put` has compared with these types'.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Of a map's keys and values. An error if it is no map.
fn sizes(map: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut info = MapInfo::default();
    let mut attributes = GetInfo {
        object: map.as_raw_fd() as u32,
        length: size_of::<MapInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes no more of its information than the length says.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok((info.key_size, info.value_size))
}

/// # Safety
/// The attributes are those of the command, and what they point to is as large as the kernel takes it for.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> nix::Result<()> {
    // SAFETY: the size is the attributes' own; for the rest, the caller's word.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_without_a_table_and_no_other_file_is_one() {
        let tables = Tables::default();
        for (backend, local) in [("10.0.0.1:1", "10.0.0.2:2"), ("[::1]:1", "[::2]:2")] {
            let (backend, local): (SocketAddr, _) =
                (backend.parse().unwrap(), local.parse().unwrap());
            assert!(!tables.are_known(backend.ip()));
            assert_eq!(tables.holds(backend, local), None);
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(tables.put(false, file.into()).is_err());
    }

    #[test]
    fn addresses_are_in_network_order() {
        let address = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
        assert_eq!(v6(address.octets()).0.map(u32::from_be), [0x2001_0db8, 0, 0, 1]);
    }
}
