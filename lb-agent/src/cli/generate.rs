//! `lb-agent generate`: manual pages and shell completions, for packages.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Args)]
pub struct Arguments {
    /// Directory for the manual pages, section 8
    #[arg(long, value_name = "DIRECTORY")]
    man: PathBuf,
    /// Directory for the completions of bash, zsh and fish
    #[arg(long, value_name = "DIRECTORY")]
    completions: PathBuf,
}

pub fn generate(arguments: &Arguments, mut command: Command) -> Result<()> {
    let Arguments { man, completions } = arguments;
    for directory in [man, completions] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "lb-agent", completions)?;
    }
    command.build();
    page(&command, man)
}

/// The page of a command, and those of its own commands.
fn page(command: &Command, directory: &PathBuf) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    let title = clap_mangen::Man::new(command.clone()).section("8").title(name.to_uppercase());
    title.render(&mut text)?;
    let path = directory.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    let commands =
        command.get_subcommands().filter(|it| !it.is_hide_set() && it.get_name() != "help");
    for command in commands {
        page(command, directory)?;
    }
    Ok(())
}
