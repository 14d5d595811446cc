//! The edge under test: the real agent in a namespace, its configuration file and what it says of itself.
//!
//! The agent is a process like any operator's: it is started, killed, upgraded and asked from outside. Of
//! the namespaces only the network's is entered, so that its pins outlive it.

mod config;
mod http;
mod status;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_agent::bpf::PinDir;
use lb_agent::flows::{FlowTable, table};
use lb_common::addr::{V4, V6};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::netns::NsHandle;
use crate::owner::{AGENTS, OwnedDir};
use crate::process::{self, Process};

pub use config::{
    BackendConfig, DrainConfig, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig,
    SidecarConfig,
};
pub use http::{Response, get};
pub use status::{FlowLine, Status, Worker};

/// Names the agent to test, in place of the release build beside the tests.
pub const AGENT: &str = "SLUICE_AGENT";

/// For what the agent does at once, on a machine that is busy with other things as well.
const SOON: Duration = Duration::from_secs(15);

/// What signs the cookies of a test's edge.
const COOKIE_KEYS: &str = "test MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n";

/// The agent to test.
pub fn agent() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(AGENT) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{AGENT}={}: no such file", path.display());
        return Ok(path);
    }
    // target/PROFILE/lab, or target/PROFILE/deps/TEST
    let own = std::env::current_exe()?;
    let candidates = own.ancestors().skip(1).map(|up| up.join("release/lb-agent"));
    let found = candidates.take(4).find(|path| path.is_file());
    found.context("the agent is not built (target/release/lb-agent): run `cargo xtask build`")
}

/// An edge: its namespace, its configuration file, and its agent while one runs. Dropped, it leaves
/// nothing loaded.
#[derive(Debug)]
pub struct Edge {
    process: Option<Process>,
    namespace: NsHandle,
    config: EdgeConfig,
    agent: PathBuf,
    scratch: OwnedDir,
}

impl Edge {
    /// Starts the agent in `namespace` and waits until it is ready.
    pub fn start(namespace: &NsHandle, config: EdgeConfig) -> Result<Self> {
        let mut edge = Self::prepare(namespace, config)?;
        edge.run()?;
        Ok(edge)
    }

    /// Everything but the agent's start.
    pub fn prepare(namespace: &NsHandle, mut config: EdgeConfig) -> Result<Self> {
        let scratch = OwnedDir::scratch("config")?;
        if config.has_l7() {
            let keys = scratch.path().join("cookie.keys");
            fs::write(&keys, COOKIE_KEYS)?;
            fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
            config.sidecar.cookie_keys = Some(keys);
            config.sidecar.access_log = Some(scratch.path().join("access.log"));
        }
        let (agent, namespace) = (agent()?, namespace.clone());
        let edge = Self { process: None, namespace, config, agent, scratch };
        edge.save()?;
        Ok(edge)
    }

    #[must_use]
    pub fn config(&self) -> &EdgeConfig {
        &self.config
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    #[must_use]
    pub fn namespace(&self) -> &NsHandle {
        &self.namespace
    }

    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.scratch.path().join("edge.toml")
    }

    #[must_use]
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// The sidecar's access log so far, line by line.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        let path = self.config.sidecar.access_log.as_ref().context("the edge has no l7 service")?;
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        // The last line may be on its way.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Where its maps, program and links are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        PinDir::of_edge(&self.config.name).path().to_owned()
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Panics
    /// If it runs already.
    pub fn run(&mut self) -> Result<()> {
        assert!(self.process.is_none(), "the agent of {} runs already", self.name());
        let mut command = self.namespace.command(&self.agent);
        command.args(["run", "--config"]).arg(self.config_path());
        let process = Process::spawn("lb-agent", command)?;
        self.process = Some(process);
        self.wait_ready()
    }

