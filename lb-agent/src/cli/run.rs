//! `lb-agent run`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use lb_agent::run::{self, Options};

use super::log;

#[derive(Args)]
pub struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Load this BPF object file and not the one inside this binary
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
    #[command(flatten)]
    log: log::LogArguments,
}

pub fn run(arguments: Arguments) -> ExitCode {
    if let Err(error) = log::start(&arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let options = Options {
        config: arguments.config,
        object: arguments.object,
        worker_arguments: arguments.log.to_arguments(),
    };
    match run::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A configuration's errors come one to a line.
            for line in format!("{error:#}").lines() {
                tracing::error!("{line}");
            }
            ExitCode::FAILURE
        }
    }
}
