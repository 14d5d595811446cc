//! What `cargo xtask run` runs: see [`tests::lab`].

use std::process::ExitCode;

use clap::Parser;
use tests::{interrupt, lab, sweep};

/// Shows Sluice at work in network namespaces, checks what it shows, and cleans up.
#[derive(Parser)]
struct Arguments {
    /// Keep it up afterwards, and print how to enter it
    #[arg(long)]
    stay: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("lab: network namespaces need root: run `sudo -E cargo xtask run`");
        return ExitCode::FAILURE;
    }
    interrupt::install();
    sweep::sweep_stale_once();
    match lab::run(arguments.stay) {
        Ok(()) => {
            println!("\nEverything is as it should be.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nlab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
