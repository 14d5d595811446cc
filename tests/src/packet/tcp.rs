//! TCP segments.

use std::net::IpAddr;

use super::{
    internet::{checksum, pseudo_header},
    protocol,
};

pub const FIN: u8 = 1 << 0;
pub const SYN: u8 = 1 << 1;
pub const RST: u8 = 1 << 2;
pub const PSH: u8 = 1 << 3;
pub const ACK: u8 = 1 << 4;
pub const URG: u8 = 1 << 5;
pub const ECE: u8 = 1 << 6;
pub const CWR: u8 = 1 << 7;

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Padded with zeros to whole words.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// In place of the right number of words.
    pub header_words: Option<u8>,
    /// Added to the right checksum.
    pub checksum_error: u16,
}

impl Tcp {
    pub fn new(sport: u16, dport: u16, flags: u8) -> Self {
        Self {
            sport,
            dport,
            seq: 0,
            ack: 0,
            flags,
            window: 0xfaf0,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            header_words: None,
            checksum_error: 0,
        }
    }

    #[must_use]
    pub fn numbers(mut self, seq: u32, ack: u32) -> Self {
        (self.seq, self.ack) = (seq, ack);
        self
    }

    #[must_use]
    pub fn options(mut self, options: &[&[u8]]) -> Self {
        self.options = options.concat();
        self
    }

    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn bytes(&self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = self.header_words.unwrap_or(5 + options.len() as u8 / 4);
        let mut bytes = self.sport.to_be_bytes().to_vec();
        bytes.extend(self.dport.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([words << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(options);
        bytes.extend(&self.payload);
        let pseudo = pseudo_header(src, dst, protocol::TCP, bytes.len());
        let right = u16::from_be_bytes(checksum(&[&pseudo, &bytes]));
        let check = right.wrapping_add(self.checksum_error).to_be_bytes();
        bytes[16..18].copy_from_slice(&check);
        bytes
    }
}

/// Options as they stand in a header.
pub mod option {
    pub const END: &[u8] = &[0];
    pub const NOP: &[u8] = &[1];
    pub const SACK_PERMITTED: &[u8] = &[4, 2];

    pub fn mss(mss: u16) -> [u8; 4] {
        let [high, low] = mss.to_be_bytes();
        [2, 4, high, low]
    }

    pub fn window_scale(shift: u8) -> [u8; 3] {
        [3, 3, shift]
    }

    pub fn timestamps(value: u32, echo: u32) -> [u8; 10] {
        let ([a, b, c, d], [e, f, g, h]) = (value.to_be_bytes(), echo.to_be_bytes());
        [8, 10, a, b, c, d, e, f, g, h]
    }
}
