//! The packet tables: one frame in, and the verdict, every byte and every counter that come of it.
//! Tier 3: needs root and the objects of `cargo xtask build`; `cargo xtask test` sees to both.

mod decap;
