//! From a configuration file to a running agent, in the one order that never leaves packets without a data plane
//! that knows what to do with them.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::{
    Options, admin,
    agent::{Agent, Parts},
    changes::Ask,
    checks, datalog,
    dataplane::DataPlane,
    ended::{Log, Teller},
    input,
    interfaces::Interfaces,
    liveness::Liveness,
    network::Network,
    notify::Notify,
    ports,
    punts::Punts,
    reload::FileWatch,
    roster::Current,
    sidecar::{self, unix_millis},
    sweeper,
    trace::{self, Tracer},
    upgrade::{Desk, Order, succession::Told},
    view::{MadeOf, View},
};
use crate::{
    bpf::{self, Lock, PinDir, TableSizes, lock::RUN_DIR, pins},
    config::{self, Config, Tables},
    health::{Prober, Runner, SourcePorts},
    object, overrides,
    sidecar::{Directory, Supervisor},
    splice::Splicer,
};

/// Health events that wait for the agent; more of them would be merged.
const EVENTS: usize = 1_024;
/// Operators who wait for the agent; more of them wait before they are heard.
const ASKS: usize = 16;

/// A configuration, and the text that it was read from.
pub struct LoadedConfig {
    pub config: Config,
    pub warnings: Vec<String>,
    pub text: String,
}

/// Why a configuration is not taken: all reasons, each a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refused {}

