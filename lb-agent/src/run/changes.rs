//! Changes that operators ask for while the edge runs: one after the other, each in force and on the disk before it is
//! answered.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    task::block_in_place,
    time::{Duration, Instant},
};

use super::{agent::Agent, checks::key, liveness::Liveness, sidecar::unix_millis, view::MadeOf};
use crate::{
    bpf::{lock::RUN_DIR, sys::now_ticks},
    config::{Backend, Config},
    events::{self, News},
    overrides::{Change, Kind, Overrides, Refusal, file},
    sidecar::Directory,
};

/// Somebody asks for a change, and waits.
pub struct Ask {
    /// Empty where the change is not about one.
    pub service: String,
    pub backend: String,
    pub change: Change,
    /// Also if it takes the last backend that clients are given to.
    pub force: bool,
    /// What the asker has seen last, if it must not have changed since.
    pub revision: Option<u64>,
    pub reply: oneshot::Sender<Result<Done, Refusal>>,
}

/// A change is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Of the overrides.
    pub revision: u64,
}

impl Agent {
    /// Answers who asks.
    pub(super) async fn asked(&mut self, ask: Ask) {
        let result = self.change(&ask).await;
        if let Err(refusal) = &result
            && refusal.kind == Kind::Failed
        {
            tracing::error!("a change is not in force: {refusal}");
        }
        // Who does not wait any more can look.
        let _ = ask.reply.send(result);
    }

    async fn change(&mut self, ask: &Ask) -> Result<Done, Refusal> {
        let MadeOf { file, overrides, .. } = &*self.parts.made_of;
        let revision = overrides.revision;
        if let Some(seen) = ask.revision.filter(|seen| *seen != revision) {
            let error = format!(
                "the edge was changed since: revision {seen} was seen, and {revision} is in force"
            );
            return Err(Refusal::conflict(error, "look again, then ask again".to_owned()));
        }
        let now = unix_millis();
        let mut next = overrides.clone();
        let at = (ask.service.as_str(), ask.backend.as_str());
        let config = next.change((file, &self.parts.config), at, &ask.change, now)?;
        if ask.change == Change::ResetFlows {
            self.reset_flows(&ask.service, &ask.backend);
            return Ok(Done { revision });
        }
        if !ask.force
            && let Some(who) = turned_away(&self.parts.config, &config, &self.liveness)
        {
            let error = format!("{who} would have no backend left that takes clients");
            let remedy = "bring another one up first, or say force".to_owned();
            return Err(Refusal::conflict(error, remedy));
        }
        self.override_by(next, config).await?;
        let revision = self.parts.made_of.overrides.revision;
        let Ask { service, backend, change, .. } = ask;
        tracing::info!(revision, service, backend, ?change, "changed by an operator");
        let news =
            News::new(events::Kind::OperatorChanged, format!("revision {revision}: {change:?}"));
        self.note(match (service.as_str(), backend.as_str()) {
            ("", _) => news,
            (service, "") => news.of(service),
            (service, backend) => news.at(service, backend),
        });
        Ok(Done { revision })
    }

    /// Resets the connections that a backend has now. Nothing else changes: clients may come back to it at once.
    fn reset_flows(&mut self, service: &str, backend: &str) {
        tracing::info!(service, backend, "an operator resets its connections");
        let news = News::new(events::Kind::OperatorChanged, "its connections are reset");
        self.note(news.at(service, backend));
        self.resets.insert((service.to_owned(), backend.to_owned()), now_ticks());
        let told = self.sidecar.settings().services.iter().find(|it| it.name == service);
        let told = told.and_then(|it| it.backends.iter().find(|it| it.name == backend));
        if let Some(id) = told.map(|it| it.id.clone()) {
            self.sidecar.reset(service, &id);
        }
        self.update();
    }

    /// Brings overrides, and the configuration that they make, into force and onto the disk; or neither.
    async fn override_by(&mut self, next: Overrides, config: Config) -> Result<(), Refusal> {
        let failed = |error: &dyn ToString, remedy: &str| {
            Refusal::failed(error.to_string(), remedy.to_owned())
        };
        let before = Arc::clone(&self.parts.made_of);
        self.keep(&next).map_err(|error| {
            failed(&format!("{error:#}"), "nothing is changed; see whether the disk is full")
        })?;
        self.parts.made_of = Arc::new(before.with(next));
        if let Err(refused) = self.adjust(config).await {
            self.parts.made_of = before;
            let overrides = &self.parts.made_of.overrides;
            if let Err(error) = self.keep(overrides) {
                tracing::error!("{error:#}");
            }
            return Err(failed(&refused, "nothing is changed; the log may say more"));
        }
        Ok(())
    }

