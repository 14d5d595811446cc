//! `lb-agent upgrade` and restarts under load: no connection is lost, no handshake refused, no byte wrong, whether the new
//! program comes up or not. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::chat::{Load, LoadConfig, LoadStats};
use tests::edge::{EdgeConfig, FlowLine, Forward, L7Config, Status};
use tests::effort;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::process::Process;
use tests::seed::seed;
use tests::site::{CHAT, Plan, Site, WEB};
use tests::tls::{Authority, Files};

const SOON: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_secs(120);

/// Between a lasting conversation's messages: without a moment of quiet it would not be spliced, and hundreds that speak as
/// fast as they can leave none on a slow machine.
const UNHURRIED: Duration = Duration::from_millis(200);

/// The services that a test adds: all connections relayed, and by TLS.
const RELAYED: (&str, u16) = ("relayed", 83);
const SECURE: (&str, u16) = ("secure", 84);

/// Conversations that last, for each service, and others that come and go meanwhile.
struct Traffic {
    lasting: Vec<(String, Load)>,
    passing: Vec<(String, Load)>,
}

impl Traffic {
    /// Of each service so many, once all are open.
    fn start(site: &Site, services: &[&str], secure: Option<&Authority>, count: usize) -> Self {
        let config = |service: &str, connections| LoadConfig {
            host: tests::tls::NAME.to_owned(),
            tls: secure.filter(|_| service == SECURE.0).map(|it| it.client().unwrap()),
            connect_timeout: Duration::from_secs(30),
            ..site.chats_of(service, connections)
        };
        let lasting = services.iter().map(|service| {
            let config =
                LoadConfig { reconnect: false, interval: UNHURRIED, ..config(service, count) };
            ((*service).to_owned(), Load::start(Some(site.lab.client(0)), config).unwrap())
        });
        let lasting: Vec<_> = lasting.collect();
        for (_, load) in &lasting {
            load.wait_connected(LATER).unwrap();
        }
        let passing = services.iter().map(|service| {
            let config = LoadConfig { messages_per_session: Some(3), ..config(service, 4) };
            ((*service).to_owned(), Load::start(Some(site.lab.client(0)), config).unwrap())
        });
        Self { passing: passing.collect(), lasting }
    }

    /// Every conversation goes on, and in every service others are opened.
    fn goes_on(&self) {
        let opened: Vec<_> = self.passing.iter().map(|(_, load)| load.stats().sessions).collect();
        for (_, load) in &self.lasting {
            load.wait_progress(effort::choose(3, 6), LATER).unwrap();
        }
        for ((_, load), before) in self.passing.iter().zip(opened) {
            load.wait_until(LATER, |stats| stats.sessions >= before + 8).unwrap();
        }
    }

    fn check(what: &str, service: &str, stats: &LoadStats) {
        assert_eq!((stats.errors, stats.wrong), (0, 0), "{what} {service}: {stats}");
    }

    fn nothing_is_lost(&self) {
        for (service, load) in &self.lasting {
            let stats = load.stats();
            Self::check("lasting", service, &stats);
            assert_eq!((stats.reconnects, stats.connected), (0, stats.connections), "{stats}");
        }
        for (service, load) in &self.passing {
            Self::check("passing", service, &load.stats());
        }
    }

    /// Ends all, and tells what it came to.
    fn stop(self, forward: Forward, changes: usize) {
        self.nothing_is_lost();
        for (service, load) in self.passing {
            let stats = load.stop();
            Self::check("passing", &service, &stats);
            let LoadStats { sessions, messages, .. } = stats;
            eprintln!(
                "{forward} {service}: {sessions} handshakes, none refused; {messages} messages right"
            );
        }
        for (service, load) in self.lasting {
            let stats = load.stop();
            Self::check("lasting", &service, &stats);
            let LoadStats { connections, messages, bytes, .. } = stats;
            eprintln!(
                "{forward} {service}: {connections} connections, none lost over {changes} changes of the agent; \
                 {messages} messages, {bytes} bytes, 0 wrong"
            );
        }
    }
}

