//! Namespaces: nothing of them stays, however their owner ends. Needs root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::netns::{Netns, sweep_stale};
use tests::owner::{AGENTS, EDGES, OwnedDir, unique_name};
use tests::ping::ping;
use tests::privilege::require_root;
use tests::process::{Process, command};

/// Makes this test binary, started again, an owner that never ends by itself.
const OWNER: &str = "SLUICE_TESTBED_TEST_OWNER";
const SOON: Duration = Duration::from_secs(10);

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_namespace_vanishes_when_dropped() {
    require_root();
    let netns = Netns::new("drop").unwrap();
    let name = netns.name().to_owned();
    assert!(exists(&name));
    drop(netns);
    assert!(!exists(&name));
}

#[test]
fn a_namespace_vanishes_with_a_panic() {
    require_root();
    let name = std::sync::Mutex::new(String::new());
    let panicked = std::panic::catch_unwind(|| {
        let netns = Netns::new("panic").unwrap();
        *name.lock().unwrap() = netns.name().to_owned();
        netns.run(|| panic!("as the test wants"));
    });
    assert!(panicked.is_err());
    let name = name.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(name.ends_with("panic") && !exists(&name));
}

#[test]
fn only_the_network_is_entered() {
    require_root();
    let netns = Netns::new("net-only").unwrap();
    let here = |kind: &str| fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
    assert_ne!(netns.run(|| here("net")), here("net"));
    assert_eq!(netns.run(|| here("mnt")), here("mnt"));
    let of_child =
        |kind: &str| netns.exec("readlink", &[&format!("/proc/self/ns/{kind}")]).unwrap();
    assert_ne!(of_child("net").trim(), here("net").to_str().unwrap());
    assert_eq!(of_child("mnt").trim(), here("mnt").to_str().unwrap());
    assert_eq!(
        netns.run(|| std::thread::spawn(move || here("net")).join().unwrap()).to_str(),
        Some(of_child("net").trim())
    );
}

#[test]
fn processes_in_a_namespace_end_with_it() {
    require_root();
    let netns = Netns::new("processes").unwrap();
    let mut shell = netns.command("sh");
    // The grandchild is nobody's child once the shell is gone.
    shell.args(["-c", "sleep 300 & echo $!; wait"]);
    let mut shell = Process::spawn("sh", shell).unwrap();
    let grandchild: u32 = shell.wait_for_line(SOON, |_| true).unwrap().parse().unwrap();
    shell.kill().unwrap();
    assert!(runs(grandchild));
    drop(netns);
    assert!(!runs(grandchild));
}

#[test]
fn futures_run_in_the_namespace_and_end_on_request() {
    require_root();
    let netns = Netns::new("async").unwrap();
    let (sender, said) = std::sync::mpsc::channel();
    let task = netns.spawn_async("accept", move |mut stop| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        sender.send(listener.local_addr().unwrap()).unwrap();
        loop {
            tokio::select! {
                accepted = listener.accept() => sender.send(accepted.unwrap().1).unwrap(),
                () = stop.requested() => return "ended",
            }
        }
    });
    let address = said.recv_timeout(SOON).unwrap();
    let client = netns.run(|| std::net::TcpStream::connect(address)).unwrap();
    assert_eq!(said.recv_timeout(SOON).unwrap(), client.local_addr().unwrap());
    assert!(std::net::TcpStream::connect(address).is_err(), "it is not in our own namespace");
    assert!(!task.is_finished());
    task.stop();
    assert_eq!(task.join(), "ended");
    // A task that does not listen is cancelled by the drop, or this test would never end.
    drop(netns.spawn_async("deaf", |_| std::future::pending::<()>()));
}

#[test]
fn a_ping_is_answered_and_its_absence_noticed() {
    require_root();
    let netns = Netns::new("ping").unwrap();
    for here in ["127.0.0.1", "::1"] {
        assert!(ping(&netns, here.parse().unwrap(), b"anybody there?", SOON).unwrap());
    }
    // Nobody is at the far end of a device that drops everything.
    netns
        .ip("link add wire0 type veth peer name wire1\nlink set wire0 up\nlink set wire1 up")
        .unwrap();
    netns.ip("address add 10.9.0.1/24 dev wire0").unwrap();
    let nobody = "10.9.0.2".parse().unwrap();
    assert!(!ping(&netns, nobody, b"anybody there?", Duration::from_millis(50)).unwrap());
}

