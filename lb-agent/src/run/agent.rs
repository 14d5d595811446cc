//! The task that owns all state: one event after the other, each brings the maps to what they should hold.

use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use lb_sidecar::settings::CookieKey;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, block_in_place},
    time::{Duration, Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    admin,
    alarms::Alarms,
    certificates,
    changes::Ask,
    checks, chronicle,
    dataplane::DataPlane,
    drains::{self, Resets},
    ended::Log,
    input::{self, World},
    interfaces::Interfaces,
    liveness::Liveness,
    network::{self, Network},
    notify::Notify,
    reload::FileWatch,
    roster::{Current, Roster},
    sidecar::{KeyWatch, Opened},
    signals::{Request, Signals},
    start::Refused,
    sweeper::{self, Report},
    trace::{self, Tracer},
    upgrade::{self, End, Order, succession::Told},
    view::{self, MadeOf, Picture, ServicePicture, Sources, View},
};
use crate::{
    bpf::Lock,
    config::Config,
    events::{Kind, News},
    health::{HealthEvent, Prober, Runner, outlier::Outliers},
    netlink::NetEvent,
    sidecar::{Supervisor, certificates::Material},
    splice,
};

/// After a failed write, the next try.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Between two looks at who has how much of a drain to do.
const SHARES: Duration = Duration::from_secs(1);

/// An interval of those who wait for nothing.
const NEVER: Duration = Duration::from_secs(86_400);

/// What an agent has before it touches the data plane.
pub struct Parts {
    /// In force.
    pub config: Arc<Config>,
    /// The file that it was made of, and what was changed at runtime.
    pub made_of: Arc<MadeOf>,
    /// What the file said when it was last looked at; empty after it could not be read.
    pub text: String,
    pub path: PathBuf,
    pub view: View,
    pub server: admin::Server,
    /// At the Unix socket.
    #[expect(dead_code, reason = "it serves for as long as the agent runs")]
    pub local: admin::Local,
    #[expect(dead_code, reason = "held for as long as the agent runs")]
    pub lock: Lock,
}

/// An edge's agent.
pub struct Agent {
    pub(super) parts: Parts,
    pub(super) plane: DataPlane,
    pub(super) network: Network,
    pub(super) interfaces: Interfaces,
    pub(super) liveness: Liveness,
    pub(super) runner: Runner<Prober>,
    pub(super) events: mpsc::Receiver<HealthEvent>,
    pub(super) watch: Option<FileWatch>,
    pub(super) roster: Arc<Current>,
    /// What may be spliced.
    pub(super) spliced: Arc<splice::Current>,
    pub(super) sidecar: Supervisor,
    /// Those of the cookies.
    pub(super) keys: Arc<Vec<CookieKey>>,
    pub(super) key_watch: Option<KeyWatch>,
    pub(super) sweeper: Option<sweeper::Handle>,
    pub(super) punts: Option<JoinHandle<io::Error>>,
    pub(super) alarms: Alarms,
    /// Number of configurations taken over; of [`Roster::generation`], too, since only they take backends away.
    pub(super) generation: u64,
    /// When the last of them was.
    pub(super) taken: Option<SystemTime>,
    pub(super) refused: Option<Refused>,
    pub(super) retry_at: Option<Instant>,
    /// When a drain is over that has time left.
    pub(super) drain_at: Option<Instant>,
    /// That of the workers, for what was spliced.
    pub(super) log: Log,
    pub(super) shown: Arc<Vec<ServicePicture>>,
    pub(super) outliers: Outliers,
    /// What operators ask for.
    pub(super) asks: mpsc::Receiver<Ask>,
    /// To become another program.
    pub(super) orders: mpsc::Receiver<Order>,
    /// One of them, and when it is carried out.
    pub(super) upgrading: Option<(Instant, Order)>,
    pub(super) tracer: Tracer,
    /// Certificates and the like.
    pub(super) tls: Arc<Material>,
    pub(super) tls_watch: Option<certificates::Watch>,
    /// Why what their files hold now is not in force.
    pub(super) tls_refused: Option<Refused>,
    /// What they have asked to be reset; not for the next agent.
    pub(super) resets: Resets,
    /// Whoever supervises this process.
    pub(super) notify: Notify,
}

