//! A worker: what it serves, and how it is told.
//!
//! [`Worker`] is the state that messages change; [`run`] is the process around it: the control socket, signals, the end.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::{
    net::UnixListener,
    runtime::LocalOptions,
    select,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    control::Report, drain, life::Life, listener::Listener, reserve::Reserve, service::Service,
    session, settings::Settings, splice::Splicing,
};

/// How long an agent may take to read the last report.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// How long a broker may take to answer the last offers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long the access log may take to be written at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// After so many turns of the runtime a new connection is registered with the kernel, has been told that there is
/// something to read, and has read it.
const TURNS: u32 = 3;

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// 0 for the first worker; its place among the sockets of each listener.
    pub index: u16,
}

/// Everything a worker has.
pub struct Worker {
    pub index: u16,
    pub life: Rc<Life>,
    pub(crate) splicing: Rc<Splicing>,
    pub(crate) reserve: Reserve,
    services: RefCell<BTreeMap<String, Rc<Service>>>,
    /// Services that are not wanted any more, until their last connection ends.
    removed: RefCell<Vec<Rc<Service>>>,
    listeners: RefCell<BTreeMap<SocketAddr, Listener>>,
    settings: RefCell<Settings>,
    /// Ends it at the deadline.
    end: RefCell<Option<JoinHandle<()>>>,
}

impl Worker {
    pub fn new(index: u16) -> Rc<Self> {
        Rc::new(Self {
            index,
            life: Rc::default(),
            splicing: Splicing::new(),
            reserve: Reserve::default(),
            services: RefCell::default(),
            removed: RefCell::default(),
            listeners: RefCell::default(),
            settings: RefCell::default(),
            end: RefCell::default(),
        })
    }

    /// From now on these settings hold. A service that stays, by name, keeps its connections, backends and counters.
    pub fn apply(&self, settings: Settings) {
        let mut services = self.services.borrow_mut();
        let mut old = std::mem::take(&mut *services);
        for service in &settings.services {
            let running = match old.remove(&service.name) {
                Some(running) => {
                    running.update(&settings, service);
                    running
                }
                None => Service::new(&settings, service, &self.splicing),
            };
            services.insert(service.name.clone(), running);
        }
        drop(services);
        for service in old.into_values() {
            service.removed.set(true);
            service.kept.clear();
            self.life.close_service(&service);
            self.removed.borrow_mut().push(service);
        }
        *self.settings.borrow_mut() = settings;
        for (address, listener) in &*self.listeners.borrow() {
            self.serve(*address, listener);
        }
    }

    fn serve(&self, address: SocketAddr, listener: &Listener) {
        let settings = self.settings.borrow();
        let name = settings.services.iter().find(|s| s.listen.contains(&address)).map(|s| &s.name);
        let service = name
            .filter(|_| !self.life.retired())
            .and_then(|name| self.services.borrow().get(name).cloned());
        if let Err(error) = listener.serve(service) {
            warn!("{address}: cannot accept: {error}");
        }
    }

    /// Accepts from this socket.
    pub fn listen(&self, address: SocketAddr, socket: OwnedFd) -> io::Result<()> {
        if self.life.retired() {
            // Who has not heard of that yet has the socket for a successor. Held here, it would be a trap for clients.
            return Ok(());
        }
        let listener = Listener::new(socket, self.life.clone())?;
        self.serve(address, &listener);
        self.listeners.borrow_mut().insert(address, listener);
        Ok(())
    }

