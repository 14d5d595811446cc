//! The command line: one file per subcommand. Nothing here decides anything about packets.

mod change;
mod check;
mod client;
mod decap;
mod doctor;
mod events;
mod explain;
mod flows;
mod generate;
mod log;
mod run;
mod show;
mod sidecar;
mod status;
mod top;
mod trace;
mod unload;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "lb-agent", version)]
/// Sluice's agent: loads the XDP data plane of a load-balancing edge and keeps it true
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an edge: load or adopt the data plane, follow the file, the network and the backends' health
    Run(run::Arguments),
    /// Say everything that is wrong with a configuration file
    Check(check::Arguments),
    /// Look for what on this host would keep an edge from its work; exit code 1 if there is a problem
    Doctor(doctor::Arguments),
    /// Remove every trace of an edge from the kernel; its flows end
    Unload(unload::Arguments),
    /// Show what a running agent knows of its edge
    Status(status::Arguments),
    /// List the connections of an edge; works without a running agent
    Flows(flows::Arguments),
    /// On a backend: take packets out of the tunnels of `forward = "ipip"`
    #[command(subcommand)]
    Decap(decap::Action),
    /// Show the services of a running edge
    Services(show::Services),
    /// Show the backends of a running edge, with their health
    Backends(show::Backends),
    /// Watch a running edge on the terminal
    Top(top::Arguments),
    /// Give a backend no new clients, and take those that it has away at a pace; or all clients of an edge
    Drain(change::Drain),
    /// Give it clients again, after a drain or maintenance
    Undrain(change::Undrain),
    /// Give a backend no clients at all, and take those that it has away at a pace, without waiting for a deadline
    Maintenance(change::Maintenance),
    /// Change a backend's share of new clients
    Weight(change::Weight),
    /// Reset the connections that a backend has now, at a pace; it stays in service
    ResetFlows(change::Reset),
    /// Add a backend to a service
    AddBackend(change::Add),
    /// Take a backend out of a service
    RemoveBackend(change::Remove),
    /// Show what has happened on a running edge
    Events(events::Arguments),
    /// Say which backend a client gets now, and why; touches nothing
    Explain(explain::Arguments),
    /// Follow the packets of some flows through the stages of XDP, for a bounded time
    Trace(trace::Arguments),
    /// Compare the running edge with its file
    #[command(subcommand)]
    Config(show::Config),
    /// Write manual pages and shell completions
    #[command(hide = true)]
    Generate(generate::Arguments),
    /// One worker of the sidecar; `run` starts them
    #[command(hide = true)]
    Sidecar(sidecar::Arguments),
}

/// Which edge a command is about.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct WhichEdge {
    /// Name of the edge
    #[arg(long, value_name = "NAME")]
    edge: Option<String>,
    /// Configuration file of the edge
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => return run::run(arguments),
        Command::Check(arguments) => return check::check(&arguments),
        Command::Sidecar(arguments) => return sidecar::sidecar(arguments),
        Command::Unload(arguments) => unload::unload(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Flows(arguments) => flows::flows(&arguments),
        Command::Decap(action) => decap::decap(&action),
        Command::Services(arguments) => show::services(&arguments),
        Command::Backends(arguments) => show::backends(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Drain(arguments) => change::drain(&arguments),
        Command::Undrain(arguments) => change::undrain(&arguments),
        Command::Maintenance(arguments) => change::maintenance(&arguments),
        Command::Weight(arguments) => change::weight(&arguments),
        Command::ResetFlows(arguments) => change::reset(&arguments),
        Command::AddBackend(arguments) => change::add(&arguments),
        Command::RemoveBackend(arguments) => change::remove(&arguments),
        Command::Events(arguments) => events::events(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Trace(arguments) => trace::trace(&arguments),
        Command::Generate(arguments) => generate::generate(&arguments, Cli::command()),
        Command::Config(action) => show::config(&action),
        Command::Doctor(arguments) => {
            return doctor::doctor(&arguments).unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            });
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
