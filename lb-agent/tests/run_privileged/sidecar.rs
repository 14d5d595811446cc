//! The sidecar's workers as processes: what they may do, what survives what, and what is left in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lb_agent::{bpf::lock::RUN_DIR, run::status::Status};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    edge::{AGENT, Edge, VIP},
    network::{Netns, text, wait_for, wait_until},
};

pub const BACKEND: [(&str, &str); 1] = [("b2", "10.2.0.2:9000")];
const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

/// A configuration with one l7 service and two workers.
pub fn config(edge: &Edge, service: &str, backends: &[(&str, &str)]) -> String {
    let tables = "[[service]]";
    let workers = "[edge.sidecar]\nworkers = 2\naccess_log = \"off\"\n[[service]]";
    let service = format!("mode = \"l7\"\naffinity = \"none\"\n{service}");
    edge.config(&service, backends).replacen(tables, workers, 1)
}

/// To the key of RFC 6455, section 1.3.
pub const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A web server: answers every request with its name, a request for `/slow` after it was `released`, and one for `/chat`
/// with an upgrade, after which it only listens.
pub struct Web {
    stop: Arc<AtomicBool>,
    pub released: Arc<AtomicBool>,
}

impl Web {
    pub fn start(netns: &Netns, address: &str, name: &'static str) -> Self {
        let listener = netns.run(|| TcpListener::bind(address)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let web = Self { stop: Arc::default(), released: Arc::default() };
        let (stop, released) = (Arc::clone(&web.stop), Arc::clone(&web.released));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let (stop, released) = (Arc::clone(&stop), Arc::clone(&released));
                stream.set_nonblocking(false).unwrap();
                thread::spawn(move || {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while let Ok(1) = stream.read(&mut byte) {
                        head.push(byte[0]);
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        if head.starts_with(b"GET /chat") {
                            let _ = stream.write_all(SWITCHED.as_bytes());
                            while stream.read(&mut byte).is_ok_and(|n| n > 0) {}
                            return;
                        }
                        if head.starts_with(b"GET /slow") {
                            while !released.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed)
                            {
                                thread::sleep(Duration::from_millis(5));
                            }
                        }
                        head.clear();
                        let length = name.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
                        let _ = stream.write_all(answer.as_bytes());
                    }
                });
            }
        });
        web
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The body that a client gets; none without an answer of 200.
pub fn get(edge: &Edge, path: &str) -> Option<String> {
    let (status, body) = edge.client.http(VIP, path)?;
    status.contains(" 200 ").then_some(body)
}

/// The fields of `/proc/PID/status`; none if there is no such process, or only its remains.
fn process(pid: u32) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    let fields: BTreeMap<_, _> =
        fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
    (!fields["State"].starts_with('Z')).then_some(fields)
}

fn run_dir(edge: &Edge) -> PathBuf {
    Path::new(RUN_DIR).join(&edge.name)
}

/// The pids of the workers in this state.
pub fn pids(status: &Status, state: &str) -> BTreeSet<u32> {
    let workers = status.sidecar.as_ref().map(|it| it.workers.as_slice()).unwrap_or_default();
    workers.iter().filter(|it| it.state == state).map(|it| it.pid).collect()
}

/// Waits until two workers serve.
pub fn two_serve(edge: &Edge) -> BTreeSet<u32> {
    wait_for("two workers serve", || {
        Some(pids(&edge.status(), "serving")).filter(|pids| pids.len() == 2)
    })
}

#[test]
fn workers_have_no_privileges_and_their_files_are_for_root() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    edge.start(&config(&edge, "", &BACKEND));
    let workers = two_serve(&edge);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for pid in &workers {
        let process = process(*pid).unwrap();
        let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!(process["Uid"], ids(nobody.uid.as_raw()));
        assert_eq!(process["Gid"], ids(nobody.gid.as_raw()));
        assert_eq!(process["Groups"], "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(process[set], "0000000000000000", "{set}");
        }
        assert_eq!(process["NoNewPrivs"], "1");
        // Of the data plane a worker has the two flow tables, and can only read them.
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
        let bpf = open.filter(|entry| {
            fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().contains("bpf")
        });
        let bpf: Vec<_> = bpf.map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert!(bpf.len() <= 2, "{bpf:?}");
        for descriptor in bpf {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap();
            let value = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.trim_start_matches(':').trim().to_owned()
            };
            assert_eq!(value("map_type"), "1", "{info}");
            // The lowest two bits are the access mode: O_RDONLY.
            let flags = u32::from_str_radix(&value("flags"), 8).unwrap();
            assert_eq!(flags & 3, 0, "{info}");
        }
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(run_dir(&edge)).unwrap().mode() & 0o777, 0o700);
    assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    assert!(edge.status().services[0].listeners[0].on_host);
}

