//! What is measured: a proxy at its site, or the way without one.

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use tests::{
    bench::{
        account::Account,
        haproxy::{Buffers, Haproxy},
        load::Entrance,
        site::{Site, VIP, VIP_PORT},
        sluice::{self, Sidecar},
    },
    edge::Edge,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Clients connect to the backends
    Direct,
    /// HAProxy with buffers of the default size
    Haproxy,
    /// HAProxy with buffers of 4 KiB
    HaproxySmall,
    /// HAProxy behind the XDP program, which passes its packets as it passes the sidecar's
    HaproxyXdp,
    /// The agent and its sidecar's workers
    Sluice,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySmall => "haproxy-small",
            Self::HaproxyXdp => "haproxy-xdp",
            Self::Sluice => "sluice",
        }
    }
}

/// A target that runs.
pub struct Running {
    pub target: Target,
    pub account: Account,
    pub entrance: Entrance,
    haproxy: Option<Haproxy>,
    agent: Option<Edge>,
    pub site: Site,
}

impl Running {
    pub fn start(target: Target, threads: u32) -> Result<Self> {
        let site = Site::build()?;
        let haproxy = match target {
            Target::Haproxy | Target::HaproxyXdp => Some(Buffers::Default),
            Target::HaproxySmall => Some(Buffers::Small),
            Target::Direct | Target::Sluice => None,
        };
        let haproxy = haproxy.map(|it| Haproxy::start(&site, threads, it)).transpose()?;
        let agent = match target {
            Target::HaproxyXdp => Some(sluice::beside(&site)?),
            Target::Sluice => Some(sluice::start(&site, &Sidecar::relaying(threads))?),
            Target::Direct | Target::Haproxy | Target::HaproxySmall => None,
        };
        let account = match (&haproxy, &agent) {
            (Some(haproxy), _) => Account::of_family(haproxy.process.pid())?,
            (None, Some(agent)) => Account::of_family(agent.process().pid())?,
            (None, None) => Account::default(),
        };
        let entrance = Entrance::new(match target {
            Target::Direct => site.backends().to_vec(),
            _ => vec![(VIP, VIP_PORT).into()],
        });
        Ok(Self { target, account, entrance, haproxy, agent, site })
    }

    /// What the proxy has printed, for a complaint.
    pub fn said(&self) -> String {
        let haproxy = self.haproxy.iter().flat_map(|it| it.process.output());
        let agent = self.agent.iter().flat_map(Edge::log);
        haproxy.chain(agent).collect::<Vec<_>>().join("\n")
    }
}
