//! Headers as they stand in a frame.
//!
//! Most come from `network-types`; here is what that crate has in a shape that would cost: a TCP
//! header whose flags are read as one byte, and headers that are always written together.

use core::{arch::asm, hint::assert_unchecked};

pub use network_types::{
    eth::EthHdr,
    icmp::Icmpv4Hdr as Icmp, // ICMPv6 has the same first eight bytes (RFC 4443 section 2.1)
    ip::{Ipv4Hdr, Ipv6Hdr},
};

/// A type that may be read from and written to any place of a frame.
///
/// # Safety
/// Alignment 1 or, as for [`EthHdr`], never used at an odd offset; no padding; every bit pattern valid.
pub unsafe trait Wire: Copy {}

// SAFETY: repr(C) structs of byte arrays. `EthHdr` has one aligned u16; BPF reads it unaligned all
// the same, as the verifier runs on machines with efficient unaligned access only.
unsafe impl Wire for EthHdr {}
unsafe impl Wire for Ipv4Hdr {}
unsafe impl Wire for Ipv6Hdr {}
unsafe impl Wire for Icmp {}
unsafe impl Wire for Tcp {}
unsafe impl Wire for Ports {}
unsafe impl<const N: usize> Wire for [u8; N] {}
unsafe impl<const N: usize> Wire for [[u8; 4]; N] {}

/// EtherTypes as they lie in memory.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800_u16.to_be();
    pub const IPV6: u16 = 0x86dd_u16.to_be();
    pub const VLAN: u16 = 0x8100_u16.to_be();
    /// The outer tag of a double-tagged frame (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8_u16.to_be();
}

/// Protocol numbers of IANA.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Bits of [`Tcp::flags`] (RFC 9293 section 3.1, RFC 3168 section 6.1).
pub mod tcp_flags {
    pub const FIN: u8 = 1 << 0;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const ACK: u8 = 1 << 4;
    pub const ECE: u8 = 1 << 6;
    pub const CWR: u8 = 1 << 7;
}

/// TCP header without options (RFC 9293 section 3.1). All in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub sport: [u8; 2],
    pub dport: [u8; 2],
    pub seq: [u8; 4],
    pub ack: [u8; 4],
    /// Data offset in words, in the upper four bits.
    pub offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub check: [u8; 2],
    pub urgent: [u8; 2],
}

impl Tcp {
    pub const LEN: usize = size_of::<Self>();

    /// Both ports by one load, as they lie in memory: the source port in the lower half.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        // SAFETY: the struct begins with the two ports, two bytes each.
        get32(unsafe { &*core::ptr::from_ref(self).cast::<[u8; 4]>() })
    }
}

/// The first eight bytes of a TCP header: what every ICMP error quotes (RFC 792).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    pub sport: [u8; 2],
    pub dport: [u8; 2],
    pub seq: [u8; 4],
}

/// A VLAN tag behind the MAC addresses: TCI, then the next EtherType.
pub type VlanTag = [u8; 4];

/// Reads a field of a header as the integer that it is in memory.
///
/// Headers have alignment 1, and the compiler would read such a field byte by byte. The kernel runs
/// BPF with efficient unaligned access on all machines that have it, so one load does.
#[inline(always)]
pub fn get16(field: &[u8; 2]) -> u16 {
    let value: u64;
    // SAFETY: reads the two bytes of the field, which a reference guarantees to be there; the load
    // clears the rest of the register.
    unsafe {
        asm!("{value} = *(u16 *)({field} + 0)", value = out(reg) value, field = in(reg) field,
            options(pure, readonly, nostack, preserves_flags));
        assert_unchecked(value <= u16::MAX as u64);
    }
    value as u16
}

/// The same for four bytes.
#[inline(always)]
pub fn get32(field: &[u8; 4]) -> u32 {
    let value: u64;
    // SAFETY: as above, four bytes.
    unsafe {
        asm!("{value} = *(u32 *)({field} + 0)", value = out(reg) value, field = in(reg) field,
            options(pure, readonly, nostack, preserves_flags));
        assert_unchecked(value <= u32::MAX as u64);
    }
    value as u32
}

/// Loads a number at this moment. The compiler would load what it can beforehand, and keep it on the
/// stack, of which there is little.
#[inline(always)]
pub fn load32(number: &u32) -> u32 {
    let value: u64;
    // SAFETY: reads the four bytes that a reference guarantees to be there.
    unsafe {
        asm!("{value} = *(u32 *)({number} + 0)", value = out(reg) value, number = in(reg) number,
            options(readonly, nostack, preserves_flags));
        assert_unchecked(value <= u32::MAX as u64);
    }
    value as u32
}

/// Writes a field of a header, the counterpart of [`get16`].
#[inline(always)]
pub fn put16(field: &mut [u8; 2], value: u16) {
    // SAFETY: writes the two bytes of the field, to which we have the only reference.
    unsafe {
        asm!("*(u16 *)({field} + 0) = {value}", value = in(reg) value as u64, field = in(reg) field,
            options(nostack, preserves_flags));
    }
}

/// Writes a field of a header, the counterpart of [`get32`].
#[inline(always)]
pub fn put32(field: &mut [u8; 4], value: u32) {
    // SAFETY: as above, four bytes.
    unsafe {
        asm!("*(u32 *)({field} + 0) = {value}", value = in(reg) value as u64, field = in(reg) field,
            options(nostack, preserves_flags));
    }
}

/// Copies a MAC address.
#[inline(always)]
pub fn put_mac(field: &mut [u8; 6], mac: &[u8; 6]) {
    if let (Some((to, _)), Some((from, _))) =
        (field.split_first_chunk_mut::<4>(), mac.split_first_chunk::<4>())
    {
        put32(to, get32(from));
    }
    if let (Some((_, to)), Some((_, from))) =
        (field.split_last_chunk_mut::<2>(), mac.split_last_chunk::<2>())
    {
        put16(to, get16(from));
    }
}

/// Reads an IPv6 address as the words that it is in memory.
#[inline(always)]
pub fn get128(field: &[u8; 16]) -> [u32; 4] {
    let (words, _) = field.as_chunks::<4>();
    [get32(&words[0]), get32(&words[1]), get32(&words[2]), get32(&words[3])]
}

/// Writes an IPv6 address.
#[inline(always)]
pub fn put128(field: &mut [u8; 16], value: &[u32; 4]) {
    let (words, _) = field.as_chunks_mut::<4>();
    put32(&mut words[0], value[0]);
    put32(&mut words[1], value[1]);
    put32(&mut words[2], value[2]);
    put32(&mut words[3], value[3]);
}