    /// Waits until the agent answers that it is well.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let health = self.get("/healthz");
            if health.as_ref().is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            let alive = self.process.as_mut().is_some_and(Process::is_running);
            if !alive || Instant::now() >= deadline {
                let state = if alive { "is not ready" } else { "has ended" };
                let health = health.map_or_else(|error| format!("{error:#}"), |it| it.body);
                let said = self.log().join("\n");
                bail!("the agent {state} ({health}); it said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the running agent has printed; nothing if none runs.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// The running agent.
    ///
    /// # Panics
    /// If none runs.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("an agent runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("no agent runs")?.kill().map(drop)
    }

    /// SIGTERM, and the wait for an end in good order. Returns what it printed.
    pub fn terminate(&mut self) -> Result<Vec<String>> {
        let mut process = self.process.take().context("no agent runs")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(SOON)?;
        ensure!(
            status.success(),
            "the agent ended with {status}:\n{}",
            process.output().join("\n")
        );
        Ok(process.output())
    }

    /// Replaces the program that the next [`Edge::run`] starts.
    pub fn upgrade_to(&mut self, agent: &Path) {
        self.agent = agent.to_owned();
    }

    /// Changes the configuration and saves the file as an editor does, with a rename. The agent is not told.
    pub fn configure(&mut self, change: impl FnOnce(&mut EdgeConfig)) -> Result<()> {
        change(&mut self.config);
        self.save()
    }

    fn save(&self) -> Result<()> {
        self.save_text(&self.config.to_string())
    }

    /// Saves a file of any text in place of the configuration.
    pub fn save_text(&self, text: &str) -> Result<()> {
        let new = self.scratch.path().join("edge.toml.new");
        fs::write(&new, text)?;
        fs::rename(&new, self.config_path())?;
        Ok(())
    }

    /// Writes over the file in place, as `cat > edge.toml` does.
    pub fn overwrite(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.config_path(), text)?)
    }

    /// SIGHUP.
    pub fn reload(&self) -> Result<()> {
        self.process().signal(Signal::SIGHUP)
    }

    /// A GET request to the admin API.
    pub fn get(&self, path: &str) -> Result<Response> {
        http::get(&self.namespace, EdgeConfig::ADMIN.parse()?, path)
    }

    /// What the agent says of itself.
    pub fn status(&self) -> Result<Status> {
        let answer = self.get("/v1/status")?;
        ensure!(answer.status == 200, "/v1/status: {answer:?}");
        Status::parse(&answer.body)
    }

    /// Waits until the status is as wished; `what` is for the complaint. Returns it and when it was so.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        mut wish: impl FnMut(&Status) -> bool,
    ) -> Result<(Status, Instant)> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.status()?;
            let now = Instant::now();
            if wish(&status) {
                return Ok((status, now));
            }
            if now >= deadline {
                let said = self.log().join("\n");
                bail!(
                    "{what}: not so after {timeout:?}; status:\n{status}\nthe agent said:\n{said}"
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until every backend of the configuration is up.
    pub fn wait_all_up(&self) -> Result<Status> {
        let names: Vec<_> = self
            .config
            .services
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| (s.name.clone(), b.name.clone())))
            .collect();
        let wish = |status: &Status| names.iter().all(|(s, b)| status.is_up(s, b));
        Ok(self.wait_for("all backends up", SOON, wish)?.0)
    }

    /// Runs another command of the agent's program in the edge's network namespace.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        process::run(self.namespace.command(&self.agent).args(arguments))
    }

    /// The flows in the kernel's tables, as `lb-agent flows` lists them. Needs no running agent.
    pub fn flows(&self) -> Result<Vec<FlowLine>> {
        self.lister().flows()
    }

    /// What lists the flows from another thread.
    #[must_use]
    pub fn lister(&self) -> Lister {
        let (namespace, agent) = (self.namespace.clone(), self.agent.clone());
        Lister { namespace, agent, file: self.config_path() }
    }

    /// How many entries the kernel's flow tables have, of whatever kind and of either direction.
    pub fn flow_entries(&self) -> Result<usize> {
        let pins = PinDir::of_edge(&self.config.name);
        Ok(entries(table::flows::<V4>(&pins)?)? + entries(table::flows::<V6>(&pins)?)?)
    }

    /// `lb-agent unload`.
    pub fn unload(&self) -> Result<String> {
        self.cli(&["unload", "--edge", self.name()])
    }
}

fn entries<A, T: FlowTable<A>>(mut table: T) -> std::io::Result<usize> {
    let (mut batch, mut from, mut count) = (Vec::new(), None, 0);
    loop {
        from = table.batch(from, &mut batch)?;
        count += batch.len();
        if from.is_none() {
            return Ok(count);
        }
    }
}

/// Lists an edge's flows.
#[derive(Clone, Debug)]
pub struct Lister {
    namespace: NsHandle,
    agent: PathBuf,
    file: PathBuf,
}

impl Lister {
    /// See [`Edge::flows`].
    pub fn flows(&self) -> Result<Vec<FlowLine>> {
        let mut command = self.namespace.command(&self.agent);
        command.args(["flows", "--limit", "1000000", "--json", "--config"]).arg(&self.file);
        FlowLine::parse(&process::run(&mut command)?)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("the agent of {} said:\n{}", self.name(), self.log().join("\n"));
        }
        drop(self.process.take());
        // Workers outlive the agent, and need no data plane.
        let workers = Path::new(AGENTS).join(self.name());
        if (self.pins().exists() || workers.exists())
            && let Err(error) = self.unload()
        {
            eprintln!("{}: cannot unload: {error:#}", self.name());
        }
    }
}
