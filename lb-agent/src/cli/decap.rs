//! `lb-agent decap`: for backends, not for edges. Needs no running agent.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use lb_agent::{bpf::XdpMode, decap};

#[derive(Subcommand)]
pub enum Action {
    /// Take packets for these VIPs out of their tunnel as they come in on an interface; again to change the VIPs
    Attach(Attach),
    /// Undo it
    Detach(Detach),
    /// Show which interfaces have it, and what it did there
    Status,
}

#[derive(Args)]
pub struct Attach {
    /// Where the tunnel's packets come in
    #[arg(long, value_name = "INTERFACE")]
    interface: String,
    /// A VIP of this backend; may be given more than once
    #[arg(long, value_name = "ADDRESS", required = true)]
    vip: Vec<IpAddr>,
    /// How XDP is attached
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Load this BPF object file and not the one inside this binary
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
}

#[derive(Args)]
pub struct Detach {
    /// The interface
    #[arg(long, value_name = "INTERFACE")]
    interface: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// In the driver, or after it where the driver refuses
    Auto,
    /// In the driver, or not at all
    Native,
    /// After the driver, which costs several times as much per packet
    Generic,
}

pub fn decap(action: &Action) -> Result<()> {
    match action {
        Action::Attach(arguments) => attach(arguments),
        Action::Detach(arguments) => {
            let unloaded = decap::detach(&arguments.interface)?;
            println!("interface {}: {unloaded}", arguments.interface);
            Ok(())
        }
        Action::Status => status(),
    }
}

fn attach(arguments: &Attach) -> Result<()> {
    let object = match &arguments.object {
        Some(path) => Some(
            std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?,
        ),
        None => None,
    };
    let mode = match arguments.mode {
        Mode::Auto => XdpMode::Auto,
        Mode::Native => XdpMode::Native,
        Mode::Generic => XdpMode::Generic,
    };
    let vips: BTreeSet<IpAddr> = arguments.vip.iter().copied().collect();
    let attached = decap::attach(&arguments.interface, &vips, mode, object.as_deref())?;
    println!(
        "interface {}: {} ({:?} XDP) for {}; it stays until `lb-agent decap detach --interface {}` or a reboot",
        arguments.interface,
        if attached.adopted { "brought up to date" } else { "attached" },
        attached.mode,
        shown(&vips),
        arguments.interface,
    );
    Ok(())
}

fn status() -> Result<()> {
    let all = decap::status()?;
    if all.is_empty() {
        println!("attached nowhere");
    }
    for it in all {
        let state = if it.attached { "attached" } else { "NOT ATTACHED" };
        println!("interface {}: {state}, VIPs {}", it.interface, shown(&it.vips));
        for (label, count) in it.events {
            println!("  {label} {count}");
        }
        for (label, count) in it.drops {
            println!("  dropped: {label} {count}");
        }
    }
    Ok(())
}

fn shown(vips: &BTreeSet<IpAddr>) -> String {
    vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
