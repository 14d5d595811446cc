//! The testbed: what the end-to-end tests and the lab are made of.
//!
//! It makes networks, programs that talk over them and an account of every byte. Only [`dataplane`] knows
//! the XDP programs, which it drives frame by frame, and only [`edge`] and what is built on it ([`site`],
//! [`spliced`], [`lab`]) know the agent, from outside, as an operator does. Whatever is made carries its owner's pid in
//! its name ([`owner`]), goes away on drop, and is swept by the next run when its owner was killed.

pub mod bench;
pub mod browser;
pub mod chat;
pub mod cpus;
pub mod dataplane;
pub mod edge;
pub mod effort;
pub mod interrupt;
pub mod lab;
pub mod link;
pub mod machine;
pub mod netns;
pub mod owner;
pub mod packet;
pub mod ping;
pub mod pipe;
pub mod privilege;
pub mod process;
pub mod seed;
pub mod site;
pub mod slow;
pub mod spliced;
pub mod sweep;
pub mod tls;
pub mod topology;
pub mod web;