/// Reads a configuration file; the error has everything that is wrong with it.
pub fn load_config(path: &Path) -> Result<LoadedConfig, Refused> {
    let refused = |errors: config::ConfigErrors| {
        Refused(errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let text = config::read(path).map_err(refused)?;
    let name = path.display().to_string();
    let (config, mut warnings) = config::parse(&name, &text).map_err(refused)?;
    warnings.extend(admin::token_warning(&config.edge));
    let problems = checks::problems(&config);
    if !problems.is_empty() {
        return Err(Refused(problems.into_iter().map(|it| format!("{name}: {it}")).collect()));
    }
    let warnings = warnings.iter().map(ToString::to_string).collect();
    Ok(LoadedConfig { config, warnings, text })
}

/// Brings an edge up, or leaves nothing behind that was not there before.
pub(super) async fn start(
    options: Options,
    loaded: LoadedConfig,
    told: Option<Told>,
) -> Result<Agent> {
    let LoadedConfig { config: file, warnings, text } = loaded;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let lock = Lock::acquire(RUN_DIR.as_ref(), &file.edge.name)?;
    let directory = Directory::of_edge(RUN_DIR.as_ref(), &file.edge.name);
    let mut overrides = overrides::file::read(directory.path())?;
    let (config, dropped) = overrides.applied(&file, unix_millis());
    dropped.iter().for_each(|dropped| tracing::warn!("{dropped}"));
    if !overrides.is_empty() {
        tracing::warn!(
            "operators have changed this edge at runtime: `lb-agent config diff` shows how"
        );
    }
    let edge = &config.edge;
    let view = View::after(&edge.name, told);
    let (asker, asks) = mpsc::channel(ASKS);
    let (upgrades, orders) = Desk::new();
    let (desk, tracer) = trace::desk::desk();
    let feed = Default::default();
    let state = admin::State { view: view.clone(), asks: asker, upgrades, desk, feed };
    let local = admin::Local::serve(&directory, state.clone())?;
    let server = admin::bind(edge.admin)?.serve(state)?;
    tracing::info!(edge = edge.name, admin = %server.address, "starting");
    pins::mount_bpffs()?;

    let pins = PinDir::of_edge(&edge.name);
    let was_loaded = pins.program_path().exists();
    let made_of = Arc::new(MadeOf { file, text: text.clone(), overrides });
    let config = Arc::new(config);
    let path = options.config;
    let parts = Parts { config, made_of, text, path, view, server, local, lock };
    let comers = (asks, orders, tracer);
    let result = bring_up(parts, &pins, options.object, options.worker_arguments, comers).await;
    if result.is_err() && !was_loaded {
        // Maps that no packet has met are only memory.
        if let Err(error) = bpf::unload(&pins) {
            tracing::error!("what was loaded cannot be removed: {error:#}");
        }
    }
    result
}

async fn bring_up(
    parts: Parts,
    pins: &PinDir,
    object: Option<PathBuf>,
    worker_arguments: Vec<OsString>,
    (asks, orders, tracer): (mpsc::Receiver<Ask>, mpsc::Receiver<Order>, Tracer),
) -> Result<Agent> {
    let edge = &parts.config.edge.name;
    let mut sidecar = Supervisor::new(RUN_DIR.as_ref(), edge, worker_arguments)?;
    sidecar.note_to(parts.view.events().clone());
    let alarms = super::alarms::Alarms::new(parts.view.events().clone());
    sidecar.adopt().await?;
    if parts.view.told().is_some() {
        sidecar.follow_children()?;
    }
    let opened = sidecar::open(&sidecar, &parts.config)?;
    let sizes = table_sizes(&parts.config.edge.tables);
    let mut loaded = load(pins.clone(), sizes, object).await?;
    // For as long as the agent runs.
    drop(datalog::start(loaded.ebpf_mut()));
    let plane = DataPlane::open(loaded)?;
    let network = Network::open().await?;
    let roster = Arc::new(Current::default());
    let (events, receiver) = mpsc::channel(EVENTS);
    let runner = Runner::new(Prober::new(SourcePorts::default()), events);
    let watch = match FileWatch::new(&parts.path) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!("only SIGHUP reloads the configuration: {error:#}");
            None
        }
    };
    let mut agent = Agent {
        parts,
        plane,
        network,
        roster: Arc::clone(&roster),
        spliced: Arc::default(),
        runner,
        events: receiver,
        watch,
        interfaces: Interfaces::default(),
        liveness: Liveness::default(),
        sidecar,
        keys: Arc::default(),
        key_watch: None,
        sweeper: None,
        punts: None,
        alarms,
        generation: 0,
        taken: None,
        refused: None,
        retry_at: None,
        drain_at: None,
        log: Log::default(),
        shown: Default::default(),
        outliers: Default::default(),
        asks,
        orders,
        upgrading: None,
        tracer,
        tls: Arc::default(),
        tls_watch: None,
        tls_refused: None,
        resets: Default::default(),
        notify: Notify::of_environment(),
    };
    let config = Arc::clone(&agent.parts.config);
    // What packets will ask for is there before packets come.
    agent.plane.assign(&input::skeleton(&config))?;
    agent.adopt(Arc::clone(&config));
    let backends = agent.backend_addresses();
    agent.network.settle(&config.edge.interfaces, &backends).await;
    agent.reconcile()?;
    agent.attach()?;
    let punts = Punts::open(pins, agent.network.kernel.clone(), Arc::clone(&roster))?;
    agent.punts = Some(tokio::spawn(punts.run()));
    let teller = Teller::new(&config.edge.name, agent.log.clone());
    agent.sweeper = Some(sweeper::start(pins, roster, teller)?);
    agent.sidecar.splice_with(Splicer::open(pins, Arc::clone(&agent.spliced))?);
    let on_host = agent.network.state.addresses.iter().map(|it| it.addr).collect();
    if let Some(warning) = ports::warning(&config, &on_host) {
        tracing::warn!("{warning}");
    }
    agent.begin(opened).await;
    Ok(agent)
}

async fn load(pins: PinDir, sizes: TableSizes, object: Option<PathBuf>) -> Result<bpf::Loaded> {
    let load = move || match object {
        Some(path) => {
            let object = std::fs::read(&path)
                .with_context(|| format!("{}: cannot be read", path.display()))?;
            bpf::load(&object, &pins, &sizes)
        }
        None => bpf::load(object::ebpf()?, &pins, &sizes),
    };
    // The verifier takes its time.
    tokio::task::spawn_blocking(load).await.context("loading the XDP program panicked")?
}

pub(super) fn table_sizes(tables: &Tables) -> TableSizes {
    let Tables { flows_ipv4, flows_ipv6, handshakes, preallocate, services, backends } = *tables;
    TableSizes { flows_ipv4, flows_ipv6, handshakes, preallocate, services, backends }
}