fn copy_of(agent: &Path, directory: &OwnedDir, name: &str) -> PathBuf {
    let copy = directory.path().join(name);
    fs::copy(agent, &copy).unwrap();
    copy
}

/// What stands for an agent that passes its trial, and then does something else.
fn script(directory: &OwnedDir, agent: &Path, name: &str, then: &str) -> PathBuf {
    let path = directory.path().join(name);
    let agent = agent.display();
    let text = format!("#!/bin/sh\ncase \"$*\" in *--trial*) exec {agent} \"$@\";; esac\n{then}\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn upgrade(site: &Site, program: &Path) -> anyhow::Result<Value> {
    let (program, file) = (program.display().to_string(), site.edge.config_path());
    let file = file.display().to_string();
    let said = site.edge.cli(&["upgrade", "--json", "--binary", &program, "--config", &file])?;
    Ok(serde_json::from_str(&said)?)
}

fn refused(site: &Site, program: &Path) -> String {
    format!("{:#}", upgrade(site, program).unwrap_err())
}

fn executable(site: &Site) -> PathBuf {
    let link = Path::new("/proc").join(site.edge.process().pid().to_string()).join("exe");
    fs::read_link(link).unwrap()
}

fn pids(status: &Status) -> BTreeSet<u32> {
    status.serving().iter().map(|it| it.pid).collect()
}

fn spliced(site: &Site) -> BTreeSet<FlowLine> {
    let flows = site.edge.flows().unwrap().into_iter();
    flows.filter(|it| it.service == WEB && it.is_spliced() && it.is_open()).collect()
}

/// Has another service in the same backends.
fn add(config: &mut EdgeConfig, (name, port): (&str, u16), l7: L7Config) {
    let mut service = config.service(WEB).clone();
    name.clone_into(&mut service.name);
    service.listen.iter_mut().for_each(|listener: &mut SocketAddr| listener.set_port(port));
    service.l7 = Some(l7);
    config.services.push(service);
}

/// A site with everything: L4, spliced, relayed and TLS.
fn site(forward: Forward, files: &Files, what: &str) -> Site {
    require_root();
    let mut plan = Plan::new(forward, seed(what));
    if forward != Forward::Nat {
        return plan.build().unwrap();
    }
    plan.l7 = Some(L7Config::default());
    let with = |config: &mut EdgeConfig| {
        add(config, RELAYED, L7Config { spliced: false, ..L7Config::default() });
        let tls = Some(files.clone());
        add(config, SECURE, L7Config { tls, ..L7Config::default() });
    };
    plan.build_with(with).unwrap()
}

fn services(forward: Forward) -> &'static [&'static str] {
    match forward {
        Forward::Nat => &[CHAT, WEB, RELAYED.0, SECURE.0],
        _ => &[CHAT],
    }
}

