//! `lb-agent`: Sluice's agent. This file only starts the command line.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
