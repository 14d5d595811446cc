//! The one gate in front of everything that needs root.

use crate::{interrupt, sweep};

/// Called first by every privileged test. Fails, with the remedy, where the test cannot run: a test
/// that skips itself would be green without having tested anything.
///
/// Also sweeps what a killed run left, and sees to it that Ctrl-C leaves nothing.
///
/// # Panics
/// Without root.
#[track_caller]
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root: run `sudo -E cargo xtask test`, \
         or leave out `--features privileged` to run the tests that need none"
    );
    interrupt::install();
    sweep::sweep_stale_once();
}