    /// For the next agent.
    pub(super) fn keep(&self, overrides: &Overrides) -> Result<()> {
        let directory = Directory::of_edge(RUN_DIR.as_ref(), &self.parts.config.edge.name);
        directory.create()?;
        block_in_place(|| file::write(directory.path(), overrides))
    }

    /// When a drain of the edge begins that is only announced.
    pub(super) fn edge_drain_due(&self) -> Option<Instant> {
        let begins = self.parts.made_of.overrides.edge_drain_begins()?;
        let wait = Duration::from_millis(begins.saturating_sub(unix_millis()));
        (!self.parts.config.edge.drain).then(|| Instant::now() + wait)
    }

    pub(super) async fn begin_edge_drain(&mut self) {
        let mut overrides = self.parts.made_of.overrides.clone();
        // The timer's clock may be a little ahead.
        let now = unix_millis().max(overrides.edge_drain_begins().unwrap_or(0));
        let (config, _) = overrides.applied(&self.parts.made_of.file, now);
        if let Err(refused) = self.adjust(config).await {
            tracing::error!("the edge does not drain: {refused}");
            overrides.edge = None;
            self.parts.made_of = Arc::new(self.parts.made_of.with(overrides));
            if let Err(error) = self.keep(&self.parts.made_of.overrides) {
                tracing::error!("{error:#}");
            }
        }
    }
}

impl MadeOf {
    /// The same file under other overrides.
    fn with(&self, overrides: Overrides) -> Self {
        Self { file: self.file.clone(), text: self.text.clone(), overrides }
    }
}

/// The service, listener and pool whose clients would have no backend any more, if there is one.
fn turned_away(before: &Config, after: &Config, liveness: &Liveness) -> Option<String> {
    let (served, left) = (served(before, liveness), served(after, liveness));
    let (name, listener, pool) = served.difference(&left).next()?;
    let service = before.services.iter().find(|it| it.name == *name)?;
    let pool = service.pool_name(*pool).map(|it| format!(": pool {it:?}")).unwrap_or_default();
    Some(format!("service {name:?}: listener {listener}{pool}"))
}

/// Where a backend takes clients: services, their listeners, and the numbers of their pools. A route to one pool alone
/// has no use for the others.
fn served<'a>(config: &'a Config, liveness: &Liveness) -> BTreeSet<(&'a str, SocketAddr, u16)> {
    let mut served = BTreeSet::new();
    for service in &config.services {
        let takes = |backend: &&Backend| {
            let live = liveness.is_live(&key(&service.name, backend));
            live && backend.weight > 0 && !backend.drain
        };
        for listener in &service.listen {
            let pools = service.pool(*listener).filter(takes).map(|backend| backend.pool);
            served.extend(pools.map(|pool| (service.name.as_str(), *listener, pool)));
        }
    }
    served
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{health::State, overrides::PaceAsk};

    const POOLS: &str = r#"
        [edge]
        name = "e"
        interfaces = ["eth0"]
        hash_seed = "s"
        [[service]]
        name = "rooms"
        mode = "l7"
        listen = ["203.0.113.11:80"]
        backend = [{ name = "c", address = "10.2.0.2:1" }, { name = "down", address = "10.2.0.4:1" }]
        pool = [{ name = "canary", backend = [{ name = "d", address = "10.2.0.3:1" }] }]
        route = [{ pools = { canary = 1 } }]
        "#;

    #[test]
    fn the_last_taker_of_a_pool_is_missed_whoever_takes_in_the_others() {
        let file = crate::config::parse("edge.toml", POOLS).unwrap().0;
        let mut liveness = Liveness::default();
        liveness.follow(&file, |_, _| None);
        let down = file.services[0].backends.iter().find(|it| it.name == "down").unwrap();
        liveness.observe(&key("rooms", down), State::Down, Instant::now());
        let missed = |backend: &str, change: &Change| {
            let config =
                Overrides::default().change((&file, &file), ("rooms", backend), change, 1_000);
            turned_away(&file, &config.unwrap(), &liveness)
        };
        let drain = Change::Drain(PaceAsk::default());
        for change in [&drain, &Change::Maintenance(PaceAsk::default()), &Change::Weight(0)] {
            for (backend, pool) in [("c", "default"), ("d", "canary")] {
                let who = format!("service \"rooms\": listener 203.0.113.11:80: pool {pool:?}");
                assert_eq!(missed(backend, change), Some(who), "{change:?}");
            }
            assert_eq!(missed("down", change), None, "it had no clients");
        }
        assert!(missed("c", &Change::Remove).is_some());
        assert_eq!(missed("c", &Change::Weight(1)), None);
    }
}
