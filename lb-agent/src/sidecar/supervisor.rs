//! The workers' supervisor: carries out what the [`Fleet`] decides.
//!
//! It knows no configuration file and no health: listeners, settings and the rest are what it is given.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::OsString,
    fs::File,
    io,
    net::SocketAddr,
    path::Path,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use lb_sidecar::{
    control::{FromWorker, ToWorker, VERSION},
    settings::Settings,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    brokers,
    directory::{Directory, Executable, Name, own_executable},
    fleet::{Action, Fleet, Generation, Wanted},
    link::{Descriptor, Heard, Link},
    memory::Memory,
    reports::Reports,
    sockets::{self, Sockets},
    spliced::Spliced,
    start::{self, Account, Start},
    status::{Sidecar, Worker},
};
use crate::{
    events::{Events, Kind, News},
    run::upgrade::succession,
    splice::Splicer,
};

/// How long a start waits for workers: those of an earlier agent to be found, new ones to serve.
const SETTLE: Duration = Duration::from_secs(5);

/// How soon workers are told what others have open, after it was reported.
const OTHERS: Duration = Duration::from_millis(100);

/// What has happened, for [`Supervisor::handle`].
#[derive(Debug)]
pub enum Event {
    Heard(Generation, Heard),
    /// A process has ended badly.
    Exited(Name, String),
    /// Something is due.
    Due,
}

/// What workers are to be run with.
#[derive(Debug, Default)]
pub struct Plan {
    pub workers: u16,
    pub listeners: BTreeSet<SocketAddr>,
    pub account: Option<Account>,
    pub access_log: Option<Arc<File>>,
}

/// A plan, and the sockets that it needs beside those that there are: what can fail has not failed.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    new: Sockets,
}

/// The workers of an edge.
pub struct Supervisor {
    edge: String,
    arguments: Vec<OsString>,
    directory: Directory,
    executable: Executable,
    plan: Plan,
    settings: Arc<Settings>,
    revision: u64,
    sockets: Sockets,
    fleet: Fleet,
    members: BTreeMap<Generation, Member>,
    reports: Reports,
    memory: Memory,
    splicer: Option<Splicer>,
    spliced: Spliced,
    others_at: Option<Instant>,
    heard: Mailbox<(Generation, Heard)>,
    exits: Mailbox<(Name, String)>,
    events: Events,
}

type Mailbox<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

/// A worker that runs.
struct Member {
    name: Name,
    pid: u32,
    link: Link,
    /// Whether it has greeted in words that this agent understands.
    understands: bool,
    others: Vec<(String, u32)>,
}

impl Supervisor {
    /// `arguments` go to every worker: how it logs.
    pub fn new(run_dir: &Path, edge: &str, arguments: Vec<OsString>) -> Result<Self> {
        let directory = Directory::of_edge(run_dir, edge);
        Ok(Self {
            edge: edge.to_owned(),
            arguments,
            memory: Memory::read(&directory),
            directory,
            executable: own_executable()?,
            plan: Plan::default(),
            settings: Arc::default(),
            revision: 0,
            sockets: Sockets::new(),
            fleet: Fleet::default(),
            members: BTreeMap::new(),
            reports: Reports::default(),
            splicer: None,
            spliced: Spliced::default(),
            others_at: None,
            heard: mpsc::channel(1_024),
            exits: mpsc::channel(16),
            events: Events::default(),
        })
    }

    /// Notes there what happens from now on.
    pub fn note_to(&mut self, events: Events) {
        self.events = events;
    }

    /// Finds the workers that outlived an earlier agent, and takes over their listening sockets.
    pub async fn adopt(&mut self) -> Result<()> {
        let now = Instant::now();
        for name in self.directory.sockets()? {
            let Some(record) = self.directory.process(name) else {
                self.directory.forget(name)?;
                continue;
            };
            let current = record.executable == self.executable;
            self.fleet.found(name.generation, name.index, current, now);
            self.join(name, record.pid);
        }
        self.step();
        self.settle("workers of an earlier agent do not answer", Fleet::has_joined).await;
        Ok(())
    }

    /// Waits for the ends of those that an earlier program of this very process has started, as for its own.
    pub fn follow_children(&self) -> Result<()> {
        for member in self.members.values().filter(|it| succession::is_child(it.pid)) {
            let ended = ended_badly(member.name, self.exits.0.clone());
            start::follow(member.name.index, member.pid, ended)?;
        }
        Ok(())
    }

