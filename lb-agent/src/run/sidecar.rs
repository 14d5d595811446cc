//! From the configuration and the backends' health to what the sidecar's workers are run with and told.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use lb_sidecar::settings::{CookieKey, Settings};
use tokio::time::Instant;

use super::{
    agent::Agent,
    certificates,
    checks::key,
    chronicle,
    drains::Drains,
    memory::memory,
    paces::{Paces, paces},
    reload::FileWatch,
    start::Refused,
    view,
    view_l7::{Drain, L7Picture},
};
use crate::{
    choice::{self, Mode},
    config::{AccessLog, Config, Service},
    sidecar::{
        Account, Event, Memory, Plan, Prepared, Supervisor, certificates::Material, keys, settings,
    },
};

/// The most workers that are started where nobody said how many.
const MOST_WORKERS: usize = 64;

/// What a configuration needs of this host, opened and read: what can fail has not failed.
pub struct Opened {
    prepared: Prepared,
    keys: Arc<Vec<CookieKey>>,
    access_log: Option<Arc<File>>,
    tls: Arc<Material>,
}

/// Opens and reads it. Nothing changes for the workers.
pub fn open(supervisor: &Supervisor, config: &Config) -> Result<Opened, Refused> {
    let refused = |error: anyhow::Error| Refused(vec![format!("{error:#}")]);
    let keys = Arc::new(cookie_keys(config)?);
    let tls = Arc::new(certificates::material(config)?);
    let plan = plan(config).map_err(refused)?;
    let access_log = plan.access_log.clone();
    let prepared = supervisor.prepare(plan).map_err(refused)?;
    Ok(Opened { prepared, keys, access_log, tls })
}

fn plan(config: &Config) -> Result<Plan> {
    let listeners: BTreeSet<SocketAddr> =
        config.l7().flat_map(|service| service.listen.iter().copied()).collect();
    if listeners.is_empty() {
        return Ok(Plan::default());
    }
    let sidecar = &config.edge.sidecar;
    let account = Account::named(&sidecar.user)?;
    // Where nobody listens, the kernel refuses who comes.
    let (workers, listeners) = match config.edge.drain {
        true => (0, BTreeSet::new()),
        false => (workers(config), listeners),
    };
    Ok(Plan {
        workers,
        listeners,
        account: Some(account),
        access_log: Some(Arc::new(access_log(&sidecar.access_log)?)),
    })
}

/// One for each CPU that this process may use, unless somebody said otherwise.
fn workers(config: &Config) -> u16 {
    let cpus = || thread::available_parallelism().map_or(1, |n| n.get().min(MOST_WORKERS)) as u32;
    let workers = config.edge.sidecar.workers.unwrap_or_else(cpus);
    u16::try_from(workers).unwrap_or(u16::MAX)
}

fn key_file(config: &Config) -> Option<&Path> {
    config.l7().next()?;
    config.edge.sidecar.cookie_keys.as_deref()
}

/// All keys of the file, if there is one; warnings go to the log.
fn cookie_keys(config: &Config) -> Result<Vec<CookieKey>, Refused> {
    let Some(path) = key_file(config) else { return Ok(Vec::new()) };
    let (keys, warnings) = keys::load(path, "can sign cookies")
        .map_err(|errors| Refused(errors.iter().map(ToString::to_string).collect()))?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(keys)
}

/// Where workers write the access log.
fn access_log(to: &AccessLog) -> Result<File> {
    match to {
        AccessLog::Off => append_to(Path::new("/dev/null")),
        AccessLog::Stdout => {
            let stdout = io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
            Ok(stdout.into())
        }
        AccessLog::File(path) => append_to(path),
    }
}

fn append_to(path: &Path) -> Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    file.with_context(|| format!("[edge.sidecar] access_log = {path:?}: cannot be written"))
}

/// Notices that the key file was saved.
pub struct KeyWatch {
    file: PathBuf,
    watch: FileWatch,
}

impl KeyWatch {
    pub fn watch(&mut self) -> &mut FileWatch {
        &mut self.watch
    }
}

impl Agent {
    /// Lets the workers follow a configuration that is in force.
    pub(super) fn feed(&mut self, opened: Opened) {
        self.keys = opened.keys;
        (self.tls, self.tls_refused) = (opened.tls, None);
        // Without l7 services the log before gets the lines of what is still spliced.
        if let Some(Err(error)) = opened.access_log.map(|file| self.log.replace(&file)) {
            tracing::error!("spliced connections that end are not logged: {error:#}");
        }
        self.watch_keys();
        self.watch_certificates();
        let (settings, deadline) = self.sidecar_settings();
        self.sidecar.apply(opened.prepared, settings, deadline);
        self.name_spliced();
    }

    fn watch_keys(&mut self) {
        let file = key_file(&self.parts.config);
        if self.key_watch.as_ref().map(|it| it.file.as_path()) == file {
            return;
        }
        self.key_watch = file.and_then(|file| match FileWatch::new(file) {
            Ok(watch) => Some(KeyWatch { file: file.to_owned(), watch }),
            Err(error) => {
                tracing::warn!("only SIGHUP reloads the cookie keys: {error:#}");
                None
            }
        });
    }

