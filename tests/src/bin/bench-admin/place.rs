//! The edge that is asked: a client, a backend and the real agent between them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tests::{
    chat::EchoServer,
    edge::{BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig},
    topology::Topology,
};

/// The first service's; the others' follow.
pub const PORT: u16 = 10_000;

/// Where all backends are looked after: thousands of listeners would be another benchmark.
const CHECKED: u16 = 9_000;

const PATIENCE: Duration = Duration::from_secs(120);

/// Dropped, it leaves nothing behind: first goes the agent, last the networks.
pub struct Place {
    pub edge: Edge,
    _server: EchoServer,
    pub lab: Topology,
}

/// Every second service is one of the sidecar. Returns when every backend has been checked.
pub fn start(services: usize, backends: usize, flow_entries: u32) -> Result<Place> {
    let lab = Topology::builder().clients(1).backends(1).build()?;
    let listen = [([0, 0, 0, 0], CHECKED).into(), ([0, 0, 0, 0], PORT).into()];
    let server = EchoServer::start(Some(lab.backend(0)), "backend", &listen)?;
    let mut config = EdgeConfig::new(&["eth0", "eth1"]);
    config.source_addresses = vec!["10.2.0.1".parse()?];
    config.nat_ports = 1024..=32_767;
    config.flows = flow_entries;
    let vip = lab.vips()[0];
    for number in 0..services {
        let port = PORT + u16::try_from(number)?;
        let name = format!("service-{number}");
        let mut service = ServiceConfig::new(&name, [(vip, port).into()], Forward::Nat);
        service.l7 = (number % 2 == 1).then(L7Config::default);
        service.health = HealthConfig {
            port: Some(CHECKED),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            rise: 1,
            ..HealthConfig::default()
        };
        for number in 0..backends {
            let at = (lab.backend(0).v4(), PORT + u16::try_from(number)?).into();
            service.backends.push(BackendConfig::new(&format!("backend-{number}"), at));
        }
        config.services.push(service);
    }
    let mut edge = Edge::prepare(lab.edge(), config)?;
    let sizes = "[edge.tables]\nservices = 256\nbackends = 8192\n";
    edge.save_text(&edge.config().to_string().replace("[edge.tables]\n", sizes))?;
    edge.run()?;
    let place = Place { edge, _server: server, lab };
    let deadline = Instant::now() + PATIENCE;
    while place.up()? < services * backends {
        if Instant::now() >= deadline {
            bail!("{} of {} backends are up after {PATIENCE:?}", place.up()?, services * backends);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(place)
}

impl Place {
    /// Backends that are.
    fn up(&self) -> Result<usize> {
        let text = self.edge.get("/metrics").context("metrics")?.body;
        let up =
            text.lines().filter(|it| it.starts_with("sluice_backend_up{") && it.ends_with(" 1.0"));
        Ok(up.count())
    }
}