    /// Handles events until all is as wished, or it takes too long.
    async fn settle(&mut self, complaint: &str, wish: impl Fn(&Fleet) -> bool) {
        let end = Instant::now() + SETTLE;
        while !wish(&self.fleet) {
            match timeout_at(end, self.next()).await {
                Ok(event) => self.handle(event),
                Err(_) => {
                    tracing::warn!("sidecar: {complaint} after {SETTLE:?}; going on without");
                    return;
                }
            }
        }
    }

    /// Opens what a plan needs. Nothing changes for the workers.
    pub fn prepare(&self, plan: Plan) -> Result<Prepared> {
        let new = sockets::missing(&self.sockets, plan.workers, &plan.listeners)?;
        Ok(Prepared { plan, new })
    }

    /// Makes a plan the one that counts.
    pub fn apply(&mut self, prepared: Prepared, settings: Settings, deadline: Option<u64>) {
        let Prepared { plan, new } = prepared;
        self.sockets.extend(new);
        self.plan = plan;
        let Plan { workers, listeners, .. } = &self.plan;
        self.sockets.retain(|(index, address), _| index < workers && listeners.contains(address));
        let ids = |service: &lb_sidecar::settings::Service| {
            let ids = service.backends.iter().map(|backend| backend.id.clone()).collect();
            (service.name.clone(), ids)
        };
        self.reports.keep(&settings.services.iter().map(ids).collect());
        self.send_access_log();
        self.tell(settings, deadline);
    }

    /// Other settings for the plan that there is, and when those are to end that retire, in milliseconds of Unix time.
    pub fn tell(&mut self, settings: Settings, deadline: Option<u64>) {
        if self.revision == 0 || *self.settings != settings {
            self.revision += 1;
            self.settings = Arc::new(settings);
        }
        let Plan { workers, listeners, .. } = &self.plan;
        let (workers, listeners) = (*workers, listeners.clone());
        self.fleet.want(Wanted { workers, listeners, revision: self.revision, deadline });
        self.step();
    }

    /// Waits a moment until all workers serve.
    pub async fn wait_serving(&mut self) {
        self.settle("not every worker serves", Fleet::is_serving).await;
    }

    fn send_access_log(&self) {
        let Some(file) = &self.plan.access_log else { return };
        for &worker in self.members.keys() {
            match file.try_clone() {
                Ok(file) => self.send(worker, ToWorker::AccessLog, Some(Arc::new(file.into()))),
                Err(error) => tracing::error!("the access log cannot be passed on: {error}"),
            }
        }
    }

    /// Has the workers close what they relay to a backend now.
    pub fn reset(&self, service: &str, backend: &str) {
        for (&worker, member) in &self.members {
            if member.understands {
                let (service, backend) = (service.to_owned(), backend.to_owned());
                self.send(worker, ToWorker::Reset { service, backend }, None);
            }
        }
    }

    /// What the workers were told last.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What was remembered last, perhaps by an earlier agent.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Remembers something else.
    pub fn remember(&mut self, memory: Memory) {
        if memory == self.memory {
            return;
        }
        if let Err(error) = memory.write(&self.directory) {
            tracing::error!("{error:#}");
        }
        self.memory = memory;
    }

    /// Waits for something to handle. May be dropped while it waits.
    pub async fn next(&mut self) -> Event {
        let due = [self.fleet.due(), self.others_at].into_iter().flatten().min();
        tokio::select! {
            Some((worker, heard)) = self.heard.1.recv() => Event::Heard(worker, heard),
            Some((name, how)) = self.exits.1.recv() => Event::Exited(name, how),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Event::Due,
        }
    }

