//! From the configuration and the backends' health to what the sidecar's workers are run with and told.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    agent::Agent, checks::key, liveness::Liveness, reload::FileWatch, start::Refused, view,
    view_l7::L7Picture,
};
use crate::{
    config::{AccessLog, Config},
    sidecar::{Account, Event, Memory, Plan, Prepared, Supervisor, keys, settings},
};

/// The most workers that are started where nobody said how many.
const MOST_WORKERS: usize = 64;

/// What a configuration needs of this host, opened and read: what can fail has not failed.
pub struct Opened {
    prepared: Prepared,
    keys: Arc<Vec<CookieKey>>,
}

/// Opens and reads it. Nothing changes for the workers.
pub fn open(supervisor: &Supervisor, config: &Config) -> Result<Opened, Refused> {
    let refused = |error: anyhow::Error| Refused(vec![format!("{error:#}")]);
    let keys = Arc::new(cookie_keys(config)?);
    let plan = plan(config).map_err(refused)?;
    let prepared = supervisor.prepare(plan).map_err(refused)?;
    Ok(Opened { prepared, keys })
}

fn plan(config: &Config) -> Result<Plan> {
    let listeners: BTreeSet<SocketAddr> =
        config.l7().flat_map(|service| service.listen.iter().copied()).collect();
    if listeners.is_empty() {
        return Ok(Plan::default());
    }
    let sidecar = &config.edge.sidecar;
    let account = Account::named(&sidecar.user)?;
    Ok(Plan {
        workers: workers(config),
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
    let (keys, warnings) = keys::load(path)
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
        self.watch_keys();
        let settings = self.sidecar_settings();
        self.sidecar.apply(opened.prepared, settings);
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
        let settings = self.sidecar_settings();
        self.sidecar.tell(settings);
    }

    fn sidecar_settings(&mut self) -> Settings {
        let config = Arc::clone(&self.parts.config);
        let memory = memory(&config, &self.liveness, self.sidecar.memory(), unix_millis());
        let settings = settings::settings(
            &config,
            &self.keys,
            workers(&config).into(),
            |service, backend| {
                let key = key(&service.name, backend);
                let slow_start = service.health.slow_start;
                let now = Instant::now();
                settings::Seen {
                    up: self.liveness.is_live(&key),
                    weight: self.liveness.weight(&key, backend.weight, slow_start, now),
                }
            },
            |service, backend| {
                let since = memory.drains.get(&service.name).and_then(|it| it.get(&backend.name));
                since.copied().unwrap_or_else(unix_millis)
            },
        );
        self.sidecar.remember(memory);
        self.alarms.tell_l7(&settings);
        settings
    }

    /// The services of the sidecar as it was told of them last.
    pub(super) fn l7_pictures(&self) -> Arc<Vec<L7Picture>> {
        let told = &self.sidecar.settings().services;
        let pictures = self.parts.config.l7().filter_map(|service| {
            Some(L7Picture {
                config: service.clone(),
                told: told.iter().find(|it| it.name == service.name)?.clone(),
                on_host: view::on_host(service, &self.network.state),
            })
        });
        Arc::new(pictures.collect())
    }

    /// Handles what happens to the workers.
    pub(super) fn supervise(&mut self, event: Event) {
        self.sidecar.handle(event);
        self.show();
    }
}

/// What the next agent must know, from what this one knew before.
fn memory(config: &Config, liveness: &Liveness, before: &Memory, now: u64) -> Memory {
    let mut memory = Memory::default();
    for service in config.l7() {
        memory.vips.extend(service.listen.iter().map(|addr| addr.ip()));
        let drained = before.drains.get(&service.name);
        let mut drains = BTreeMap::new();
        for backend in &service.backends {
            let known = (service.name.clone(), backend.address);
            match liveness.is_live(&key(&service.name, backend)) {
                true => memory.up.insert(known),
                false => memory.down.insert(known),
            };
            if backend.drain {
                let since = drained.and_then(|it| it.get(&backend.name)).copied().unwrap_or(now);
                drains.insert(backend.name.clone(), since);
            }
        }
        if !drains.is_empty() {
            memory.drains.insert(service.name.clone(), drains);
        }
    }
    memory
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    fn config(drained: &[&str]) -> Config {
        let mut text = r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            mode = "l7"
            affinity = "none"
            listen = ["203.0.113.10:80", "203.0.113.11:80"]
            "#
        .to_owned();
        for (n, name) in (2..).zip(["a", "b"]) {
            let drain = drained.contains(&name);
            text += &format!(
                "[[service.backend]]\nname = \"{name}\"\naddress = \"10.2.0.{n}:9000\"\ndrain = {drain}\n"
            );
        }
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    #[test]
    fn a_drain_begins_once_and_is_forgotten_when_it_is_called_off() {
        let liveness = Liveness::default();
        let of = |drained: &[&str], before: &Memory, now| {
            memory(&config(drained), &liveness, before, now)
        };
        let first = of(&["a"], &Memory::default(), 1_000);
        assert_eq!(first.drains["chat"], BTreeMap::from([("a".to_owned(), 1_000)]));
        let second = of(&["a", "b"], &first, 2_000);
        let both = [("a".to_owned(), 1_000), ("b".to_owned(), 2_000)];
        assert_eq!(second.drains["chat"], BTreeMap::from(both));
        let third = of(&["b"], &second, 3_000);
        assert_eq!(third.drains["chat"], BTreeMap::from([("b".to_owned(), 2_000)]));
        assert!(of(&[], &third, 4_000).drains.is_empty());
        assert_eq!(of(&["a"], &third, 5_000).drains["chat"]["a"], 5_000, "it begins anew");
    }

    #[test]
    fn the_next_agent_knows_who_was_up_and_which_addresses_are_the_edges() {
        let (config, mut liveness) = (config(&[]), Liveness::default());
        liveness.follow(&config, |_, _| None);
        let backends = &config.services[0].backends;
        assert!(liveness.observe(&key("chat", &backends[1]), State::Down, Instant::now()));
        let memory = memory(&config, &liveness, &Memory::default(), 0);
        assert_eq!(memory.vips.len(), 2);
        assert_eq!(memory.was_live("chat", backends[0].address), Some(true));
        assert_eq!(memory.was_live("chat", backends[1].address), Some(false));
    }
}
