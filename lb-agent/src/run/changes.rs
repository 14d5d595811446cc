//! Changes that operators ask for while the edge runs: one after the other, each in force and on the disk before it is
//! answered.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use lb_common::abi::ticks_from_millis;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    task::block_in_place,
    time::{Duration, Instant},
};

use super::{agent::Agent, checks::key, liveness::Liveness, sidecar::unix_millis, view::MadeOf};
use crate::{
    bpf::{lock::RUN_DIR, sys::now_ticks},
    config::Config,
    events::{self, News},
    overrides::{Change, Kind, Overrides, Refusal, file},
    sidecar::Directory,
};

/// By then whatever was to be reset is.
const RESETS_ARE_OVER: u32 = ticks_from_millis(3_600_000);

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
            && let Some(listener) = turned_away(&self.parts.config, &config, &self.liveness)
        {
            let error = format!("{listener} would have no backend left that takes clients");
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
        let now = now_ticks();
        self.resets.retain(|_, at| now.wrapping_sub(*at) < RESETS_ARE_OVER);
        self.resets.insert((service.to_owned(), backend.to_owned()), now);
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

/// The service and listener whose clients would have no backend any more, if there is one.
fn turned_away(before: &Config, after: &Config, liveness: &Liveness) -> Option<String> {
    let served = |config: &Config| {
        let mut served = BTreeSet::new();
        for service in &config.services {
            let takes = |backend: &crate::config::Backend| {
                let live = liveness.is_live(&key(&service.name, backend));
                live && backend.weight > 0 && !backend.drain
            };
            for listener in service.listen.iter().filter(|at| service.pool(**at).any(takes)) {
                served.insert((service.name.clone(), *listener));
            }
        }
        served
    };
    let (service, listener) = served(before).difference(&served(after)).next()?.clone();
    Some(format!("service {service:?}: listener {listener}"))
}
