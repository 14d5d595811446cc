//! `lb-agent doctor`: changes nothing.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use lb_agent::{
    config::Warning,
    doctor::{self, Finding, Level},
    run::{self, admin},
};

#[derive(Args)]
pub struct Arguments {
    /// Configuration file of the edge
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// All findings as JSON
    #[arg(long)]
    json: bool,
}

/// Exit code 1 if there is a problem.
pub fn doctor(arguments: &Arguments) -> Result<ExitCode> {
    let config = run::load_config(&arguments.config)?.config;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let mut findings = runtime.block_on(doctor::examine(&config))?;
    findings.extend(admin::token_warning(&config.edge).map(of_token));
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
        println!("{}", summary(&findings));
    }
    let problems = findings.iter().any(|finding| finding.level == Level::Problem);
    Ok(if problems { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_token(warning: Warning) -> Finding {
    let Warning { file, thing, value, what, remedy, .. } = warning;
    let words = [thing, value, what].into_iter().filter(|it| !it.is_empty());
    Finding::warning(file, words.collect::<Vec<_>>().join(" "), remedy)
}

fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    format!("{} problems, {} warnings", count(Level::Problem), count(Level::Warning))
}