    /// Reads the key file anew. Whatever is wrong with it changes nothing.
    pub(super) fn keys_changed(&mut self) {
        match cookie_keys(&self.parts.config) {
            Ok(keys) if keys == *self.keys => {}
            Ok(keys) => {
                let ids: Vec<_> = keys.iter().map(|key| key.id.as_str()).collect();
                tracing::info!(?ids, "the cookie keys have changed: the first one signs");
                self.keys = Arc::new(keys);
                self.tell_sidecar();
            }
            Err(refused) => {
                refused.0.iter().for_each(|line| tracing::error!("{line}"));
                tracing::error!("the new cookie keys are refused; the ones before stay in force");
            }
        }
    }

    /// Tells the workers what has changed beside the configuration.
    pub(super) fn tell_sidecar(&mut self) {
        let (settings, deadline) = self.sidecar_settings();
        self.sidecar.tell(settings, deadline);
        self.name_spliced();
    }

    fn name_spliced(&mut self) {
        let ids = &self.plane.ids;
        self.sidecar.name_spliced(|service, addr| ids.backend(ids.service(service)?, addr));
    }

    /// The drains as of now, also those that the workers hear of next.
    pub(super) fn drains(&self) -> Drains {
        let (config, now) = (&*self.parts.config, unix_millis());
        let memory = memory(config, &self.liveness, self.sidecar.memory(), now);
        let paces = self.paces(&memory);
        Drains::new(config, &memory, now).sharing(paces).resetting(self.resets.clone())
    }

    fn paces(&self, memory: &Memory) -> Paces {
        if memory.drains.is_empty() && memory.edge_drains.is_none() && self.resets.is_empty() {
            return Paces::new();
        }
        let told = self.sidecar.settings();
        paces(&self.parts.config, memory, &self.resets, told, &self.sidecar.status())
    }

    /// And by when they are to end, if the edge drains.
    fn sidecar_settings(&mut self) -> (Settings, Option<u64>) {
        let config = Arc::clone(&self.parts.config);
        let before = self.sidecar.memory();
        let memory = memory(&config, &self.liveness, before, unix_millis());
        match (before.edge_drains, memory.edge_drains) {
            (None, Some(_)) => tracing::info!("the edge drains: it takes no new l7 clients"),
            (Some(_), None) => tracing::info!("the drain of the edge is called off"),
            _ => {}
        }
        let deadline = memory.edge_drains.and_then(|since| settings::edge_until(&config, since));
        let paces = self.paces(&memory);
        let mut settings = settings::settings(
            &config,
            &self.keys,
            workers(&config).into(),
            |service, backend| {
                let key = key(&service.name, backend);
                let slow_start = service.health.slow_start;
                let now = Instant::now();
                settings::Seen {
                    up: self.liveness.serves(&key),
                    weight: self.liveness.weight(&key, backend.weight, slow_start, now),
                }
            },
            |service, backend| {
                let since = memory.drains.get(&service.name).and_then(|it| it.get(&backend.name));
                since.copied().unwrap_or_else(unix_millis)
            },
        );
        certificates::fill(&mut settings, &self.tls);
        let among = u32::from(workers(&config)).max(1);
        for service in &mut settings.services {
            if let Some(pace) = paces.get(&service.name) {
                service.drain.rate = (pace.relayed / among).max(1);
            }
        }
        let drains = chronicle::drains(before, &memory);
        self.sidecar.remember(memory);
        drains.into_iter().for_each(|news| self.note(news));
        let modes = config.l7().map(|service| (service.name.clone(), self.mode(service)));
        self.alarms.tell_l7(modes.collect());
        (settings, deadline)
    }

    /// Who gets newcomers of an l7 service now.
    fn mode(&self, service: &Service) -> Mode {
        choice::of_l7(&self.parts.config.edge, service, |backend| {
            let key = key(&service.name, backend);
            let slow_start = service.health.slow_start;
            let weight = self.liveness.weight(&key, backend.weight, slow_start, Instant::now());
            (self.liveness.serves(&key), weight)
        })
    }

    /// Whether the edge drains, and until when.
    pub(super) fn draining(&self) -> Option<Drain> {
        let since = self.sidecar.memory().edge_drains?;
        Some(Drain { until: settings::edge_until(&self.parts.config, since) })
    }

    /// The services of the sidecar as it was told of them last.
    pub(super) fn l7_pictures(&self) -> Arc<Vec<L7Picture>> {
        let told = &self.sidecar.settings().services;
        let ids = &self.plane.ids;
        let pictures = self.parts.config.l7().filter_map(|service| {
            let id = ids.service(&service.name)?;
            Some(L7Picture {
                config: service.clone(),
                id,
                backends: service.backends.iter().map(|it| ids.backend(id, it.address)).collect(),
                told: told.iter().find(|it| it.name == service.name)?.clone(),
                on_host: view::on_host(service, &self.network.state),
                mode: self.mode(service),
                outliers: self.records(service),
            })
        });
        Arc::new(pictures.collect())
    }

    /// Handles what happens to the workers.
    pub(super) fn supervise(&mut self, event: Event) {
        let judged = self.observe_outliers(&event);
        self.sidecar.handle(event);
        if judged { self.update() } else { self.show() }
    }
}

pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
