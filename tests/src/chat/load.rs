//! A load of chat clients: many connections, each checked, until somebody stops it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustls::ClientConfig;

use super::pattern::{Pattern, Side};
use super::session::Session;
use super::stats::{ConnectionReport, LoadStats};
use crate::netns::{NsHandle, NsTask, Stop};

/// What the clients do. The default: one connection, a message of up to 1 KiB every 20 ms.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Connections take turns over these.
    pub targets: Vec<SocketAddr>,
    /// The connections' own addresses, in turns; empty: the kernel chooses.
    pub sources: Vec<IpAddr>,
    pub connections: usize,
    pub seed: u64,
    pub path: String,
    pub host: String,
    /// Between two messages of a connection.
    pub interval: Duration,
    /// The shortest and the longest message.
    pub message: (usize, usize),
    /// How many messages may be on their way.
    pub window: usize,
    /// A session with so many messages is closed and followed by another one.
    pub messages_per_session: Option<u64>,
    /// Whether a lost session is followed by another one.
    pub reconnect: bool,
    pub reconnect_delay: Duration,
    /// Between the starts of two connections.
    pub ramp: Duration,
    /// For the connection and the upgrade together.
    pub connect_timeout: Duration,
    /// A session from which nothing comes for so long although an answer is due has failed.
    pub stall: Duration,
    /// Whether the clients come by TLS, and whom they trust then.
    pub tls: Option<Arc<ClientConfig>>,
}

impl LoadConfig {
    #[must_use]
    pub fn new(targets: impl Into<Vec<SocketAddr>>, connections: usize, seed: u64) -> Self {
        Self {
            targets: targets.into(),
            sources: Vec::new(),
            connections,
            seed,
            path: "/chat".to_owned(),
            host: "chat.test".to_owned(),
            interval: Duration::from_millis(20),
            message: (1, 1024),
            window: 1,
            messages_per_session: None,
            reconnect: true,
            reconnect_delay: Duration::from_millis(100),
            ramp: Duration::ZERO,
            connect_timeout: Duration::from_secs(5),
            stall: Duration::from_secs(10),
            tls: None,
        }
    }

    /// The length of a session's message: any between the two, but the same in every run with the seed.
    pub(super) fn message_length(&self, session: u64, count: u64) -> usize {
        let (shortest, longest) = self.message;
        let mut dice = [0; 8];
        Pattern::new(!self.seed, session, Side::Client).fill(count * 8, &mut dice);
        let choices = longest.saturating_sub(shortest) as u64 + 1;
        shortest + (u64::from_le_bytes(dice) % choices) as usize
    }
}

type Reports = Arc<[Mutex<ConnectionReport>]>;

/// A running load. On drop its connections are cut; see [`Load::stop`].
#[derive(Debug)]
pub struct Load {
    seed: u64,
    reports: Reports,
    task: NsTask<()>,
}

impl Load {
    /// Starts the clients in `namespace` (or the caller's).
    pub fn start(namespace: Option<&NsHandle>, config: LoadConfig) -> Result<Self> {
        if config.targets.is_empty() {
            bail!("a load needs a target");
        }
        let report = |index| ConnectionReport { index, ..ConnectionReport::default() };
        let reports: Reports = (0..config.connections).map(report).map(Mutex::new).collect();
        let seed = config.seed;
        let states = Arc::clone(&reports);
        let task = NsTask::start(namespace, "load", move |stop| async move {
            let config = Arc::new(config);
            let clients: Vec<_> = (0..config.connections)
                .map(|index| {
                    let client = run(index, Arc::clone(&config), Arc::clone(&states), stop.clone());
                    tokio::task::spawn_local(client)
                })
                .collect();
            for client in clients {
                client.await.expect("a client does not panic");
            }
        });
        Ok(Self { seed, reports, task })
    }

    #[must_use]
    pub fn stats(&self) -> LoadStats {
        read(self.seed, &self.reports)
    }

    /// Waits until the stats are as wished.
    pub fn wait_until(
        &self,
        timeout: Duration,
        mut wish: impl FnMut(&LoadStats) -> bool,
    ) -> Result<LoadStats> {
        let deadline = Instant::now() + timeout;
        loop {
            let asked = Instant::now();
            let stats = self.stats();
            let took = asked.elapsed();
            if wish(&stats) {
                return Ok(stats);
            }
            if Instant::now() >= deadline || self.task.is_finished() {
                bail!("not as wished after {timeout:?}: {stats}");
            }
            // An account of many connections takes its time, too: that of the clients.
            std::thread::sleep(Duration::from_millis(5).max(took * 10));
        }
    }

    /// Waits until every connection is open.
    pub fn wait_connected(&self, timeout: Duration) -> Result<LoadStats> {
        self.wait_until(timeout, |stats| stats.connected == stats.connections)
    }

    /// Waits until every connection has brought `messages` more whole messages back: traffic flows.
    pub fn wait_progress(&self, messages: u64, timeout: Duration) -> Result<LoadStats> {
        let before = self.stats();
        self.wait_until(timeout, |now| {
            let mut pairs = now.per_connection.iter().zip(&before.per_connection);
            pairs.all(|(now, before)| now.messages >= before.messages + messages)
        })
    }

