//! The testbed: what the end-to-end tests and the lab are made of.

pub mod chat;
pub mod link;
pub mod netns;
