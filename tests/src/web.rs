//! Chat backends and clients as others write them: from npm, from PyPI and from Debian's packages.
//!
//! `cargo xtask test --full` installs them, pinned, below `target/web`; what runs on them lies in `tests/web`.

mod packages;
mod site;

pub use packages::Packages;
pub use site::{Answer, WebPlan, WebSite};
