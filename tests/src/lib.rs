//! The testbed: what the end-to-end tests and the lab are made of.
//!
//! It makes networks, programs that talk over them and an account of every byte. But for
//! [`dataplane`], which drives the XDP programs frame by frame, nothing here knows the data plane or
//! the agent. Whatever it makes carries its owner's pid in its name ([`owner`]),
//! goes away on drop, and is swept by the next run when its owner was killed.

pub mod chat;
pub mod dataplane;
pub mod interrupt;
pub mod link;
pub mod netns;
pub mod owner;
pub mod packet;
pub mod privilege;
pub mod process;
pub mod seed;
pub mod sweep;
pub mod topology;