#[test]
fn a_worker_started_with_privileges_ends_at_once() {
    let edge = Edge::new();
    let output = edge.output("sidecar --edge x --index 0");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("does not run as root"), "{}", text(&output));
    // Not where only root may enter, as tests are built.
    let agent = Path::new("/tmp").join(format!("{}-agent", edge.name));
    fs::copy(AGENT, &agent).unwrap();
    let capable = "--reuid nobody --clear-groups --inh-caps +net_admin --ambient-caps +net_admin";
    let arguments = format!("{capable} {} sidecar --edge x --index 0", agent.display());
    let output = edge.wrapped("setpriv", &arguments).output().unwrap();
    fs::remove_file(agent).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("capabilities (Cap"), "{}", text(&output));
}

#[test]
fn a_killed_worker_is_followed_and_whoever_waits_is_served() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    edge.start(&config(&edge, "", &BACKEND));
    let before = two_serve(&edge);
    for pid in &before {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    // Nobody accepts at this time: all of them wait in the backlog.
    for _ in 0..20 {
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
    let after = two_serve(&edge);
    assert!(after.is_disjoint(&before));
    let status = edge.status();
    let restarts: Vec<_> =
        status.sidecar.unwrap().workers.iter().map(|it| (it.index, it.restarts)).collect();
    assert_eq!(restarts, [(0, 1), (1, 1)]);
    edge.wait_for_log("signal: 9");
}

#[test]
fn workers_outlive_the_agent_and_the_next_one_takes_them_over() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let config = config(&edge, "", &TWO);
    edge.start(&config);
    let workers = two_serve(&edge);
    wait_until("b3 is down", || edge.status().services[0].backends[1].effective_weight == 0);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        edge.signal(signal);
        edge.wait();
        for _ in 0..10 {
            assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
        }
        // Before the first probe can have ended.
        edge.start(&config.replace("\"100ms\", timeout", "\"1h\", timeout"));
        assert_eq!(two_serve(&edge), workers, "{signal}");
        assert_eq!(edge.status().services[0].backends[1].effective_weight, 0, "it is still down");
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
    // The sockets are the agent's as well: they survive the workers.
    for pid in &workers {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    for _ in 0..10 {
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
}

#[test]
fn a_worker_that_died_without_an_agent_is_followed() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let config = config(&edge, "", &BACKEND);
    edge.start(&config);
    let workers = two_serve(&edge);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    let (dead, alive) = (*workers.first().unwrap(), *workers.last().unwrap());
    kill(Pid::from_raw(dead.cast_signed()), Signal::SIGKILL).unwrap();
    wait_until("it is dead", || process(dead).is_none());
    edge.start(&config);
    let workers = two_serve(&edge);
    assert!(workers.contains(&alive) && !workers.contains(&dead));
    for _ in 0..10 {
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
    let sockets = fs::read_dir(run_dir(&edge)).unwrap();
    let sockets = sockets.map(|it| it.unwrap().path());
    let sockets = sockets.filter(|it| it.extension() == Some("sock".as_ref()));
    let workers = sockets.filter(|it| !it.ends_with("admin.sock"));
    assert_eq!(workers.count(), 2, "nothing is left of the dead one");
}

#[test]
fn a_reload_reaches_the_workers_that_there_are() {
    let mut edge = Edge::new();
    let _webs = TWO.map(|(name, address)| Web::start(&edge.server, address, name));
    edge.start(&config(&edge, "", &BACKEND));
    let workers = two_serve(&edge);
    assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    edge.save(&config(&edge, "", &TWO[1..]).replace(VIP, "10.1.0.10:8080"));
    wait_until("b3 answers at the other port", || {
        let answer = edge.client.http("10.1.0.10:8080", "/");
        answer.is_some_and(|(_, body)| body == "b3")
    });
    let refused = edge.client.run(|| std::net::TcpStream::connect(VIP));
    assert!(refused.is_err(), "nobody listens at the old one");
    assert_eq!(two_serve(&edge), workers);

    edge.save(&config(&edge, "", &BACKEND).replace("workers = 2", "workers = 3"));
    wait_until("there are three workers", || pids(&edge.status(), "serving").len() == 3);
    edge.save(&config(&edge, "", &BACKEND).replace("workers = 2", "workers = 1"));
    wait_until("there is one", || edge.status().sidecar.unwrap().workers.len() == 1);
    for _ in 0..20 {
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
    edge.save(&edge.config("", &BACKEND));
    wait_until("there is none", || edge.status().sidecar.is_none());
    assert_eq!(edge.status().services[0].mode, "l4");
}

#[test]
fn an_upgrade_brings_new_workers_while_the_old_ones_finish() {
    let mut edge = Edge::new();
    let web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let config = config(&edge, "", &BACKEND);
    edge.start(&config);
    let old = two_serve(&edge);
    let mut slow = edge.client.connect(VIP);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    wait_until("it is at the backend", || edge.status().services[0].backends[0].connections == 1);

    edge.signal(Signal::SIGTERM);
    edge.wait();
    edge.upgrade();
    edge.start(&config);
    let new = two_serve(&edge);
    assert!(new.is_disjoint(&old));
    let left = wait_for("one of the old ones has nothing to finish", || {
        Some(pids(&edge.status(), "retired")).filter(|pids| pids.len() == 1)
    });
    assert!(left.is_subset(&old));
    for _ in 0..20 {
        assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    }
    web.released.store(true, Ordering::Relaxed);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nb2"), "{answer}");
    wait_until("the last old one has ended", || pids(&edge.status(), "retired").is_empty());
    wait_until("so have the processes", || old.iter().all(|pid| process(*pid).is_none()));
}

#[test]
fn unload_ends_the_workers_with_or_without_a_data_plane() {
    let mut edge = Edge::new();
    edge.start(&config(&edge, "", &BACKEND));
    let workers = two_serve(&edge);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    // One of them hangs.
    let hangs = *workers.first().unwrap();
    kill(Pid::from_raw(hangs.cast_signed()), Signal::SIGSTOP).unwrap();
    lb_agent::bpf::unload(&edge.pins()).unwrap();
    let output = edge.output(&format!("unload --edge {}", edge.name));
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("ended 2 workers"), "{}", text(&output));
    assert!(text(&output).contains("VIP 10.1.0.10"), "{}", text(&output));
    assert!(workers.iter().all(|pid| process(*pid).is_none()));
    assert!(!run_dir(&edge).exists());
    assert!(!edge.addresses("front0").contains("10.1.0.10"));
}

#[test]
fn what_the_sidecar_cannot_have_is_refused_before_anything_changes() {
    let mut edge = Edge::new();
    let good = config(&edge, "", &BACKEND);
    let nowhere = good.replace("workers = 2", "user = \"no-such-user\"");
    edge.save(&nowhere);
    let output = edge.output(&edge.run_arguments());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("user = \"no-such-user\""), "{}", text(&output));
    assert!(text(&output).contains("useradd"), "{}", text(&output));
    assert!(!edge.pins().path().exists() && !run_dir(&edge).exists());

    let _taken = edge.netns.run(|| TcpListener::bind("0.0.0.0:8081")).unwrap();
    edge.start(&good);
    let workers = two_serve(&edge);
    for (bad, part) in [
        (nowhere, "no-such-user"),
        (good.replace(VIP, "10.1.0.10:8081"), "listener 10.1.0.10:8081"),
        (good.replace("access_log = \"off\"", "access_log = \"/nowhere/log\""), "/nowhere/log"),
    ] {
        edge.save(&bad);
        wait_until("it is refused", || {
            edge.status().config_refused.is_some_and(|refused| refused.contains(part))
        });
        assert_eq!(two_serve(&edge), workers);
        assert_eq!(edge.status().config_generation, 1);
    }
}

/// The cookie that a new client gets.
fn cookie(edge: &Edge) -> Option<String> {
    let mut stream = edge.client.connect(VIP);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let mut lines = answer.lines().map(str::to_ascii_lowercase);
    lines.find_map(|line| Some(line.strip_prefix("set-cookie: sluice=")?.to_owned()))
}

#[test]
fn keys_follow_their_file_and_bad_ones_change_nothing() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let file = edge.directory.join("cookie.keys");
    let key = |id: &str| format!("{id} {}=\n", "A".repeat(43));
    fs::write(&file, key("first")).unwrap();
    let config = config(&edge, "", &BACKEND)
        .replace("\"none\"", "{ kind = \"cookie\" }")
        .replace("workers = 2", &format!("workers = 2\ncookie_keys = \"{}\"", file.display()));
    edge.start(&config);
    let workers = two_serve(&edge);
    assert!(cookie(&edge).unwrap().contains("first"));
    let save = |text: &str| fs::write(&file, text).unwrap();
    save(&(key("second") + &key("first")));
    wait_until("the second key signs", || cookie(&edge).unwrap().contains("second"));
    save("third short\n");
    edge.wait_for_log("the ones before stay in force");
    assert!(cookie(&edge).unwrap().contains("second"));
    assert_eq!(two_serve(&edge), workers);
    let log = edge.log();
    assert!(!log.contains(&"A".repeat(43)), "secrets are not logged");
}

#[test]
fn a_rotated_access_log_goes_on_in_a_new_file() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let file = edge.directory.join("access.log");
    let to_file = format!("access_log = \"{}\"", file.display());
    edge.start(&config(&edge, "", &BACKEND).replacen("access_log = \"off\"", &to_file, 1));
    let workers = two_serve(&edge);
    let lines = |file: &Path| fs::read_to_string(file).unwrap_or_default().lines().count();
    assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    wait_until("the request is in the log", || lines(&file) > 0);
    let old = file.with_extension("log.1");
    fs::rename(&file, &old).unwrap();
    edge.signal(Signal::SIGHUP);
    wait_until("there is a new file", || file.exists());
    let before = lines(&old);
    wait_until("a request is in the new one", || {
        get(&edge, "/").unwrap();
        lines(&file) > 0
    });
    assert!(lines(&old) >= before);
    assert_eq!(two_serve(&edge), workers);
}
