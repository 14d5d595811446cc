//! Chat backends and clients as others write them: from npm, from PyPI and from Debian's packages.
//!
//! `cargo xtask test --full` installs them, pinned, below `target/web`; what runs on them lies in `tests/web`.

mod answer;
mod browser;
mod haproxy;
mod packages;
pub mod seen;
mod site;

pub use answer::Answer;
pub use haproxy::Haproxy;
pub use packages::Packages;
pub use site::{Gate, WebPlan, WebSite};
