//! The Debian package of `cargo xtask dist`, installed for good on a machine of its own, and its unit under systemd: what
//! an operator does with them loses no connection. Needs root, systemd, and the package.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::chat::{Load, LoadConfig};
use tests::edge::{self, EdgeConfig, Forward, L7Config};
use tests::machine::Machine;
use tests::privilege::require_root;
use tests::process::Process;
use tests::seed::seed;
use tests::spliced::{SERVICES, SplicedPlan, server_name, start_server};
use tests::topology::Topology;

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(120);
const CHATS: usize = 16;
const UNIT: &str = "sluice.service";
const CONFIG: &str = "/etc/sluice/edge.toml";
const KEYS: &str = "/etc/sluice/cookie.keys";
const LOG: &str = "/var/log/sluice.log";

/// The newest package.
fn package() -> Result<PathBuf> {
    // target/PROFILE/deps/TEST
    let own = std::env::current_exe()?;
    let dist = own.ancestors().skip(1).take(4).map(|up| up.join("dist"));
    let files = dist.filter_map(|it| fs::read_dir(it).ok()).flatten().flatten();
    let packages =
        files.map(|it| it.path()).filter(|it| it.extension().is_some_and(|it| it == "deb"));
    let newest = packages.max_by_key(|it| fs::metadata(it).and_then(|it| it.modified()).ok());
    newest.context("target/dist has no package: run `cargo xtask dist`")
}

/// A machine with the package.
fn machine(lab: &Topology) -> Machine {
    let machine = Machine::boot(lab.edge()).unwrap();
    fs::copy(package().unwrap(), machine.path("/tmp/sluice.deb")).unwrap();
    // systemd-journald is not on this machine.
    let log = format!("[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n");
    machine.write(&format!("/etc/systemd/system/{UNIT}.d/log.conf"), &log).unwrap();
    install(&machine);
    machine
}

fn install(machine: &Machine) -> String {
    machine.run(&["dpkg", "--install", "/tmp/sluice.deb"]).unwrap()
}

fn lab() -> Topology {
    require_root();
    Topology::builder().clients(1).backends(1).build().unwrap()
}

#[test]
fn what_is_installed_is_where_it_belongs_and_goes_again() {
    let lab = lab();
    let machine = machine(&lab);
    let of = |path: &str| {
        let file =
            fs::symlink_metadata(machine.path(path)).unwrap_or_else(|it| panic!("{path}: {it}"));
        (file.mode() & 0o7777, file.uid(), file.gid())
    };
    let listed = machine.run(&["dpkg", "--listfiles", "sluice"]).unwrap();
    assert!(listed.lines().count() > 40, "{listed}");
    for path in listed.lines().filter(|it| *it != "/.") {
        let (mode, user, group) = of(path);
        let wanted = match path {
            "/usr/sbin/lb-agent" => 0o755,
            // Where keys will be.
            "/etc/sluice" => 0o750,
            _ if machine.path(path).is_dir() => 0o755,
            _ => 0o644,
        };
        assert_eq!((mode, user, group), (wanted, 0, 0), "{path}");
    }
    assert_eq!(machine.run(&["dpkg", "--verify", "sluice"]).unwrap(), "", "as it was packed");
    let version = machine.run(&["lb-agent", "--version"]).unwrap();
    let says = machine.run(&["dpkg-query", "--show", "--showformat=${Version}", "sluice"]).unwrap();
    assert_eq!(version.trim(), format!("lb-agent {says}"));
    let page = machine.run(&["man", "--pager=cat", "lb-agent-upgrade"]).unwrap();
    assert!(page.contains("--binary"), "{page}");
    let completions = "/usr/share/bash-completion/completions/lb-agent";
    let completed = format!(
        "set -e; . {completions}; COMP_WORDS=(lb-agent upg); COMP_CWORD=1; _lb__agent lb-agent upg lb-agent; \
         echo ${{COMPREPLY[@]}}"
    );
    assert_eq!(machine.run(&["bash", "-c", &completed]).unwrap().trim(), "upgrade");

    // The unit is right, and the sandbox as tight as it may be: nothing that gives it mounts of its own.
    assert_eq!(machine.run(&["systemd-analyze", "verify", UNIT]).unwrap(), "");
    let security = machine.run(&["systemd-analyze", "security", "--no-pager", UNIT]).unwrap();
    let overall = security.lines().find(|line| line.contains("Overall exposure")).unwrap();
    let figure: f64 = overall.split_whitespace().find_map(|it| it.parse().ok()).unwrap();
    eprintln!("systemd-analyze security: {figure}");
    assert!(figure < 5.5, "{security}");
    assert_eq!(machine.property(UNIT, "ActiveState").unwrap(), "inactive", "nobody asked for it");

    machine.write("/etc/sluice/own.keys", "an operator's").unwrap();
    machine.run(&["dpkg", "--remove", "sluice"]).unwrap();
    machine.run(&["dpkg", "--purge", "sluice"]).unwrap();
    let ours = |path: &&str| path.contains("sluice") || path.contains("lb-agent");
    let left: Vec<_> = listed.lines().filter(ours).filter(|path| machine.has(path)).collect();
    assert_eq!(left, ["/etc/sluice"], "what is the operator's stays");
    assert!(machine.has("/etc/sluice/own.keys"));
    assert!(machine.run(&["dpkg-query", "--show", "sluice"]).is_err(), "dpkg has forgotten it");
}

