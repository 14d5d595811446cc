//! Where the log goes: standard error, for people or for machines.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people, in colour on a terminal
    Auto,
    /// For people, never in colour
    Human,
    /// One JSON object per line
    Json,
}

#[derive(Args)]
pub struct LogArguments {
    /// How the log looks
    #[arg(long, value_enum, default_value = "auto")]
    log_format: Format,
    /// What is logged: error, warn, info, debug or trace, or a filter like "info,lb_agent::health=debug"; RUST_LOG
    /// without it
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

impl LogArguments {
    /// The same, for a process that is to log like this one.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let format = match self.log_format {
            Format::Auto => "auto",
            Format::Human => "human",
            Format::Json => "json",
        };
        let mut arguments = vec!["--log-format".into(), format.into()];
        if let Some(level) = &self.log_level {
            arguments.extend(["--log-level".into(), level.into()]);
        }
        arguments
    }
}

/// Starts logging; an error is of the filter.
pub fn start(arguments: &LogArguments) -> Result<(), String> {
    let text = arguments
        .log_level
        .clone()
        .or_else(|| std::env::var(EnvFilter::DEFAULT_ENV).ok())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "info".to_owned());
    // How the object file is relocated, thousands of lines of it, helps nobody who has not asked for just that.
    let quiet = if text.contains("aya") { "" } else { ",aya_obj=info" };
    let filter = EnvFilter::try_new(format!("{text}{quiet}")).map_err(|error| {
        format!("log filter {text:?}: {error}; write e.g. info, or info,lb_agent::health=debug")
    })?;
    // A worker outlives the agent, and perhaps whoever read its log: a line that cannot be written is no reason to die.
    let log = fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    match arguments.log_format {
        Format::Auto => {
            log.with_ansi(io::stderr().is_terminal()).with_target(false).finish().init()
        }
        Format::Human => log.with_ansi(false).with_target(false).finish().init(),
        Format::Json => log.json().flatten_event(true).finish().init(),
    }
    Ok(())
}