    /// Lets what is on its way come back, closes every connection and returns the final account.
    #[must_use]
    pub fn stop(self) -> LoadStats {
        self.task.stop();
        self.task.join();
        read(self.seed, &self.reports)
    }
}

fn read(seed: u64, reports: &Reports) -> LoadStats {
    let read = |report: &Mutex<ConnectionReport>| {
        report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    };
    LoadStats::sum(seed, reports.iter().map(read).collect())
}

/// One connection: session after session.
async fn run(index: usize, config: Arc<LoadConfig>, reports: Reports, mut stop: Stop) {
    let ramp = config.ramp * u32::try_from(index).unwrap_or(u32::MAX);
    tokio::select! {
        () = tokio::time::sleep(ramp) => {}
        () = stop.requested() => return,
    }
    let target = config.targets[index % config.targets.len()];
    let sources = config.sources.iter().filter(|s| s.is_ipv4() == target.is_ipv4());
    let source = sources.cycle().nth(index).copied();
    let report = &reports[index];
    let lock = || report.lock().unwrap_or_else(PoisonError::into_inner);
    lock().target = Some(target);
    for attempt in 0.. {
        let number = attempt * config.connections as u64 + index as u64;
        let session = Session { config: &config, target, source, number, report };
        match session.run(stop.clone()).await {
            Ok(()) => lock().connected = false,
            Err((failure, error)) => {
                lock().failed(failure, error);
                if !config.reconnect {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(config.reconnect_delay) => {}
                    () = stop.requested() => {}
                }
            }
        }
        if stop.is_requested() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChatServer, Failure, ServerConfig};
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn server(name: &str) -> ChatServer {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = ServerConfig {
            push: Some((Duration::from_millis(3), 100)),
            ..ServerConfig::new(name, [any])
        };
        ChatServer::start(None, config).unwrap()
    }

    fn quick(server: &ChatServer, connections: usize) -> LoadConfig {
        LoadConfig {
            interval: Duration::from_millis(1),
            ..LoadConfig::new(server.addresses(), connections, 11)
        }
    }

    #[test]
    fn a_load_is_echoed_pushed_and_closed_without_an_error() {
        let server = server("chat-1");
        let load = Load::start(None, LoadConfig { window: 4, ..quick(&server, 20) }).unwrap();
        load.wait_connected(SOON).unwrap();
        server.broadcast("hello all");
        let stats = load.wait_progress(20, SOON).unwrap();
        assert_eq!(stats.connected_to("chat-1"), 20);
        load.wait_until(SOON, |s| s.broadcasts == 20 && s.pushed > 2000).unwrap();
        let stats = load.stop();
        assert_eq!((stats.errors, stats.wrong, stats.connected), (0, 0, 0), "{stats}");
        assert_eq!(stats.sessions, 20);
        let served = server.stats();
        assert_eq!((served.messages, served.bytes, served.wrong), (stats.messages, stats.bytes, 0));
    }

    #[test]
    fn sessions_follow_each_other() {
        let server = server("chat-1");
        let config = LoadConfig { messages_per_session: Some(3), ..quick(&server, 4) };
        let load = Load::start(None, config).unwrap();
        load.wait_until(SOON, |s| s.reconnects > 20).unwrap();
        let stats = load.stop();
        assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    }

    #[test]
    fn a_cut_server_is_noticed_and_its_clients_come_back() {
        let first = server("chat-1");
        let address = first.addresses()[0];
        let load = Load::start(None, quick(&first, 5)).unwrap();
        load.wait_progress(2, SOON).unwrap();
        drop(first);
        load.wait_until(SOON, |s| s.connected == 0 && s.errors >= 5).unwrap();
        let config = ServerConfig::new("chat-2", [address]);
        let second = ChatServer::start(None, config).unwrap();
        let stats = load.wait_until(SOON, |s| s.connected_to("chat-2") == 5).unwrap();
        assert_eq!((stats.reconnects, stats.wrong), (5, 0), "{stats}");
        assert!(stats.longest_outage_ms > 0);
        second.stop();
        let stats = load.wait_until(SOON, |s| s.failures.contains_key(&Failure::Closed)).unwrap();
        assert_eq!(stats.wrong, 0);
    }

    #[test]
    fn a_server_that_is_not_ready_rejects() {
        let server = server("chat-1");
        server.set_ready(false);
        let load = Load::start(None, LoadConfig { reconnect: false, ..quick(&server, 2) }).unwrap();
        let stats = load.wait_until(SOON, |s| s.errors == 2).unwrap();
        assert_eq!(stats.failures.get(&Failure::Rejected), Some(&2), "{stats}");
        assert_eq!(server.stats().plain, 2);
    }

    #[test]
    fn another_sessions_stream_is_wrong() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = ChatServer::start(None, ServerConfig::new("chat-1", [any])).unwrap();
        // The server takes the first numbers that it finds: it expects another stream than comes.
        let load = Load::start(
            None,
            LoadConfig { path: "/chat?seed=1&session=1&".to_owned(), ..quick(&server, 1) },
        );
        let load = load.unwrap();
        let stats = load.wait_until(SOON, |s| s.wrong > 0).unwrap();
        assert!(stats.failures.contains_key(&Failure::Wrong), "{stats}");
        assert!(server.stats().wrong > 0);
    }
}
