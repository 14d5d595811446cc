//! `lb-agent run`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use lb_agent::run::{self, Options, upgrade::trial};

use super::log;

#[derive(Args)]
pub struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Load this BPF object file and not the one inside this binary
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
    /// Only find out whether this program could take over the edge that runs; prints JSON
    #[arg(long, hide = true)]
    trial: bool,
    #[command(flatten)]
    log: log::LogArguments,
}

pub fn run(arguments: Arguments) -> ExitCode {
    if arguments.trial {
        return trial(arguments);
    }
    if let Err(error) = log::start(&arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match run::run(options(arguments)) {
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

fn options(arguments: Arguments) -> Options {
    Options {
        config: arguments.config,
        object: arguments.object,
        worker_arguments: arguments.log.to_arguments(),
    }
}

fn trial(arguments: Arguments) -> ExitCode {
    let able = trial::run(options(arguments));
    match able.and_then(|able| Ok(serde_json::to_string(&able)?)) {
        Ok(able) => {
            println!("{able}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