impl Agent {
    /// Handles events until the process is to end, or a part of the agent has ended that it cannot do without: whoever
    /// supervises the process starts it anew, and the data plane goes on meanwhile.
    pub async fn run(mut self, signals: &mut Signals) -> Result<End> {
        let mut refresh = interval(network::REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Half of the time is there for a change that takes long.
        let mut alive = interval(self.notify.watchdog.map_or(NEVER, |it| it / 2));
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = certificates::rounds();
        let sweeper = self.sweeper.as_ref().context("nobody walks the flow tables")?;
        let mut reports = sweeper.reports();
        let mut punts = self.punts.take().context("nobody sends packets without a next hop")?;
        loop {
            let due = self.next_due();
            let edge_drain = self.edge_drain_due();
            let upgrade = self.upgrading.as_ref().map(|(at, _)| *at);
            tokio::select! {
                request = signals.next() => match request {
                    Request::Reload => self.reload(true).await,
                    Request::Stop => break,
                },
                () = file_changed(self.watch.as_mut()) => self.reload(false).await,
                () = file_changed(self.key_watch.as_mut().map(KeyWatch::watch)) => self.keys_changed(),
                () = file_changed(self.tls_watch.as_mut().map(certificates::Watch::watch)) => {
                    self.certificates_changed();
                }
                Some(event) = self.events.recv() => self.judged(event),
                event = self.network.changed() => self.network_changed(event).await,
                event = self.sidecar.next() => self.supervise(event),
                swept = reports.changed() => {
                    ensure!(swept.is_ok(), "the thread that walks the flow tables has died");
                    let report = reports.borrow_and_update().clone();
                    self.swept(&report);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.update(),
                Some(ask) = self.asks.recv() => self.asked(ask).await,
                Some(order) = self.orders.recv(), if upgrade.is_none() => {
                    self.upgrading = Some((Instant::now() + upgrade::ANSWER, order));
                }
                () = sleep_until(upgrade.unwrap_or_else(Instant::now)), if upgrade.is_some() => break,
                event = self.tracer.next() => self.trace(event),
                () = sleep_until(edge_drain.unwrap_or_else(Instant::now)), if edge_drain.is_some() => {
                    self.begin_edge_drain().await;
                }
                ended = &mut punts => return Err(unread(ended)),
                _ = refresh.tick() => self.refresh().await,
                _ = alive.tick() => self.notify.alive(),
                _ = rounds.tick() => self.warn_of_ends(),
            }
        }
        let order = self.upgrading.take().filter(|(at, _)| *at <= Instant::now());
        match order {
            Some(_) => self.notify.reloading(),
            None => self.notify.stopping(),
        }
        self.cut_trace("the agent stops");
        // What has ended is told before the end.
        self.sweeper = None;
        self.log.finish();
        if let Some((_, order)) = order {
            return Ok(End::Upgrade(order, self.plane.loaded.program_id()));
        }
        tracing::info!(
            "stopped. The data plane stays, and traffic goes on as it is now: no health checks, no new \
             configuration. `lb-agent unload --edge {}` removes it",
            self.parts.config.edge.name
        );
        Ok(End::Stopped)
    }

    /// Attaches the program to the interfaces of the configuration.
    pub(super) fn attach(&mut self) -> Result<()> {
        self.interfaces.attach(&self.plane.loaded, &self.parts.config.edge)?;
        self.cut_trace("the program was attached anew");
        self.interfaces.detach_others(&self.plane.loaded, &self.parts.config.edge);
        self.publish_spliced();
        Ok(())
    }

    fn trace(&mut self, event: trace::desk::Event) {
        let loaded = &self.plane.loaded;
        block_in_place(|| self.tracer.handle(event, loaded.pins(), loaded.program()));
    }

    /// Ends the trace that there is, and says why.
    pub(super) fn cut_trace(&mut self, why: &'static str) {
        let loaded = &self.plane.loaded;
        block_in_place(|| self.tracer.cut(loaded.pins(), loaded.program(), why));
    }

    /// The last steps: clients may come from now on.
    pub(super) async fn begin(&mut self, sidecar: Opened) {
        self.follow_up().await;
        self.feed(sidecar);
        self.sidecar.wait_serving().await;
        self.show();
        self.parts.view.set_ready();
        let adopted = match self.plane.loaded.adopted() {
            true => ", with the flows of an earlier agent",
            false => "",
        };
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        let came = self.parts.view.told().map(Told::shown).unwrap_or_default();
        let text = format!("lb-agent {version}, pid {pid}{adopted}{came}");
        self.note(News::new(Kind::AgentStarted, text));
        self.tell_ready();
        let Config { edge, services, .. } = &*self.parts.config;
        tracing::info!(
            edge = edge.name,
            interfaces = ?edge.interfaces,
            services = services.len(),
            backends = services.iter().map(|service| service.backends.len()).sum::<usize>(),
            program_id = self.plane.loaded.program_id(),
            adopted = self.plane.loaded.adopted(),
            "ready"
        );
    }

    /// To the supervisor.
    pub(super) fn tell_ready(&self) {
        let services = self.parts.config.services.len();
        let status = match self.refused {
            Some(_) => {
                "the changed configuration is refused, the one before is in force".to_owned()
            }
            None => format!("edge {}, {services} services", self.parts.config.edge.name),
        };
        self.notify.ready(&status);
    }

    /// What a configuration that is in the maps asks for beside them.
    pub(super) async fn follow_up(&mut self) {
        self.runner.reconcile(checks::targets(&self.parts.config));
        self.apply_vips().await;
        self.network.resolve().await;
    }

    /// Brings the maps to what they should hold now, and tells everyone who depends on it.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        let drains = self.drains();
        let in_millis = drains.next_change().map(Duration::from_millis);
        let shares = drains.is_closing().then_some(SHARES);
        let next = in_millis.into_iter().chain(shares).min();
        self.drain_at = next.map(|wait| Instant::now() + wait);
        let config = &*self.parts.config;
        let next_hops = self.network.compute(&config.edge.interfaces, &self.backend_addresses());
        let world = World {
            config,
            liveness: &self.liveness,
            network: &self.network.state,
            next_hops: &next_hops,
            now: Instant::now(),
        };
        // A new ring is milliseconds of work.
        let (desired, writes) = block_in_place(|| self.plane.apply(&input::input(world)))?;
        let before = self.roster.get();
        let ids = &self.plane.ids;
        let roster = Roster::new(self.generation, world, &drains, ids, &desired, &before);
        self.alarms.tell(world, &desired);
        self.shown = Arc::new(view::services(world, &drains, &self.plane.ids, &desired));
        self.network.wrote(next_hops);
        let hurry = roster.dooms_more_than(&before);
        // First: a walk that begins with the new roster must not miss a splice to a backend that is none any more.
        self.publish_spliced();
        self.roster.set(roster);
        if let Some(sweeper) = self.sweeper.as_ref().filter(|_| hurry) {
            sweeper.hurry();
        }
        if writes > 0 {
            tracing::debug!(writes, "maps written");
        }
        Ok(())
    }

    /// The same where an error can only be told, and tried again.
    pub(super) fn update(&mut self) {
        self.judge_outliers();
        self.retry_at = None;
        if let Err(error) = self.reconcile() {
            tracing::error!("the maps are not up to date, next try in {RETRY:?}: {error:#}");
            self.retry_at = Some(Instant::now() + RETRY);
        }
        self.tell_sidecar();
        self.show();
    }

    /// When something is to be done that nobody will announce.
    fn next_due(&self) -> Option<Instant> {
        let weight = self.liveness.next_change(&self.parts.config, Instant::now());
        let due = [weight, self.retry_at, self.drain_at, self.outliers.next_return()];
        due.into_iter().flatten().min()
    }

    fn judged(&mut self, event: HealthEvent) {
        let mut changed = self.take_in(&event);
        while let Ok(event) = self.events.try_recv() {
            changed |= self.take_in(&event);
        }
        if changed {
            self.update();
        }
    }

    fn take_in(&mut self, event: &HealthEvent) -> bool {
        if self.liveness.knows(&event.key) {
            chronicle::health(event).into_iter().for_each(|news| self.note(news));
        }
        self.liveness.observe(&event.key, event.state, event.at)
    }

    /// Notes something for whoever asks later.
    pub(super) fn note(&self, news: News) {
        self.parts.view.events().add(news);
    }

    async fn network_changed(&mut self, event: NetEvent) {
        let changed = self.network.refresh(event).await;
        let links = event.links && self.check_interfaces();
        if changed || links {
            self.update();
        }
        if changed && (event.links || event.addresses) {
            self.apply_vips().await;
        }
        self.network.resolve().await;
    }

    async fn refresh(&mut self) {
        if self.check_interfaces() {
            self.update();
        }
        self.change_own_ticket_keys();
        self.network.resolve().await;
        self.network.keep_fresh().await;
    }

    fn check_interfaces(&mut self) -> bool {
        let xdp = self.parts.config.edge.xdp;
        block_in_place(|| self.interfaces.check(&self.plane.loaded, xdp))
    }

    async fn apply_vips(&self) {
        let config = &self.parts.config;
        self.network.apply_vips(&config.edge, &input::vips(config)).await;
    }

    /// Ids become free that no flow names any more. A walk that began before the newest configuration was in the maps
    /// may have missed a flow to a backend that was removed by it.
    fn swept(&mut self, report: &Report) {
        self.sidecar.walked(report.spliced.clone());
        let released = report.generation == self.generation
            && self.plane.release(|id| report.referenced.contains(&id));
        let over =
            drains::forget_over(&mut self.resets, &self.parts.config, &self.plane.ids, report);
        if over {
            tracing::debug!("what was to be reset is");
        }
        if released || over || self.drains().is_shared() {
            self.update();
        }
    }

    /// Addresses of the backends that packets may go to, those included which the configuration has no more.
    pub(super) fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        let ids = &self.plane.ids;
        ids.backends().chain(ids.retired_backends()).map(|(_, _, addr)| addr.ip()).collect()
    }