fn lasting_spliced(site: &Site, traffic: &Traffic) -> BTreeSet<FlowLine> {
    let (_, load) = traffic.lasting.iter().find(|(service, _)| service == WEB).unwrap();
    let own: BTreeSet<_> = load.stats().per_connection.iter().filter_map(|it| it.local).collect();
    let start = Instant::now();
    loop {
        let mut now = spliced(site);
        now.retain(|flow| own.contains(&flow.client));
        // Those whose client and backend speak the same IP version.
        if now.len() >= own.len() / 3 {
            return now;
        }
        let status = || site.edge.status().unwrap();
        assert!(
            start.elapsed() < LATER,
            "{} of {} are spliced: {}",
            now.len(),
            own.len(),
            status()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// No process that the agent has started, this one or one before it in its process, waits to be buried.
fn nobody_is_left_dead(site: &Site) {
    let agent = site.edge.process().pid().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next());
        assert!(state != Some("Z") || parent != Some(&agent), "{stat}");
    }
}

#[test]
fn upgrades_and_restarts_under_load_lose_nothing() {
    let authority = Authority::new().unwrap();
    for forward in [Forward::Nat, Forward::Dsr, Forward::Ipip] {
        // Longer than the site, which is unloaded with a program in it.
        let scratch = OwnedDir::scratch("upgrades").unwrap();
        let files = Files::new(scratch.path());
        authority.issue(&files, &[]).unwrap();
        let mut site = site(forward, &files, "upgrades under load");
        let own = site.edge.agent().to_owned();
        let count = effort::choose(24, 120);
        let traffic = Traffic::start(&site, services(forward), Some(&authority), count);
        traffic.goes_on();
        let mut carried = BTreeSet::new();
        if forward == Forward::Nat {
            carried = lasting_spliced(&site, &traffic);
        }
        let (mut changes, mut slowest) = (0, 0.0_f64);
        for round in 0..effort::choose(2, 4) {
            let before = site.edge.status().unwrap();
            let pid = site.edge.process().pid();
            let successor = copy_of(&own, &scratch, &format!("lb-agent-{round}"));
            let report = upgrade(&site, &successor).unwrap();
            slowest = slowest.max(report["seconds"].as_f64().unwrap());
            eprintln!("{forward}: {report}");
            assert_eq!((site.edge.process().pid(), executable(&site)), (pid, successor.clone()));
            let after = site.edge.status().unwrap();
            assert_ne!(after.program_id(), before.program_id());
            assert_eq!(report["program_id"]["from"], before.program_id());
            assert_eq!(report["program_id"]["to"], after.program_id());
            assert_eq!(after.refused_upgrade(), None);
            assert!(pids(&after).is_disjoint(&pids(&before)), "{after}");
            assert_eq!(pids(&after).len(), pids(&before).len());
            traffic.goes_on();
            traffic.nothing_is_lost();
            site.edge.upgrade_to(&successor);
            site.edge.terminate().unwrap();
            site.edge.run().unwrap();
            let again = site.edge.status().unwrap();
            assert_eq!(pids(&again), pids(&after), "of the same program: they stay");
            assert_ne!(again.program_id(), after.program_id());
            site.edge.wait_all_up().unwrap();
            traffic.goes_on();
            traffic.nothing_is_lost();
            changes += 2;
        }
        assert!(carried.is_subset(&spliced(&site)), "the same are spliced, on the same tuples");
        eprintln!(
            "{forward}: {} spliced all the time, slowest upgrade {slowest:.1} s",
            carried.len()
        );
        let newest = pids(&site.edge.status().unwrap());
        traffic.stop(forward, changes);
        let gone = |status: &Status| status.workers().iter().all(|it| newest.contains(&it.pid));
        site.edge.wait_for("the old workers are gone", SOON, gone).unwrap();
        nobody_is_left_dead(&site);
    }
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let scratch = OwnedDir::scratch("refused").unwrap();
    let files = Files::new(scratch.path());
    let authority = Authority::new().unwrap();
    authority.issue(&files, &[]).unwrap();
    let mut site = site(Forward::Nat, &files, "refused upgrades");
    let own = site.edge.agent().to_owned();
    let traffic = Traffic::start(&site, services(Forward::Nat), Some(&authority), 8);
    traffic.goes_on();
    let pid = site.edge.process().pid();
    let before = site.edge.status().unwrap();

    // Found out before anything has happened.
    let error = refused(&site, Path::new("/bin/false"));
    assert!(error.contains("nothing is changed") && error.contains("could not take"), "{error}");
    let error = refused(&site, Path::new("/bin/true"));
    assert!(error.contains("is it an lb-agent?"), "{error}");
    let open = copy_of(&own, &scratch, "open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&site, &open).contains("others than its owner may change it"));
    let text = site.edge.config().to_string();
    site.edge.save_text(&format!("{text}\nnonsense = 1\n")).unwrap();
    let copy = copy_of(&own, &scratch, "lb-agent");
    let error = refused_by_socket(&site, &copy);
    assert!(error.contains("nonsense"), "{error}");
    site.edge.save_text(&text).unwrap();
    let same = site.edge.status().unwrap();
    assert_eq!((same.program_id(), pids(&same)), (before.program_id(), pids(&before)));

    // Found out when it was too late: the program before comes back.
    let agent = own.display();
    let broken = scratch.path().join("broken.o");
    fs::write(&broken, "no object").unwrap();
    let object = broken.display();
    for (name, then, why) in [
        ("no-file", format!("exec {agent} run --config /nonexistent.toml"), "nonexistent"),
        ("no-object", format!("exec {agent} \"$@\" --object {object}"), "BPF object"),
    ] {
        let program = script(&scratch, &own, name, &then);
        let error = refused(&site, &program);
        assert!(error.contains("has not come up") && error.contains(why), "{error}");
        let status = site.edge.status().unwrap();
        assert!(status.refused_upgrade().unwrap().contains(why), "{status}");
        assert_eq!((site.edge.process().pid(), executable(&site)), (pid, own.clone()));
        assert_eq!(pids(&status), pids(&before), "the workers are its own");
        traffic.goes_on();
        traffic.nothing_is_lost();
    }

    // And one that dies: nobody can come back, and packets go on.
    let program = script(&scratch, &own, "dies", "exit 3");
    let error = refused(&site, &program);
    assert!(error.contains("has ended") && error.contains("start it again"), "{error}");
    traffic.goes_on();
    site.edge.kill().unwrap();
    site.edge.run().unwrap();
    traffic.goes_on();
    traffic.stop(Forward::Nat, 3);
}

/// The file of the edge cannot be read, so the socket is named.
fn refused_by_socket(site: &Site, program: &Path) -> String {
    let socket = Path::new(tests::owner::AGENTS).join(site.edge.name()).join("admin.sock");
    let (program, socket) = (program.display().to_string(), socket.display().to_string());
    let said = site.edge.cli(&["upgrade", "--binary", &program, "--socket", &socket]);
    format!("{:#}", said.unwrap_err())
}

#[test]
fn who_interrupts_the_command_before_the_agent_has_accepted_has_undone_it() {
    let scratch = OwnedDir::scratch("interrupted").unwrap();
    let site = site(Forward::Dsr, &Files::new(scratch.path()), "interrupted upgrade");
    let own = site.edge.agent().to_owned();
    let before = site.edge.status().unwrap();
    let asked = scratch.path().join("asked");
    let slow = scratch.path().join("slow");
    let text =
        format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}\nexec sleep 1000\n", asked.display());
    fs::write(&slow, text).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = site.edge.namespace().command(&own);
    command.args(["upgrade", "--binary"]).arg(&slow).arg("--config").arg(site.edge.config_path());
    let mut process = Process::spawn("upgrade", command).unwrap();
    let start = Instant::now();
    while !asked.exists() {
        assert!(start.elapsed() < SOON, "no trial: {:?}", process.output());
        std::thread::sleep(Duration::from_millis(5));
    }
    // A second one is told to wait.
    assert!(refused(&site, &own).contains("another upgrade is under way"));
    process.signal(Signal::SIGINT).unwrap();
    process.wait(SOON).unwrap();
    let trial = fs::read_to_string(&asked).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(trial.trim().parse().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    let status = site.edge.status().unwrap();
    assert_eq!(status.program_id(), before.program_id());
    // And the next one is heard, as soon as the agent has noticed.
    let start = Instant::now();
    let report = loop {
        match upgrade(&site, &own) {
            Ok(report) => break report,
            Err(error) if format!("{error:#}").contains("another upgrade is under way") => {
                assert!(start.elapsed() < SOON, "{error:#}");
            }
            Err(error) => panic!("{error:#}"),
        }
    };
    assert_eq!(report["program_id"]["from"], before.program_id());
    site.visit(4).unwrap();
}
