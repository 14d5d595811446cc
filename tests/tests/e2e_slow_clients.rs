//! Clients that are slow on purpose have their end, and those beside them are served. What it costs these is measured by
//! `cargo xtask bench slow`. Needs root and packages: `cargo xtask test --full` installs them.

use tests::effort;
use tests::privilege::require_root;
use tests::process::open_many_files;
use tests::slow::{self, Attack, Mode};

#[test]
fn slow_clients_have_their_end_and_others_are_served() {
    require_root();
    open_many_files().unwrap();
    let site = slow::site().unwrap();
    for mode in Mode::ALL {
        let attack = Attack { mode, connections: effort::choose(200, 1_000), cpu: None };
        let met = attack.on_sidecar(&site).unwrap();
        println!("{mode:?}: 99th percentiles {met:?}");
    }
}
