//! `lb-agent check`: needs no privileges, and looks at nothing but the file, and the token and certificates that it names.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use lb_agent::run;

#[derive(Args)]
pub struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn check(arguments: &Arguments) -> ExitCode {
    let file = arguments.config.display();
    match run::load_config(&arguments.config) {
        Ok(mut loaded) => {
            let (errors, warnings) = run::check_certificates(&loaded.config);
            if !errors.is_empty() {
                return refused(&file.to_string(), &errors);
            }
            loaded.warnings.extend(warnings);
            for warning in &loaded.warnings {
                println!("warning: {warning}");
            }
            let services = &loaded.config.services;
            let listeners: usize = services.iter().map(|service| service.listen.len()).sum();
            let backends: usize = services.iter().map(|service| service.backends.len()).sum();
            println!(
                "{file}: ok, {}, {}, {}{}",
                count(services.len(), "service"),
                count(listeners, "listener"),
                count(backends, "backend"),
                match loaded.warnings.len() {
                    0 => String::new(),
                    n => format!(", {}", count(n, "warning")),
                }
            );
            ExitCode::SUCCESS
        }
        Err(errors) => refused(&file.to_string(), &errors.0),
    }
}

fn refused(file: &str, errors: &[String]) -> ExitCode {
    for line in errors {
        eprintln!("{line}");
    }
    eprintln!("{file}: {}", count(errors.len(), "error"));
    ExitCode::FAILURE
}

fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}
