//! `lb-agent sidecar`: one worker. The agent starts it; there is nothing here for people.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::Args;
use lb_agent::sidecar;
use lb_sidecar::worker::Options;

use super::log;

#[derive(Args)]
pub struct Arguments {
    /// Name of the edge
    #[arg(long, value_name = "NAME")]
    edge: String,
    /// Place of this worker among the edge's
    #[arg(long, value_name = "N")]
    index: u16,
    #[command(flatten)]
    log: log::LogArguments,
}

pub fn sidecar(arguments: Arguments) -> ExitCode {
    // First of all: nothing else is run with privileges.
    let confined = sidecar::confine();
    if let Err(error) = log::start(&arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match confined.and_then(|()| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(index = arguments.index, "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        !io::stdin().is_terminal(),
        "standard input is not a control socket: `lb-agent run` starts the sidecar"
    );
    lb_sidecar::worker::run(Options { index: arguments.index })
}