    /// Closes the socket of this address. Who has connected is served: what they have sent is read when this returns.
    pub async fn unlisten(&self, address: SocketAddr) {
        let Some(listener) = self.listeners.borrow_mut().remove(&address) else { return };
        listener.accept_all();
        drop(listener);
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// Retires unasked: nobody else has it close its sockets, which would be traps for clients.
    pub async fn terminate(self: &Rc<Self>) {
        loop {
            let first = self.listeners.borrow().keys().next().copied();
            let Some(address) = first else { break };
            self.unlisten(address).await;
        }
        self.retire(None);
    }

    /// All listening sockets.
    pub fn listeners(&self) -> Vec<(SocketAddr, Rc<std::net::TcpListener>)> {
        self.listeners.borrow().iter().map(|(address, l)| (*address, l.socket.clone())).collect()
    }

    /// Whether every listener of the settings has its socket.
    pub fn is_ready(&self) -> bool {
        let listeners = self.listeners.borrow();
        let settings = self.settings.borrow();
        let mut addresses = settings.services.iter().flat_map(|service| &service.listen);
        !self.life.retired() && addresses.all(|address| listeners.contains_key(address))
    }

    pub fn service(&self, name: &str) -> Option<Rc<Service>> {
        self.services.borrow().get(name).cloned()
    }

    /// What other workers have open.
    pub fn others(&self, live: &HashMap<String, u32>) {
        for service in self.services.borrow().values() {
            service.pool.others(live);
        }
    }

    /// Closes what is relayed now to a backend, at a pace.
    pub fn reset(&self, service: &str, backend: &str) {
        let Some(service) = self.service(service) else { return };
        service.relays.mark(|it| it.id() == backend);
        drain::pace(&service, &self.life);
    }

    /// Accepts nothing more, and ends with its last connection; with a deadline (in milliseconds of Unix time), then.
    /// The newest deadline counts.
    pub fn retire(self: &Rc<Self>, deadline: Option<u64>) {
        self.listeners.borrow().values().for_each(|listener| {
            // Nothing is registered when nothing is served.
            let _ = listener.serve(None);
        });
        self.life.retire();
        for service in self.services.borrow().values() {
            service.kept.clear();
        }
        if let Some(deadline) = deadline {
            self.life.drain();
            self.splicing.desk.shut();
            self.tick();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let left = Duration::from_millis(deadline).saturating_sub(now);
            let life = self.life.clone();
            let end = tokio::task::spawn_local(async move {
                tokio::time::sleep(left).await;
                life.stop();
            });
            if let Some(former) = self.end.borrow_mut().replace(end) {
                former.abort();
            }
        }
    }

    /// Once a second.
    pub fn tick(&self) {
        for service in self.services.borrow().values() {
            service.kept.expire();
            service.sources.forget(tokio::time::Instant::now());
            drain::pace(service, &self.life);
        }
        for service in &*self.removed.borrow() {
            drain::pace(service, &self.life);
        }
        self.removed.borrow_mut().retain(|service| service.connections.get() > 0);
    }

    pub fn report(&self) -> Report {
        let services = self.services.borrow();
        let removed = self.removed.borrow();
        Report {
            services: services
                .values()
                .chain(removed.iter())
                .map(|service| service.report())
                .collect(),
            log_lines_lost: self.life.log().map_or(0, |log| log.lost()),
        }
    }
}

/// Runs a worker to its end. Standard input is the socket where agents connect.
pub fn run(options: Options) -> anyhow::Result<()> {
    let control = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    let control = std::os::unix::net::UnixListener::from(control);
    control
        .set_nonblocking(true)
        .context("standard input: not a socket; a worker is started by the agent")?;
    // Unlike a `LocalSet` it needs no system call to wake a task.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("runtime")?;
    runtime.block_on(live(options, control))
}

async fn live(options: Options, control: std::os::unix::net::UnixListener) -> anyhow::Result<()> {
    let control =
        UnixListener::from_std(control).context("standard input: not a listening Unix socket")?;
    let worker = Worker::new(options.index);
    worker.reserve.set_aside().context("RLIMIT_NOFILE")?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
    worker.life.log_to(output).context("access log")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    // A terminal sends it to the agent's whole process group; the agent decides what becomes of its workers.
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut agent: Option<JoinHandle<()>> = None;
    loop {
        select! {
            accepted = worker.reserve.within(control.accept()) => match accepted {
                Ok((stream, _)) => {
                    // The newest connection counts.
                    if let Some(agent) = agent.take() {
                        agent.abort();
                    }
                    agent = Some(tokio::task::spawn_local(session::serve(worker.clone(), stream)));
                }
                Err(error) => {
                    warn!("control socket: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = ticks.tick() => worker.tick(),
            _ = terminate.recv() => {
                worker.terminate().await;
                info!("SIGTERM: finishing {} connections", worker.life.open());
            }
            _ = interrupt.recv() => {}
            () = worker.life.over() => break,
        }
    }
    worker.splicing.desk.clear(LAST_ANSWERS).await;
    if let Some(agent) = agent {
        let _ = timeout(LAST_REPORT, agent).await;
    }
    if let Some(log) = worker.life.log() {
        log.finish(LAST_LINES);
    }
    Ok(())
}