#[test]
fn pins_and_scratch_files_go_with_their_directory() {
    require_root();
    let (pins, scratch) = (OwnedDir::pins("pins").unwrap(), OwnedDir::scratch("scratch").unwrap());
    fs::create_dir(pins.path().join("maps")).unwrap();
    fs::write(scratch.path().join("edge.toml"), "").unwrap();
    let paths = [pins.path().to_owned(), scratch.path().to_owned()];
    drop((pins, scratch));
    assert!(paths.iter().all(|path| !path.exists()));
}

/// Not a test of its own: what the two tests below start and kill.
#[test]
fn owner_process() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    tests::interrupt::install();
    let netns = Netns::new("orphan").unwrap();
    let pins = OwnedDir::pins("orphan").unwrap();
    let mut shell = netns.command("sh");
    shell.args(["-c", "sleep 300 & echo $!; wait"]);
    let shell = Process::spawn("sh", shell).unwrap();
    let grandchild = shell.wait_for_line(SOON, |_| true).unwrap();
    // What an agent of this owner would have pinned, and where its workers would listen.
    let edge = unique_name("edge");
    fs::create_dir_all(Path::new(EDGES).join(&edge).join("maps")).unwrap();
    let workers = Path::new(AGENTS).join(&edge);
    fs::create_dir_all(&workers).unwrap();
    fs::write(workers.join("worker-0-1.json"), "").unwrap();
    let (namespace, pins) = (netns.name(), pins.path().display());
    println!("\nowner {namespace} {pins} {edge} {grandchild}");
    loop {
        std::thread::park();
    }
}

/// A started owner and what it made.
struct Owner {
    process: Process,
    namespace: String,
    pins: String,
    edge: String,
    grandchild: u32,
}

impl Owner {
    fn start() -> Self {
        let mut owner = command(std::env::current_exe().unwrap());
        owner.args(["owner_process", "--exact", "--nocapture"]).env(OWNER, "1");
        let process = Process::spawn("owner", owner).unwrap();
        let line = process.wait_for_line(SOON, |line| line.starts_with("owner ")).unwrap();
        let [_, namespace, pins, edge, grandchild] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        Self {
            process,
            namespace: namespace.to_owned(),
            pins: pins.to_owned(),
            edge: edge.to_owned(),
            grandchild: grandchild.parse().unwrap(),
        }
    }

    /// Whether the namespace, the pins, those of the edge, its sockets and the grandchild are there.
    fn left(&self) -> [bool; 5] {
        let [edge, sockets] = [EDGES, AGENTS].map(|at| Path::new(at).join(&self.edge).exists());
        let pins = Path::new(&self.pins).exists();
        [exists(&self.namespace), pins, edge, sockets, runs(self.grandchild)]
    }
}

#[test]
fn what_a_killed_owner_left_is_swept_and_nothing_else() {
    require_root();
    let mine = Netns::new("mine").unwrap();
    let (mut owner, other) = (Owner::start(), Owner::start());

    sweep_stale();
    assert_eq!(owner.left(), [true; 5], "its owner lives");

    // Another run on this machine may be the one that sweeps: only the outcome is asserted.
    owner.process.kill().unwrap();
    sweep_stale();
    assert_eq!(owner.left(), [false; 5]);
    let lock = format!("/run/sluice-testbed/slc-{}.lock", owner.process.pid());
    assert!(!Path::new(&lock).exists());

    assert!(exists(mine.name()));
    assert_eq!(other.left(), [true; 5]);
    let others_namespace = other.namespace.clone();
    drop(other);
    sweep_stale();
    assert!(!exists(&others_namespace));
}

#[test]
fn an_interrupted_owner_leaves_nothing() {
    require_root();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut owner = Owner::start();
        kill(Pid::from_raw(owner.process.pid().cast_signed()), signal).unwrap();
        let status = owner.process.wait(SOON).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal as i32));
        assert_eq!(owner.left(), [false; 5], "{signal}");
    }
}
