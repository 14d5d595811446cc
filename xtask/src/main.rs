//! `cargo xtask`: build, run, test and measure Sluice.
//!
//! This file only reads the command line. Each command has its file; none of them knows another's flags.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

mod attempt;
mod bench;
mod build;
mod dist;
mod kernels;
mod licences;
mod linker;
mod process;
mod provision;
mod run;
mod runner;
mod rust_src;
mod test;
mod toolchain;
mod web;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
/// Build, run, test and measure Sluice.
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the XDP program and the agent which carries it (target/release/lb-agent)
    Build(BuildArgs),
    /// Run the lab in network namespaces, or with --config an edge on this host
    Run(RunArgs),
    /// Run every test: host, object file, packet tables, namespaces
    Test(TestArgs),
    /// Measure; without a name, list what can be measured
    Bench(BenchArgs),
    /// Run the agent on the other kernels that it is for, in virtual machines
    Kernels,
    /// Make a Debian package of the release build: target/dist; it is installed below a scratch directory and tried
    Dist,
    /// Check the licences and the sources of all dependencies against deny.toml
    Licences,
}

#[derive(Args)]
struct BuildArgs {
    /// Optimised agent (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Unoptimised agent: target/debug/lb-agent. The XDP program is always optimised, the verifier wants it so
    #[arg(long)]
    debug: bool,
}

#[derive(Args)]
struct RunArgs {
    /// Run the agent on this host with this file instead of the lab
    #[arg(long, value_name = "FILE", conflicts_with = "stay")]
    config: Option<PathBuf>,
    /// Keep the lab up and print how to enter it
    #[arg(long)]
    stay: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Also what takes minutes: more rounds of fuzzing, longer traffic (SLUICE_TEST_FULL=1), and clients from
    /// npm, PyPI and Debian, which are installed; and the package of `dist` under systemd
    #[arg(long)]
    full: bool,
    /// Only what needs no root: the host tests
    #[arg(long)]
    unprivileged: bool,
    /// How many namespace tests run at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: u32,
}

#[derive(Args)]
struct BenchArgs {
    /// For example `packet`
    name: Option<String>,
    /// Passed on to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => {
            let profile = if args.debug { build::Profile::Debug } else { build::Profile::Release };
            build::build(profile).map(drop)
        }
        Command::Run(args) => match args.config {
            Some(config) => run::edge(&config),
            None => run::lab(args.stay),
        },
        Command::Test(args) => test::test(&test::Options {
            full: args.full,
            unprivileged: args.unprivileged,
            threads: args.threads,
        }),
        Command::Bench(args) => bench::bench(args.name.as_deref(), &args.args),
        Command::Kernels => kernels::kernels(),
        Command::Dist => dist::dist(),
        Command::Licences => licences::check(),
    }
}
