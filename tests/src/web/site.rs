//! A site of applications: three backends with Node.js behind an edge that balances their requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::packages::Packages;
use crate::edge::{BackendConfig, Edge, EdgeConfig, Forward, L7Config, ServiceConfig, Status};
use crate::owner::OwnedDir;
use crate::process::{self, Process};
use crate::topology::{Node, Topology};

/// One for each IP version, from client to backend: what differs cannot be spliced.
const SERVICES: [&str; 2] = ["web4", "web6"];
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 9080;
const BACKENDS: usize = 3;
/// Node.js takes its time to start, and a browser more.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct WebPlan {
    pub l7: L7Config,
}

impl WebPlan {
    /// Builds it and waits until every backend is up.
    pub fn build(self) -> Result<WebSite> {
        let packages = Packages::find()?;
        let lab = Topology::builder().backends(BACKENDS).build()?;
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
        let edge = Edge::start(lab.edge(), self.config(&lab))?;
        edge.wait_all_up()?;
        let scratch = OwnedDir::scratch("web")?;
        Ok(WebSite { edge, servers, packages, scratch, lab })
    }

    fn config(self, lab: &Topology) -> EdgeConfig {
        let mut config = EdgeConfig::new(&["eth0", "eth1"]);
        config.source_addresses = vec!["10.2.0.1".parse().unwrap(), "fd02::1".parse().unwrap()];
        for (version, name) in SERVICES.into_iter().enumerate() {
            let listen = [SocketAddr::new(lab.vips()[version], PORT)];
            let mut service = ServiceConfig::new(name, listen, Forward::Nat);
            service.l7 = Some(self.l7.clone());
            for (index, node) in lab.backends().iter().enumerate() {
                let address = node.sockets(BACKEND_PORT)[version];
                service.backends.push(BackendConfig::new(&server_name(index), address));
            }
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
    servers: Vec<Process>,
    packages: Packages,
    scratch: OwnedDir,
    pub lab: Topology,
}

impl WebSite {
    /// Where clients find the service: `203.0.113.10:80` and the same by IPv6.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.edge.config().services.iter().flat_map(|it| it.listen.clone()).collect()
    }

    /// Waits until so many connections have been spliced since the start.
    pub fn wait_spliced(&self, connections: u64) -> Result<()> {
        let spliced = |status: &Status| {
            SERVICES.iter().map(|it| status.happened(it, "spliced")).sum::<u64>() >= connections
        };
        self.edge.wait_for(&format!("{connections} are spliced"), PATIENCE, spliced).map(drop)
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

    fn client(&self) -> &Node {
        self.lab.client(0)
    }

    /// Runs a client of `tests/web` with Node.js to its end and returns what it saw.
    pub fn node(&self, script: &str, arguments: &[&str]) -> Result<Value> {
        seen(self.packages.node(self.client(), script).args(arguments))
    }

    /// Runs a client of `tests/web` with Python to its end and returns what it saw.
    pub fn python(&self, script: &str, arguments: &[&str]) -> Result<Value> {
        seen(self.packages.python(self.client(), script).args(arguments))
    }

    /// Runs curl at the client, in the scratch directory, and returns what it printed.
    pub fn curl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.client().command("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--globoff"]);
        process::run(command.args(arguments).current_dir(self.scratch.path()))
    }

    /// [`WebSite::curl`] with `--include`: the answers in their order, interim ones included.
    pub fn answers(&self, arguments: &[&str]) -> Result<Vec<Answer>> {
        Answer::parse(&self.curl(&[&["--include"], arguments].concat())?)
    }

    /// Has a headless browser open a page which reports to the backend that it was loaded from. Returns
    /// the backend and its report.
    pub fn browse(&self, url: &str) -> Result<(String, Value)> {
        let mut browser = self.client().command("chromium");
        browser.args([
            "--headless=new",
            // In a namespace of the tests, as root, its sandbox does not work.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
        ]);
        let profile = self.scratch.path().join("profile");
        browser.arg(format!("--user-data-dir={}", profile.display())).arg(url);
        let browser = Process::spawn("chromium", browser)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut lines = self.servers.iter().flat_map(Process::output);
            if let Some(report) = lines.find_map(|line| {
                let (name, report) = line.split_once(": report ")?;
                Some((name.to_owned(), report.to_owned()))
            }) {
                let (name, report) = report;
                return Ok((name, serde_json::from_str(&report)?));
            }
            if Instant::now() >= deadline {
                bail!("no report from {url}; chromium said:\n{}", browser.output().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn seen(command: &mut Command) -> Result<Value> {
    let printed = process::run(command)?;
    serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
}

/// An answer as curl shows it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Interim answers have no body, the last one has the rest.
    fn parse(text: &str) -> Result<Vec<Self>> {
        let mut answers = Vec::new();
        let mut rest = text;
        while rest.starts_with("HTTP/") {
            let (head, body) = rest.split_once("\r\n\r\n").context("a head without an end")?;
            let mut lines = head.lines();
            let mut words = lines.next().context("no status line")?.splitn(3, ' ');
            let version = words.next().unwrap_or_default().to_owned();
            let status = words.next().and_then(|code| code.parse().ok()).context("no status")?;
            let headers = lines.filter_map(|line| line.split_once(": "));
            let headers = headers.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
            answers.push(Self { version, status, headers, body: String::new() });
            rest = body;
        }
        ensure!(!answers.is_empty(), "not an answer: {text}");
        answers.last_mut().expect("not empty").body = rest.to_owned();
        Ok(answers)
    }

    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The backend that answered.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.header("x-backend").unwrap_or_default()
    }

    /// The body, which is JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_told_from_the_last_one() {
        let text =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Backend: web-1\r\n\r\n{\"a\": 1}";
        let answers = Answer::parse(text).unwrap();
        assert_eq!(answers.iter().map(|it| it.status).collect::<Vec<_>>(), [100, 200]);
        assert_eq!((answers[1].backend(), answers[0].backend()), ("web-1", ""));
        assert_eq!(answers[1].json().unwrap()["a"], 1);
        assert!(Answer::parse("hello").is_err());
    }
}
