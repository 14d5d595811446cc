//! `lb-agent run`: the parts of the agent, joined.
//!
//! ```text
//! file, health, netlink, time -> Agent -> Input -> DataPlane (ids, desired, diff) -> maps
//!                                      -> Roster -> sweeper, punts -> resets
//!                                      -> View -> admin API
//! ```
//!
//! One task owns all state and handles one event after the other ([`agent`], [`takeover`]); what decides is pure ([`liveness`],
//! [`input`], [`roster`], [`alarms`]); what waits for something is a task or thread of its own and knows no other.

pub mod admin;
mod agent;
mod alarms;
mod certificates;
pub mod changes;
pub mod checks;
mod chronicle;
mod datalog;
mod dataplane;
mod drains;
mod ended;
pub mod explain;
mod input;
mod interfaces;
mod liveness;
mod memory;
mod metrics;
mod network;
mod notify;
mod outliers;
mod own_keys;
mod paces;
mod ports;
mod punts;
mod reload;
mod resets;
mod roster;
mod sidecar;
mod signals;
mod splice;
mod start;
pub mod status;
mod sweeper;
mod takeover;
pub mod trace;
mod view;
mod view_flows;
mod view_l7;
mod view_xdp;
mod why;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

pub(crate) use alarms::tunnel_problems;
pub use certificates::check as check_certificates;
pub(crate) use input::route_towards;
pub(crate) use ports::warning as port_warning;
pub use start::{Refused, load_config};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// An object file to load in place of the one inside this binary.
    pub object: Option<PathBuf>,
    /// Arguments for the sidecar's workers: how they log.
    pub worker_arguments: Vec<OsString>,
}

/// Runs an edge until SIGTERM or SIGINT. The data plane stays when the agent ends, however it ends.
pub fn run(options: Options) -> Result<()> {
    let loaded = load_config(&options.config)?;
    crate::bpf::capabilities::check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = runtime.block_on(async {
        let mut signals = signals::Signals::new()?;
        tokio::select! {
            agent = start::start(options, loaded) => agent?.run(&mut signals).await,
            () = signals.stop() => {
                tracing::info!("stopped before the edge was ready");
                Ok(())
            }
        }
    });
    // The verifier may still be at work, if the agent was stopped while it started.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