    /// Does what follows from an event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Heard(worker, Heard::Message(message, descriptor)) => {
                self.message(worker, *message, descriptor);
            }
            Event::Heard(worker, Heard::End(why)) => self.ended(worker, why),
            Event::Exited(name, how) => {
                tracing::error!(index = name.index, "a worker's process has ended, {how}");
            }
            Event::Due => self.tell_of_others(),
        }
        self.step();
    }

    fn message(&mut self, worker: Generation, message: FromWorker, descriptor: Option<Descriptor>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        match message {
            FromWorker::Hello(hello) => {
                let understands = hello.version == VERSION;
                tracing::debug!(?hello, "a worker greets");
                member.understands = understands;
                self.fleet.greeted(worker, hello.retired, hello.listeners, understands);
                self.introduce_broker(worker);
            }
            FromWorker::Listener { address } => {
                let (key, understands) = ((member.name.index, address), member.understands);
                if descriptor.is_some_and(|socket| self.takes(key, socket)) {
                    self.fleet.collected(worker, address);
                    return;
                }
                // Those who wait there are accepted now: the next worker of the place will not have this socket.
                if understands {
                    self.send(worker, ToWorker::Unlisten { address }, None);
                }
                self.fleet.declined(worker);
            }
            FromWorker::Ready => self.fleet.ready(worker),
            FromWorker::Report(report) => {
                self.reports.report(worker, report);
                self.others_at.get_or_insert_with(|| Instant::now() + OTHERS);
            }
        }
    }

    /// Whether a worker's socket is the one of its place. One that comes late is not, if another one was opened in its
    /// stead, or if nobody wants one there any more.
    fn takes(&mut self, key: (u16, SocketAddr), socket: Descriptor) -> bool {
        let Plan { workers, listeners, .. } = &self.plan;
        if self.revision > 0 && !(key.0 < *workers && listeners.contains(&key.1)) {
            return false;
        }
        match self.sockets.entry(key) {
            Entry::Occupied(ours) => sockets::is_same(ours.get(), &socket),
            Entry::Vacant(place) => {
                place.insert(Arc::new(socket));
                true
            }
        }
    }

    /// Has connections spliced from now on.
    pub fn splice_with(&mut self, splicer: Splicer) {
        self.splicer = Some(splicer);
        for &worker in self.members.keys() {
            self.introduce_broker(worker);
        }
    }

    fn introduce_broker(&self, worker: Generation) {
        let Some((splicer, member)) = self.splicer.as_ref().zip(self.members.get(&worker)) else {
            return;
        };
        if member.understands {
            for (message, descriptor) in brokers::introduce(splicer, member.name.index, member.pid)
            {
                self.send(worker, message, Some(descriptor));
            }
        }
    }

    fn ended(&mut self, worker: Generation, why: Option<String>) {
        let Some(member) = self.members.remove(&worker) else { return };
        let Name { index, .. } = member.name;
        // One that says what nobody understands, or nothing at all, is of no use: its successor needs its place.
        if let Err(error) =
            self.directory.kill(member.name).and_then(|()| self.directory.forget(member.name))
        {
            tracing::error!("{error:#}");
        }
        self.reports.ended(worker);
        let (pid, why) = (member.pid, why.unwrap_or_else(|| "its process".to_owned()));
        match self.fleet.ended(worker, Instant::now()) {
            Some(wait) => {
                tracing::error!(
                    index,
                    pid,
                    "a worker has ended ({why}); the next one starts in {wait:?}"
                );
                let text =
                    format!("worker {index}, pid {pid}: {why}; the next one starts in {wait:?}");
                self.events.add(News::new(Kind::WorkerEnded, text));
            }
            None => {
                tracing::info!(index, pid, "a retired worker has ended");
                let text = format!("worker {index}, pid {pid}, which had retired");
                self.events.add(News::new(Kind::WorkerEnded, text));
            }
        }
    }

    fn step(&mut self) {
        loop {
            let mut again = false;
            for action in self.fleet.step(Instant::now()) {
                again |= self.act(action);
            }
            if !again {
                return;
            }
        }
    }

    /// Whether what there should be has changed by it.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Start { worker, index } => {
                return self.start(Name { generation: worker, index });
            }
            Action::Collect { worker } => self.send(worker, ToWorker::SendListeners, None),
            Action::Unlisten { worker, address } => {
                self.send(worker, ToWorker::Unlisten { address }, None);
            }
            Action::Settings { worker } => {
                let settings = Box::new(Settings::clone(&self.settings));
                self.send(worker, ToWorker::Settings(settings), None);
            }
            Action::Listen { worker, address } => {
                let Some(member) = self.members.get(&worker) else { return false };
                let socket = self.sockets.get(&(member.name.index, address)).cloned();
                self.send(worker, ToWorker::Listen { address }, socket);
            }
            Action::Retire { worker, deadline } => {
                tracing::info!(worker, deadline, "a worker retires");
                self.send(worker, ToWorker::Retire { deadline }, None);
            }
            Action::Kill { worker } => self.kill(worker, "does not answer"),
        }
        false
    }

    fn start(&mut self, name: Name) -> bool {
        match self.try_start(name) {
            Ok(pid) => {
                tracing::info!(index = name.index, pid, "worker started");
                let text = format!("worker {}, pid {pid}", name.index);
                self.events.add(News::new(Kind::WorkerStarted, text));
                false
            }
            Err(error) => {
                let wait = self.fleet.ended(name.generation, Instant::now()).unwrap_or_default();
                tracing::error!("{error:#}; next try in {wait:?}");
                true
            }
        }
    }

    fn try_start(&mut self, name: Name) -> Result<u32> {
        let control = self.directory.bind(name)?;
        let exits = self.exits.0.clone();
        let start = Start {
            edge: &self.edge,
            index: name.index,
            control,
            access_log: self.plan.access_log.as_deref(),
            account: self.plan.account.as_ref().context("no user to run workers as")?,
            arguments: &self.arguments,
        };
        let started = start::start(start, ended_badly(name, exits));
        let record = started.inspect_err(|_| drop(self.directory.forget(name)))?;
        if let Err(error) = self.directory.record(name, &record) {
            tracing::error!("{error:#}");
        }
        self.join(name, record.pid);
        Ok(record.pid)
    }

    fn join(&mut self, name: Name, pid: u32) {
        let link = Link::open(name.generation, self.directory.socket(name), self.heard.0.clone());
        self.members.insert(
            name.generation,
            Member { name, pid, link, understands: false, others: Vec::new() },
        );
    }

    fn send(&self, worker: Generation, message: ToWorker, descriptor: Option<Arc<Descriptor>>) {
        let Some(member) = self.members.get(&worker) else { return };
        if !member.link.send(message, descriptor) {
            self.kill(worker, "does not read what it is told");
        }
    }

    /// The end of its connection is what counts.
    fn kill(&self, worker: Generation, why: &str) {
        let Some(member) = self.members.get(&worker) else { return };
        tracing::error!(
            index = member.name.index,
            pid = member.pid,
            "the worker {why}: it is killed"
        );
        if let Err(error) = self.directory.kill(member.name) {
            tracing::error!("{error:#}");
        }
    }

    fn tell_of_others(&mut self) {
        if self.others_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.others_at = None;
        let spliced = self.spliced();
        for (&worker, member) in &mut self.members {
            let live = self.reports.others(worker, &spliced);
            if live != member.others {
                member.others.clone_from(&live);
                member.link.send(ToWorker::Others { live }, None);
            }
        }
    }

    /// Takes what a walk through the flow tables has found spliced, by the backends' ids there.
    pub fn walked(&mut self, spliced: BTreeMap<u16, u64>) {
        let by_then = self.spliced_by_now();
        if self.spliced.walked(spliced, by_then) {
            self.others_at.get_or_insert_with(|| Instant::now() + OTHERS);
        }
    }

    /// Names the backends of the settings by which the flow tables know them.
    pub fn name_spliced(&mut self, id: impl Fn(&str, SocketAddr) -> Option<u16>) {
        let services = self.settings.services.iter();
        let backends = services.flat_map(|service| {
            service.backends.iter().map(|it| (id(&service.name, it.address), it))
        });
        let backends = backends.filter_map(|(id, backend)| Some((id?, backend)));
        if self.spliced.name(backends) {
            self.others_at.get_or_insert_with(|| Instant::now() + OTHERS);
        }
    }

    fn spliced(&self) -> BTreeMap<String, u32> {
        self.spliced.live(&self.spliced_by_now())
    }

    fn spliced_by_now(&self) -> BTreeMap<u16, u64> {
        self.splicer.as_ref().map(|splicer| splicer.load().snapshot()).unwrap_or_default()
    }

    /// What the workers do, for the status.
    pub fn status(&self) -> Sidecar {
        let workers = self.fleet.workers().map(|(generation, index, phase)| Worker {
            index,
            pid: self.members.get(&generation).map_or(0, |member| member.pid),
            state: phase.label().to_owned(),
            restarts: self.fleet.restarts(index),
            connections: self.reports.connections(generation),
        });
        let mut workers: Vec<_> = workers.collect();
        // Of a place, the oldest first.
        workers.sort_by_key(|worker| worker.index);
        let handovers = self.splicer.as_ref().map(Splicer::timings);
        Sidecar { workers, sums: self.reports.sums(), spliced: self.spliced(), handovers }
    }
}

/// Tells of a process that has ended badly.
fn ended_badly(
    name: Name,
    exits: mpsc::Sender<(Name, String)>,
) -> impl FnOnce(u32, io::Result<ExitStatus>) + Send + 'static {
    move |pid, status| {
        let how = match status {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let _ = exits.blocking_send((name, format!("pid {pid}: {how}")));
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
