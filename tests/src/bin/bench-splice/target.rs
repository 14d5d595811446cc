//! What carries the connections.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use tests::{
    bench::{
        account::Account,
        haproxy::{Buffers, Haproxy},
        load::Entrance,
        nginx::Nginx,
        site::{Site, VIP, VIP_PORT},
        sluice::{self, SERVICE, Sidecar},
    },
    edge::Edge,
    process::Process,
};

use crate::table;

/// Until all is spliced that was opened.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Clients connect to the backends; the kernel routes, with the agent's program attached
    Routed,
    /// Upgraded through the sidecar, carried by XDP
    Spliced,
    /// The sidecar copies bytes
    Relay,
    Haproxy,
    /// HAProxy behind the XDP program, which passes its packets as it passes the sidecar's
    HaproxyXdp,
    Nginx,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Spliced => "spliced",
            Self::Relay => "relay",
            Self::Haproxy => "haproxy",
            Self::HaproxyXdp => "haproxy-xdp",
            Self::Nginx => "nginx",
        }
    }
}

enum Proxy {
    Agent(Box<Edge>),
    Haproxy(Haproxy),
    Nginx(Nginx),
}

/// A target that runs.
pub struct Running {
    pub target: Target,
    pub account: Account,
    proxy: Proxy,
    /// Has the program attached, and nothing to do.
    _beside: Option<Box<Edge>>,
    pub site: Site,
}

impl Running {
    /// With room for so many connections, at a site of its own with so many servers.
    pub fn start(target: Target, threads: u32, servers: u16, connections: usize) -> Result<Self> {
        let site = Site::with_servers(servers)?;
        // Two entries each, and some air.
        let flows = u32::try_from((connections * 5 / 2).max(16_384).next_power_of_two())?;
        let proxy = match target {
            Target::Routed => Proxy::Agent(Box::new(sluice::beside(&site)?)),
            Target::Spliced => {
                let sidecar = Sidecar::splicing(threads, flows);
                Proxy::Agent(Box::new(sluice::start(&site, &sidecar)?))
            }
            Target::Relay => {
                Proxy::Agent(Box::new(sluice::start(&site, &Sidecar::relaying(threads))?))
            }
            Target::Haproxy | Target::HaproxyXdp => {
                Proxy::Haproxy(Haproxy::start(&site, threads, Buffers::Default)?)
            }
            Target::Nginx => Proxy::Nginx(Nginx::start(&site, threads)?),
        };
        let beside = match target {
            Target::HaproxyXdp => Some(Box::new(sluice::beside(&site)?)),
            _ => None,
        };
        let account = Account::default();
        let mut running = Self { target, account, proxy, _beside: beside, site };
        running.account = Account::of_family(running.process().pid())?;
        Ok(running)
    }

    fn process(&self) -> &Process {
        match &self.proxy {
            Proxy::Agent(edge) => edge.process(),
            Proxy::Haproxy(haproxy) => &haproxy.process,
            Proxy::Nginx(nginx) => &nginx.process,
        }
    }

    /// Where clients connect to.
    pub fn entrance(&self) -> Entrance {
        Entrance::new(match self.target {
            Target::Routed => self.site.backends().to_vec(),
            _ => vec![(VIP, VIP_PORT).into()],
        })
    }

    /// The agent, if the target is one.
    pub fn edge(&self) -> Option<&Edge> {
        match &self.proxy {
            Proxy::Agent(edge) => Some(edge),
            Proxy::Haproxy(_) | Proxy::Nginx(_) => None,
        }
    }

    /// Waits until so many connections are spliced; at once if the target splices none.
    pub fn wait_spliced(&self, connections: usize) -> Result<()> {
        let (Target::Spliced, Some(edge)) = (self.target, self.edge()) else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spliced = table::spliced(edge)?;
            if spliced >= connections {
                return Ok(());
            }
            if Instant::now() > deadline {
                let status = edge.status().context("the agent says nothing")?;
                bail!("{spliced} of {connections} connections are spliced; {status}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the agent has counted, for a complaint.
    pub fn counted(&self) -> String {
        let status = self.edge().map(|edge| (table::spliced(edge), edge.status()));
        let Some((spliced, Ok(status))) = status else { return self.said() };
        let workers = status.workers().into_iter().map(|it| it.connections);
        let workers: Vec<_> = workers.collect();
        format!("spliced {spliced:?}, relayed {workers:?}, {:?}", status.events(SERVICE))
    }

    /// What the proxy has printed, for a complaint.
    pub fn said(&self) -> String {
        self.process().output().join("\n")
    }
}
