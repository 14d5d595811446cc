//! From one configuration to the next under running traffic: all of it, or none.

use std::{sync::Arc, time::SystemTime};

use anyhow::Result;
use tokio::{task::block_in_place, time::Instant};

use super::{
    admin,
    agent::{Agent, RETRY},
    input,
    sidecar::{self, unix_millis},
    start::{LoadedConfig, Refused, load_config},
    view::MadeOf,
};
use crate::{
    config::{Config, Edge},
    events::{Kind, News},
};

impl Agent {
    /// Makes a configuration, whose ids are assigned, the one that counts from now on.
    pub(super) fn adopt(&mut self, config: Arc<Config>) {
        let (plane, first) = (&self.plane, self.generation == 0);
        let memory = self.sidecar.memory();
        // Later an id may be another backend's than it was in the maps of the agent before.
        self.liveness.follow(&config, |service, backend| {
            let of_xdp = || plane.remembers(&service.name, backend.address);
            let of_sidecar = || memory.was_live(&service.name, backend.address);
            first.then(|| if service.l7().is_some() { of_sidecar() } else { of_xdp() })?
        });
        self.parts.config = config;
        self.generation += 1;
        self.taken = Some(SystemTime::now());
    }

    /// Reads the file anew. Whatever is wrong with it changes nothing.
    pub(super) async fn reload(&mut self, asked_for: bool) {
        let result = match load_config(&self.parts.path) {
            Ok(loaded) if loaded.text == self.parts.text && !asked_for => return,
            Ok(loaded) => {
                self.notify.reloading();
                self.parts.text.clone_from(&loaded.text);
                self.take_over(loaded).await
            }
            Err(refused) => Err(refused),
        };
        match result {
            Ok(()) => self.refused = None,
            Err(refused) if Some(&refused) == self.refused.as_ref() && !asked_for => return,
            Err(refused) => {
                self.parts.text.clear();
                for line in &refused.0 {
                    tracing::error!("{line}");
                }
                tracing::error!(
                    file = %self.parts.path.display(),
                    "the new configuration is refused; the edge goes on with the one before"
                );
                self.note(News::new(Kind::ConfigRefused, refused.to_string()));
                self.refused = Some(refused);
            }
        }
        self.show();
        self.tell_ready();
    }

    async fn take_over(&mut self, loaded: LoadedConfig) -> Result<(), Refused> {
        let LoadedConfig { config: file, warnings, text } = loaded;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let before = Arc::clone(&self.parts.made_of);
        let mut overrides = before.overrides.clone();
        let (config, dropped) = overrides.applied(&file, unix_millis());
        self.parts.made_of = Arc::new(MadeOf { file, text, overrides });
        if let Err(refused) = self.put_in_force(config).await {
            self.parts.made_of = before;
            return Err(refused);
        }
        if !dropped.is_empty() {
            dropped.iter().for_each(|dropped| tracing::warn!("{dropped}"));
            if let Err(error) = self.keep(&self.parts.made_of.overrides) {
                tracing::error!("{error:#}");
            }
        }
        tracing::info!(
            file = %self.parts.path.display(),
            generation = self.generation,
            services = self.parts.config.services.len(),
            "the new configuration is in force"
        );
        let text = format!("generation {} is in force", self.generation);
        self.note(News::new(Kind::ConfigLoaded, text));
        Ok(())
    }

    /// Follows a configuration that operators have changed.
    pub(super) async fn adjust(&mut self, config: Config) -> Result<(), Refused> {
        if config.edge != self.parts.config.edge {
            let result = self.put_in_force(config).await;
            self.show();
            return result;
        }
        // The host has no part in it, and what may be wrong with it is not in the way of a drain.
        let old = Arc::clone(&self.parts.config);
        if let Err(error) = self.switch(Arc::new(config)) {
            self.go_back(old);
            return Err(Refused(vec![format!("{error:#}")]));
        }
        self.follow_up().await;
        self.tell_sidecar();
        self.show();
        Ok(())
    }

    async fn put_in_force(&mut self, config: Config) -> Result<(), Refused> {
        let old = Arc::clone(&self.parts.config);
        fixed_keys(&old.edge, &config.edge)?;
        let refused = |error: anyhow::Error| Refused(vec![format!("{error:#}")]);
        let server = match old.edge.admin == config.edge.admin {
            true => None,
            false => {
                let bound = admin::bind(config.edge.admin).map_err(refused)?;
                Some(bound.serve(self.parts.server.state.clone()).map_err(refused)?)
            }
        };
        let opened = sidecar::open(&self.sidecar, &config)?;
        let mut interfaces = self.interfaces.clone();
        let attached = block_in_place(|| interfaces.attach(&self.plane.loaded, &config.edge));
        // Attaching brings the usual program back.
        self.cut_trace("the configuration was taken over");
        attached.map_err(refused)?;
        if let Err(error) = self.switch(Arc::new(config)) {
            self.go_back(old);
            return Err(refused(error));
        }
        self.interfaces = interfaces;
        self.interfaces.detach_others(&self.plane.loaded, &self.parts.config.edge);
        self.publish_spliced();
        if let Some(server) = server {
            tracing::info!(admin = %server.address, "the admin API has moved");
            self.parts.server = server;
        }
        self.follow_up().await;
        self.feed(opened);
        Ok(())
    }

    fn switch(&mut self, config: Arc<Config>) -> Result<()> {
        self.plane.assign(&input::skeleton(&config))?;
        self.adopt(config);
        self.reconcile()
    }

    /// Undoes a switch that failed half-way.
    fn go_back(&mut self, old: Arc<Config>) {
        let result = self.switch(old).and_then(|()| self.attach());
        if let Err(error) = result {
            tracing::error!("the configuration before cannot be restored: {error:#}");
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }
}

/// What only a new agent, or new maps, can take over.
fn fixed_keys(old: &Edge, new: &Edge) -> Result<(), Refused> {
    let mut reasons = Vec::new();
    if old.name != new.name {
        reasons.push(format!(
            "[edge] name = {:?}: a running edge keeps its name, {:?}: `lb-agent unload --edge {}` and a start with \
             the new file change it (this ends every flow)",
            new.name, old.name, old.name
        ));
    }
    if old.tables != new.tables {
        reasons.push(format!(
            "[edge.tables]: tables in use keep their sizes: `lb-agent unload --edge {}` and a start with the new \
             file change them (this ends every flow)",
            old.name
        ));
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refused(reasons)) }
}
