//! Chats over `wss`: certificates change, and nobody notices who has a connection. Needs root.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tests::chat::{Load, LoadConfig, LoadStats};
use tests::edge::{Forward, L7Config};
use tests::effort;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::process::open_many_files;
use tests::seed::seed;
use tests::site::{Plan, Site, WEB};
use tests::tls::{Authority, Files};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(120);

/// A site whose `web` is served by TLS.
struct Secure {
    site: Site,
    authority: Authority,
    files: Files,
    _scratch: OwnedDir,
}

fn secure(what: &str) -> Secure {
    require_root();
    let scratch = OwnedDir::scratch("tls").unwrap();
    let (authority, files) = (Authority::new().unwrap(), Files::new(scratch.path()));
    authority.issue(&files, &[]).unwrap();
    let l7 = L7Config { tls: Some(files.clone()), ..L7Config::default() };
    let plan = Plan { l7: Some(l7), ..Plan::new(Forward::Nat, seed(what)) };
    Secure { site: plan.build().unwrap(), authority, files, _scratch: scratch }
}

impl Secure {
    fn chats(&self, connections: usize, tls: Arc<ClientConfig>) -> LoadConfig {
        LoadConfig { tls: Some(tls), ..self.site.chats_of(WEB, connections) }
    }

    fn start(&self, config: LoadConfig) -> Load {
        let load = Load::start(Some(self.site.lab.client(0)), config).unwrap();
        load.wait_connected(LATER).unwrap();
        load
    }

    /// A chat with clients that trust this authority.
    fn chat(&self, authority: &Authority) -> LoadStats {
        let chats = self.chats(4, authority.client().unwrap());
        let load =
            Load::start(Some(self.site.lab.client(0)), LoadConfig { reconnect: false, ..chats });
        let load = load.unwrap();
        load.wait_until(SOON, |it| it.connected == 4 || it.errors == 4).unwrap();
        load.stop()
    }

    fn says(&self, words: &str) {
        let deadline = std::time::Instant::now() + SOON;
        while !self.site.edge.log().iter().any(|line| line.contains(words)) {
            assert!(std::time::Instant::now() < deadline, "{words:?}: {:?}", self.site.edge.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn other_certificates_lose_nobody() {
    let connections = effort::choose(1_000, 5_000);
    open_many_files().unwrap();
    let mut it = secure("certificates");
    let config = LoadConfig {
        interval: effort::choose(Duration::from_secs(1), Duration::from_secs(5)),
        message: (1, 128),
        ramp: Duration::from_micros(1_500),
        connect_timeout: LATER,
        ..it.chats(connections, it.authority.client().unwrap())
    };
    let load = it.start(config);
    let relayed = |status: &tests::edge::Status| {
        status.workers().iter().map(|worker| worker.connections).sum::<u64>() == connections as u64
    };
    it.site.edge.wait_for("all are relayed", SOON, relayed).unwrap();

    // Noticed by itself: clients that trust only the new authority come in.
    let other = Authority::new().unwrap();
    other.issue(&it.files, &[]).unwrap();
    it.says("certificates or ticket keys have changed");
    let stats = it.chat(&other);
    assert_eq!(stats.errors, 0, "{stats}");
    let stats = it.chat(&it.authority);
    assert_eq!(stats.errors, 4, "they do not trust it: {stats}");
    load.wait_progress(1, LATER).unwrap();

    // What does not fit is refused, by itself and on demand.
    fs::write(&it.files.certificate, it.authority.pem()).unwrap();
    it.says("certificate and key do not belong together");
    it.says("the new certificates are refused");
    it.site.edge.reload().unwrap();
    it.says("the new configuration is refused");
    assert_eq!(it.chat(&other).errors, 0, "the ones before stay");
    load.wait_progress(1, LATER).unwrap();

    // And once more on demand.
    it.authority.issue(&it.files, &[]).unwrap();
    it.site.edge.reload().unwrap();
    it.says("the new configuration is in force");
    assert_eq!(it.chat(&it.authority).errors, 0);
    load.wait_progress(1, LATER).unwrap();

    // A new agent finds the workers, and their clients stay.
    it.site.edge.kill().unwrap();
    load.wait_progress(1, LATER).unwrap();
    it.site.edge.run().unwrap();
    assert_eq!(it.chat(&it.authority).errors, 0);
    load.wait_progress(1, LATER).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
}

#[test]
fn the_end_of_a_certificate_is_told() {
    let it = secure("ends");
    let metrics = it.site.edge.get("/metrics").unwrap().body;
    let line = metrics.lines().find(|it| it.starts_with("sluice_certificate_expiry_seconds{"));
    let line = line.expect("a certificate has an end");
    assert!(line.contains("service=\"web\"") && line.contains("chat.pem"), "{line}");
    let said =
        it.site.edge.cli(&["check", "--config", it.site.edge.config_path().to_str().unwrap()]);
    assert!(said.unwrap().contains(": ok, "));
}

/// Memory of all workers, in bytes.
fn resident(site: &Site) -> u64 {
    let workers = site.edge.status().unwrap().workers();
    let of = |pid: u32| -> u64 {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
    };
    workers.iter().map(|worker| of(worker.pid)).sum()
}

#[test]
fn an_idle_connection_is_small() {
    const CONNECTIONS: usize = 2_000;
    const MOST: u64 = 16 << 10;
    open_many_files().unwrap();
    let it = secure("memory");
    let idle = |connections| LoadConfig {
        interval: Duration::from_secs(3_600),
        message: (1, 128),
        ramp: Duration::from_micros(1_500),
        connect_timeout: Duration::from_secs(30),
        ..it.chats(connections, it.authority.client().unwrap())
    };
    // What is there once is there, and their first messages have come back.
    let warm = it.start(idle(200));
    warm.wait_until(SOON, |stats| stats.messages >= 200).unwrap();
    let before = resident(&it.site);
    let load = it.start(idle(CONNECTIONS));
    load.wait_until(LATER, |stats| stats.messages >= CONNECTIONS as u64).unwrap();
    let each = resident(&it.site).saturating_sub(before) / CONNECTIONS as u64;
    println!("{each} bytes for each connection");
    assert!(each <= MOST, "{each} bytes for each connection");
}
