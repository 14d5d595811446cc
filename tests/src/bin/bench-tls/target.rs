//! What is measured: a proxy that serves by TLS, at its site.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use tests::{
    bench::{
        account::Account,
        haproxy::Haproxy,
        load::{self, Entrance},
        site::{Site, VIP, VIP_PORT},
        sluice::{self, Sidecar},
        tls::{Identity, Tickets},
    },
    edge::Edge,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// HAProxy
    Haproxy,
    /// HAProxy behind the XDP program, which passes its packets as it passes the sidecar's
    HaproxyXdp,
    /// The agent and its sidecar's workers
    Sluice,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::HaproxyXdp => "haproxy-xdp",
            Self::Sluice => "sluice",
        }
    }
}

/// A target that runs.
pub struct Running<'a> {
    pub target: Target,
    pub account: Account,
    identity: &'a Identity,
    haproxy: Option<Haproxy>,
    agent: Option<Edge>,
    pub site: Site,
}

impl<'a> Running<'a> {
    /// A careful client has then been served.
    pub fn start(target: Target, threads: u32, identity: &'a Identity) -> Result<Self> {
        let site = Site::build()?;
        let haproxy = match target {
            Target::Haproxy | Target::HaproxyXdp => {
                Some(Haproxy::secure(&site, threads, &identity.together)?)
            }
            Target::Sluice => None,
        };
        let agent = match target {
            Target::Haproxy => None,
            Target::HaproxyXdp => Some(sluice::beside(&site)?),
            Target::Sluice => {
                Some(sluice::secure(&site, &Sidecar::relaying(threads), &identity.files)?)
            }
        };
        let pid = match (&haproxy, &agent) {
            (Some(haproxy), _) => haproxy.process.pid(),
            (None, Some(agent)) => agent.process().pid(),
            (None, None) => unreachable!("a target has a proxy"),
        };
        let account = Account::of_family(pid)?;
        let running = Self { target, account, identity, haproxy, agent, site };
        running.check().with_context(|| format!("{}: {}", target.name(), running.said()))?;
        Ok(running)
    }

    /// The certificate and its signature are what they must be, once for all the clients that do not look.
    fn check(&self) -> Result<()> {
        let mut entrance = self.plain();
        entrance.tls = Some(self.identity.careful("http/1.1")?);
        let open = self.site.client.run(|| load::open(&entrance, 1))?;
        let is_full = open[0].handshake() == Some(rustls::HandshakeKind::Full);
        ensure!(is_full && open[0].protocol() == Some(b"http/1.1"), "an odd handshake");
        Ok(())
    }

    fn plain(&self) -> Entrance {
        Entrance::new(vec![(VIP, VIP_PORT).into()])
    }

    /// Where clients connect to that speak this protocol.
    pub fn entrance(&self, protocol: &str, tickets: std::sync::Arc<Tickets>) -> Result<Entrance> {
        let mut entrance = self.plain();
        entrance.tls = Some(self.identity.quick(protocol, tickets)?);
        Ok(entrance)
    }

    /// What the proxy has printed, for a complaint.
    pub fn said(&self) -> String {
        let haproxy = self.haproxy.iter().flat_map(|it| it.process.output());
        let agent = self.agent.iter().flat_map(Edge::log);
        haproxy.chain(agent).collect::<Vec<_>>().join("\n")
    }
}
