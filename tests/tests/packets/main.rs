//! The packet tables: one frame in, and the verdict, every byte and every counter that come of it.
//! Tier 3: needs root and the objects of `cargo xtask build`; `cargo xtask test` sees to both.

mod access;
mod close;
mod connection;
mod decap;
mod dsr;
mod echo;
mod extensions;
mod full;
mod handshake;
mod icmp;
mod ipip;
mod keys;
mod mss;
mod next_hop;
mod parse;
mod pick;
mod ports;
mod restart;
mod rtt;
mod splice;
mod splice_offers;
mod splice_options;
mod spoofed;
mod stray;
mod trace;