/// A site whose edge is the machine.
struct Site {
    machine: Machine,
    traffic: Vec<(String, Load, Load)>,
    _servers: Vec<Process>,
    lab: Topology,
    name: String,
}

const L4: (&str, u16) = ("l4", 81);
const RELAYED: (&str, u16) = ("relayed", 82);

impl Site {
    fn new(seed: u64) -> Self {
        require_root();
        let plan = SplicedPlan::new(seed);
        let lab = plan.topology().build().unwrap();
        let start = |index| start_server(lab.backend(index), &server_name(index)).unwrap();
        let servers = (0..plan.backends).map(start).collect();
        let mut config = plan.config(&lab);
        config.sidecar.cookie_keys = Some(KEYS.into());
        config.sidecar.access_log = Some("/var/log/sluice-access.log".into());
        config.nat_ports = 1024..=32767;
        add(&mut config, RELAYED, Some(L7Config { spliced: false, ..L7Config::default() }));
        add(&mut config, L4, None);
        let machine = machine(&lab);
        let keys = "test MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n";
        machine.write(KEYS, keys).unwrap();
        machine.run(&["chmod", "600", KEYS]).unwrap();
        machine.write(CONFIG, &config.to_string()).unwrap();
        machine.run(&["systemctl", "start", UNIT]).unwrap();
        let mut site = Self {
            machine,
            traffic: Vec::new(),
            _servers: servers,
            lab,
            name: config.name.clone(),
        };
        site.wait("all backends are up", |status| {
            let services = status["services"].as_array().unwrap();
            let mut backends = services.iter().flat_map(|it| it["backends"].as_array().unwrap());
            backends.all(|it| it["health"]["state"] == "up")
        });
        for service in &config.services {
            let lasting =
                site.load(&service.listen, LoadConfig { reconnect: false, ..site.config(seed) });
            let passing =
                LoadConfig { messages_per_session: Some(3), connections: 2, ..site.config(seed) };
            let passing = site.load(&service.listen, passing);
            site.traffic.push((service.name.clone(), lasting, passing));
        }
        for (_, lasting, _) in &site.traffic {
            lasting.wait_connected(LATER).unwrap();
        }
        site.wait("some are spliced", |status| {
            let spliced = |name| {
                let services = status["services"].as_array().unwrap().iter();
                services
                    .filter(|it| it["name"] == name)
                    .filter_map(|it| it["spliced"].as_u64())
                    .sum::<u64>()
            };
            SERVICES.iter().all(|name| spliced(*name) >= CHATS as u64)
        });
        site
    }

    fn config(&self, seed: u64) -> LoadConfig {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        LoadConfig {
            stall: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(30),
            ..LoadConfig::new([any], CHATS, seed)
        }
    }

    fn load(&self, targets: &[SocketAddr], config: LoadConfig) -> Load {
        let config = LoadConfig { targets: targets.to_vec(), ..config };
        Load::start(Some(self.lab.client(0)), config).unwrap()
    }

    fn status(&self) -> Result<Value> {
        let answer = edge::get(self.lab.edge(), EdgeConfig::ADMIN.parse()?, "/v1/status")?;
        Ok(serde_json::from_str(&answer.body)?)
    }