    pub(super) fn show(&self) {
        let reports = self.sweeper.as_ref().map(sweeper::Handle::reports);
        self.parts.view.show(Picture {
            program_id: self.plane.loaded.program_id(),
            adopted: self.plane.loaded.adopted(),
            config_generation: self.generation,
            config_taken: self.taken,
            config_refused: self.refused.as_ref().map(ToString::to_string),
            certificates_refused: self.tls_refused.as_ref().map(ToString::to_string),
            interfaces: self.interfaces.clone(),
            services: Arc::clone(&self.shown),
            l7: self.l7_pictures(),
            sidecar: self.sidecar.status(),
            drain: self.draining(),
            log: self.log.clone(),
            expiries: self.tls.expiries.clone(),
            sources: reports.map(|reports| Sources {
                pins: self.plane.pins().clone(),
                health: self.runner.view(),
                reports,
                config: Arc::clone(&self.parts.config),
                keys: Arc::clone(&self.keys),
                made_of: Arc::clone(&self.parts.made_of),
            }),
            withdrawing: self.edge_drain_due().is_some(),
        });
    }
}

/// Why packets without a next hop are not read any more.
fn unread(ended: Result<io::Error, JoinError>) -> anyhow::Error {
    let error = match ended {
        Ok(error) => anyhow!(error),
        // What the panic said stands above.
        Err(error) => anyhow!(error),
    };
    error.context("packets without a next hop cannot be read")
}

async fn file_changed(watch: Option<&mut FileWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
