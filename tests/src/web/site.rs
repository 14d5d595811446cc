//! A site of applications: three backends with Node.js behind an edge that balances their requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::answer::Answer;
use super::haproxy::Haproxy;
use super::packages::Packages;
use crate::edge::{
    BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig, Status,
};
use crate::owner::OwnedDir;
use crate::process::{self, Process};
use crate::topology::{Node, Topology};

/// One for each IP version, from client to backend: what differs cannot be spliced.
const SERVICES: [&str; 2] = ["web4", "web6"];
const BACKEND_PORT: u16 = 9080;
const GATE_PORT: u16 = 9090;
/// Of what stands beside the edge, on its machine.
const OTHER_PORT: u16 = 8080;
const BACKENDS: usize = 3;
/// Node.js takes its time to start, and a browser more.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// What to build.
#[derive(Clone, Debug)]
pub struct WebPlan {
    pub l7: L7Config,
    /// Of the listeners.
    pub port: u16,
    pub clients: usize,
    pub health: HealthConfig,
    /// What stands before each application.
    pub gate: Option<Gate>,
    /// Further tables of the services, as they stand in the file.
    pub tables: String,
    /// The file of the authority that clients trust.
    pub authority: Option<PathBuf>,
}

/// HAProxy at each backend.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Of its `bind` line.
    pub options: String,
}

impl Default for WebPlan {
    fn default() -> Self {
        Self {
            l7: L7Config::default(),
            port: 80,
            clients: 1,
            health: HealthConfig::default(),
            gate: None,
            tables: String::new(),
            authority: None,
        }
    }
}

impl WebPlan {
    /// Builds it and waits until every backend is up.
    pub fn build(self) -> Result<WebSite> {
        let packages = Packages::find()?;
        let lab = Topology::builder().clients(self.clients).backends(BACKENDS).build()?;
        let mut servers = Vec::new();
        for (index, node) in lab.backends().iter().enumerate() {
            let name = server_name(index);
            let mut server = packages.node(node, "server.js");
            server.args([&name, &BACKEND_PORT.to_string()]);
            servers.push(Process::spawn(name, server)?);
        }
        for server in &servers {
            server.wait_for_line(PATIENCE, |line| line.ends_with(": listening"))?;
        }
        let gates = self.gates(&lab)?;
        let edge = Edge::start(lab.edge(), self.config(&lab))?;
        edge.wait_all_up()?;
        let scratch = OwnedDir::scratch("web")?;
        Ok(WebSite {
            edge,
            _gates: gates,
            servers,
            packages,
            scratch,
            authority: self.authority,
            lab,
        })
    }

    fn gates(&self, lab: &Topology) -> Result<Vec<Haproxy>> {
        let Some(gate) = &self.gate else { return Ok(Vec::new()) };
        let application = SocketAddr::from(([127, 0, 0, 1], BACKEND_PORT));
        let start = |node| Haproxy::behind(node, GATE_PORT, application, &gate.options);
        lab.backends().iter().map(|node| start(node)).collect()
    }

    fn config(&self, lab: &Topology) -> EdgeConfig {
        let mut config = EdgeConfig::new(&["eth0", "eth1"]);
        config.source_addresses = vec!["10.2.0.1".parse().unwrap(), "fd02::1".parse().unwrap()];
        let port = if self.gate.is_some() { GATE_PORT } else { BACKEND_PORT };
        for (version, name) in SERVICES.into_iter().enumerate() {
            let listen = [SocketAddr::new(lab.vips()[version], self.port)];
            let mut service = ServiceConfig::new(name, listen, Forward::Nat);
            service.l7 = Some(self.l7.clone());
            for (index, node) in lab.backends().iter().enumerate() {
                let address = node.sockets(port)[version];
                service.backends.push(BackendConfig::new(&server_name(index), address));
            }
            service.health = self.health.clone();
            service.tables.clone_from(&self.tables);
            config.services.push(service);
        }
        config
    }
}

fn server_name(index: usize) -> String {
    format!("web-{}", index + 1)
}

/// A running site. Everything of it goes when it is dropped: first the agent, last the networks.
#[derive(Debug)]
pub struct WebSite {
    pub edge: Edge,
    _gates: Vec<Haproxy>,
    servers: Vec<Process>,
    packages: Packages,
    scratch: OwnedDir,
    authority: Option<PathBuf>,
    pub lab: Topology,
}