    fn wait(&self, what: &str, wish: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + SOON;
        loop {
            let status = self.status();
            match status {
                Ok(status) if status["ready"] == true && wish(&status) => return status,
                status if Instant::now() >= end => {
                    let log = self.machine.read(LOG).unwrap_or_default();
                    panic!("{what}: not so after {SOON:?}: {status:?}\n{log}");
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Everybody talks on, and others come.
    fn goes_on(&self, what: &str) {
        for (service, lasting, passing) in &self.traffic {
            let before = passing.stats().sessions;
            lasting.wait_progress(3, LATER).unwrap();
            passing.wait_until(LATER, |stats| stats.sessions >= before + 4).unwrap();
            let stats = lasting.stats();
            assert_eq!(
                (stats.errors, stats.wrong, stats.reconnects),
                (0, 0, 0),
                "{what}: {service}: {stats}"
            );
            let stats = passing.stats();
            assert_eq!((stats.errors, stats.wrong), (0, 0), "{what}: {service}: {stats}");
        }
    }

    fn main_pid(&self) -> String {
        self.machine.property(UNIT, "MainPID").unwrap()
    }

    fn workers(&self) -> BTreeSet<u64> {
        let status = self.wait("it is ready", |_| true);
        let workers = status["sidecar"]["workers"].as_array().unwrap().iter();
        let workers = workers.filter(|it| it["state"] == "serving");
        workers.map(|it| it["pid"].as_u64().unwrap()).collect()
    }

    fn is_active(&self) {
        self.machine.wait_property(UNIT, "ActiveState", |it| it == "active").unwrap();
        self.machine.wait_property(UNIT, "SubState", |it| it == "running").unwrap();
    }
}

/// Has another service in the same backends, at the same addresses.
fn add(config: &mut EdgeConfig, (name, port): (&str, u16), l7: Option<L7Config>) {
    for (version, from) in SERVICES.into_iter().enumerate() {
        let mut service = config.service(from).clone();
        service.name = format!("{name}-{version}");
        service.listen.iter_mut().for_each(|listener: &mut SocketAddr| listener.set_port(port));
        service.forward = Forward::Nat;
        service.l7.clone_from(&l7);
        config.services.push(service);
    }
}

#[test]
fn the_unit_restarts_reloads_upgrades_and_recovers_without_losing_a_connection() {
    let site = Site::new(seed("unit"));
    let machine = &site.machine;
    site.is_active();
    site.goes_on("start");
    let mounts =
        machine.run(&["readlink", "/proc/1/ns/mnt", &format!("/proc/{}/ns/mnt", site.main_pid())]);
    let mounts = mounts.unwrap();
    let (first, own) = mounts.trim().split_once('\n').unwrap();
    assert_eq!(first, own, "pins would end with mounts of its own");
    assert!(machine.property(UNIT, "StatusText").unwrap().contains(&site.name));
    assert_eq!(machine.property(UNIT, "NRestarts").unwrap(), "0");

    let (pid, workers) = (site.main_pid(), site.workers());
    for _ in 0..2 {
        let before = site.main_pid();
        machine.run(&["systemctl", "restart", UNIT]).unwrap();
        site.is_active();
        assert_ne!(site.main_pid(), before);
        assert_eq!(site.workers(), workers, "workers outlive it");
        site.goes_on("restart");
    }
    assert_ne!(site.main_pid(), pid);

    let generation = |status: &Value| status["config_generation"].as_u64().unwrap();
    let before = site.wait("it is ready", |_| true);
    let pid_before = site.main_pid();
    machine.run(&["systemctl", "reload", UNIT]).unwrap();
    site.wait("it has reloaded", |status| generation(status) > generation(&before));
    site.is_active();
    assert_eq!(site.main_pid(), pid_before);
    site.goes_on("reload");

    // The package anew, as `apt-get upgrade` does: the agent hands over within its process.
    let pid = site.main_pid();
    let said = install(machine);
    assert!(said.contains("ready after"), "{said}");
    eprintln!(
        "{}",
        said.lines()
            .filter(|it| it.contains("worker") || it.contains("XDP"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    site.is_active();
    assert_eq!(site.main_pid(), pid);
    assert!(site.workers().is_disjoint(&workers), "of the new program");
    site.goes_on("upgrade");

    // One that hangs is replaced.
    let brisk = "[Service]\nWatchdogSec=6\n";
    machine.write(&format!("/etc/systemd/system/{UNIT}.d/brisk.conf"), brisk).unwrap();
    machine.run(&["systemctl", "daemon-reload"]).unwrap();
    machine.run(&["systemctl", "restart", UNIT]).unwrap();
    site.goes_on("watched");
    // Longer than the watchdog waits: who is well is left alone.
    let (pid, since) = (site.main_pid(), Instant::now());
    while since.elapsed() < Duration::from_secs(9) {
        site.goes_on("watched");
    }
    assert_eq!(
        (site.main_pid(), machine.property(UNIT, "NRestarts").unwrap()),
        (pid.clone(), "0".to_owned())
    );
    machine.run(&["kill", "-STOP", &pid]).unwrap();
    machine.wait_property(UNIT, "NRestarts", |it| it == "1").unwrap();
    site.is_active();
    assert_ne!(site.main_pid(), pid);
    site.goes_on("watchdog");

    // Stopped, it leaves everything as it is.
    machine.run(&["systemctl", "stop", UNIT]).unwrap();
    assert_eq!(machine.property(UNIT, "ActiveState").unwrap(), "inactive");
    site.goes_on("stopped");
    machine.run(&["systemctl", "start", UNIT]).unwrap();
    site.is_active();
    site.goes_on("started");

    let Site { lab: _lab, _servers, machine, traffic, name } = site;
    for (service, lasting, passing) in traffic {
        let (lasting, passing) = (lasting.stop(), passing.stop());
        assert_eq!((lasting.errors, lasting.wrong, passing.errors, passing.wrong), (0, 0, 0, 0));
        eprintln!(
            "{service}: {} connections, none lost, {} bytes, 0 wrong; {} handshakes, none refused",
            lasting.connections, lasting.bytes, passing.sessions
        );
    }
    // The end of the package is the end of the edge.
    let pins = format!("/sys/fs/bpf/sluice/{name}");
    assert!(machine.has(&pins));
    machine.run(&["dpkg", "--purge", "sluice"]).unwrap();
    assert!(!machine.has(&pins) && !machine.has("/usr/sbin/lb-agent"));
    let start = Instant::now();
    while machine.run(&["ps", "-e", "-o", "comm="]).unwrap().contains("lb-") {
        assert!(start.elapsed() < SOON, "processes are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(machine.has(CONFIG), "the operator's");
}