impl WebSite {
    /// Where clients find the service: `203.0.113.10:80` and the same by IPv6.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.edge.config().services.iter().flat_map(|it| it.listen.clone()).collect()
    }

    /// HAProxy on the edge's machine, before the same backends, and where it listens. Whoever is slow has so much time.
    pub fn haproxy(&self, patience: Duration) -> Result<(Haproxy, SocketAddr)> {
        let [listens, _] = self.lab.edge().sockets(OTHER_PORT);
        let backends = self.lab.backends().iter().map(|node| node.sockets(BACKEND_PORT)[0]);
        let backends: Vec<_> = backends.collect();
        Ok((Haproxy::instead(self.lab.edge(), listens, &backends, patience)?, listens))
    }

    /// Waits until so many connections have been spliced since the start.
    pub fn wait_spliced(&self, connections: u64) -> Result<()> {
        self.wait_counted("spliced", connections)
    }

    /// Waits until the workers have counted something so often, at least, since the start.
    pub fn wait_counted(&self, label: &str, times: u64) -> Result<()> {
        let counted = |status: &Status| counted(status, label) >= times;
        self.edge.wait_for(&format!("{label}: {times}"), PATIENCE, counted).map(drop)
    }

    /// How often the workers have counted something, as of their last reports.
    pub fn counted(&self, label: &str) -> Result<u64> {
        Ok(counted(&self.edge.status()?, label))
    }

    /// Waits until the access log has so many lines of an event, at least, and returns those.
    pub fn wait_logged(&self, event: &str, lines: usize) -> Result<Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut log = self.edge.access_log()?;
            log.retain(|line| line["event"] == event);
            if log.len() >= lines {
                return Ok(log);
            }
            ensure!(Instant::now() < deadline, "{event}: {lines} lines are awaited of {log:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The names of all backends.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.servers.iter().map(|server| server.name().to_owned()).collect()
    }

    /// A directory for what clients read and write.
    #[must_use]
    pub fn scratch(&self) -> &OwnedDir {
        &self.scratch
    }

    pub(super) fn client(&self) -> &Node {
        self.lab.client(0)
    }

    pub(super) fn servers(&self) -> &[Process] {
        &self.servers
    }

    pub(super) fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// Has a client trust the authority, as Node.js, curl and whoever else uses OpenSSL are told to.
    fn trusting<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(file) = &self.authority {
            for variable in ["NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "SSL_CERT_FILE"] {
                command.env(variable, file);
            }
        }
        command
    }

    /// Runs a program at the client, in the scratch directory, with `input` on its standard input, and returns what
    /// it printed.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.client().command(program);
        command.args(arguments).current_dir(self.scratch.path());
        process::run_with_input(self.trusting(&mut command), input)
    }

    /// Runs a client of `tests/web` with Node.js to its end and returns what it saw.
    pub fn node(&self, script: &str, arguments: &[&str]) -> Result<Value> {
        seen(self.trusting(self.packages.node(self.client(), script).args(arguments)))
    }

    /// Runs a client of `tests/web` with Python to its end and returns what it saw.
    pub fn python(&self, script: &str, arguments: &[&str]) -> Result<Value> {
        seen(self.trusting(self.packages.python(self.client(), script).args(arguments)))
    }

    /// Runs curl at the client, in the scratch directory, and returns what it printed.
    pub fn curl(&self, arguments: &[&str]) -> Result<String> {
        let always = ["--silent", "--show-error", "--max-time", "30", "--globoff"];
        self.run("curl", &[&always, arguments].concat(), "")
    }

    /// [`WebSite::curl`] with `--include`: the answers in their order, interim ones included.
    pub fn answers(&self, arguments: &[&str]) -> Result<Vec<Answer>> {
        Answer::parse(&self.curl(&[&["--include"], arguments].concat())?)
    }
}

fn seen(command: &mut Command) -> Result<Value> {
    let printed = process::run(command)?;
    serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
}

fn counted(status: &Status, label: &str) -> u64 {
    SERVICES.iter().map(|it| status.happened(it, label)).sum()
}
