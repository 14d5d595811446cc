//! slowhttptest in all its modes: what holds connections open costs those nothing who use theirs. Needs root and
//! packages: `cargo xtask test --full` installs them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tests::effort;
use tests::netns::NsHandle;
use tests::privilege::require_root;
use tests::process::{Process, open_many_files};
use tests::web::{WebPlan, WebSite};

/// How long the sidecar waits for heads and bodies, and for clients to take what they asked for: longer than is measured.
const TIMEOUT: Duration = Duration::from_secs(13);
/// What is measured is told for each of these, and the median of them counts: one hiccup of the machine is not the
/// sidecar's.
const WINDOW: Duration = Duration::from_secs(2);
const WINDOWS: u32 = 5;
/// In seconds; by then all have had their end.
const LONGEST: u64 = 30;
/// From one request of the well-behaved client to the next: 400 in a window.
const PACE: Duration = Duration::from_millis(5);
/// A time slice of the scheduler is 3 ms, and on two processors the attack's program, the workers, the backends and the
/// client take turns: below two slices a percentile tells of the queue for the processors.
const FLOOR: Duration = Duration::from_millis(6);
const ATTEMPTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(10);

/// The 99th percentile of what a request takes, from the time when it is due to the end of its connection, as the median
/// over so many windows.
fn p99(client: &NsHandle, target: SocketAddr, windows: u32) -> Duration {
    let mut percentiles: Vec<_> = (0..windows).map(|_| p99_of_window(client, target)).collect();
    percentiles.sort_unstable();
    percentiles[percentiles.len() / 2]
}

fn p99_of_window(client: &NsHandle, target: SocketAddr) -> Duration {
    let mut took = client.run(|| {
        let start = Instant::now();
        let requests = WINDOW.as_millis().div_ceil(PACE.as_millis()) as u32;
        let request = |n: u32| {
            let due: Instant = start + n * PACE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            get(target).unwrap();
            due.elapsed()
        };
        (0..requests).map(request).collect::<Vec<_>>()
    });
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

fn get(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In one piece: a second one would wait for the acknowledgement of the first.
    let request = format!("GET /hints HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

/// A mode of slowhttptest, and how those of its connections end that the sidecar gives up.
struct Mode {
    name: &'static str,
    path: &'static str,
    arguments: &'static [&'static str],
    counter: &'static str,
    /// Whether it sees the end: one that reads slowly has much to read before that.
    sees: bool,
}

const MODES: [Mode; 4] = [
    // Another line of the head each second.
    Mode {
        name: "slow headers",
        path: "/hints",
        arguments: &["-H", "-r", "500", "-i", "1"],
        counter: "head_timeout",
        sees: true,
    },
    // A little more of the body after a pause that is too long.
    Mode {
        name: "slow body",
        path: "/echo",
        arguments: &["-B", "-r", "500", "-i", "15", "-s", "8192"],
        counter: "body_timeout",
        sees: true,
    },
    // Some 3,000 ranges, which are more than a head may hold. They are answered at once: there are always new ones.
    Mode {
        name: "ranges",
        path: "/echo",
        arguments: &["-R", "-r", "100", "-a", "10", "-b", "3000"],
        counter: "head_too_large",
        sees: true,
    },
    // Five bytes each second of an answer of a megabyte, through a small window.
    Mode {
        name: "slow read",
        path: "/large",
        arguments: &["-X", "-r", "500", "-w", "128", "-y", "256", "-z", "5", "-n", "1"],
        counter: "write_timeout",
        sees: false,
    },
];

fn client_connections(site: &WebSite) -> u64 {
    site.edge.status().unwrap().workers().iter().map(|worker| worker.connections).sum()
}

/// Whether the client meets hardly more than before. Something else on the machine can only make that worse: it is seen in
/// one of a few attempts, or never.
fn keeps_nobody_waiting(site: &WebSite, mode: &Mode, connections: u64) -> bool {
    (0..ATTEMPTS).any(|_| {
        let [quiet, busy] = attack(site, mode, connections);
        busy <= quiet.max(FLOOR) * 2
    })
}

/// Returns what the client met before, and meanwhile.
fn attack(site: &WebSite, mode: &Mode, connections: u64) -> [Duration; 2] {
    let (client, target) = (site.lab.client(0), site.listeners()[0]);
    let before = site.counted(mode.counter).unwrap();
    let quiet = p99(client, target, 3);

    // The others are on machines of their own: what the attack itself costs is nobody's time.
    let mut command = client.command("nice");
    command.args(["-n", "19", "slowhttptest"]);
    let (number, longest) = (connections.to_string(), LONGEST.to_string());
    command.args(["-c", &number, "-l", &longest, "-p", "3"]);
    command.args(mode.arguments).args(["-u", &format!("http://{target}{}", mode.path)]);
    let slow = Process::spawn("slowhttptest", command).unwrap();
    let busy = p99(client, target, WINDOWS);
    println!("{}: p99 {quiet:?} before, {busy:?} meanwhile", mode.name);

    // Every one of them has had its end, and nothing is left.
    site.wait_counted(mode.counter, before + connections).unwrap();
    if mode.sees {
        slow.wait_for_line(PATIENCE, |line| line.contains("No open connections left")).unwrap();
    }
    // It has looked at times whether it is still served.
    let lines = slow.output();
    let probes = || lines.iter().filter(|line| line.contains("service available"));
    assert!(probes().any(|line| line.contains("YES")), "{lines:?}");
    assert!(!probes().any(|line| line.contains("NO")), "{lines:?}");
    let deadline = Instant::now() + PATIENCE;
    while client_connections(site) > 0 {
        assert!(Instant::now() < deadline, "{}: {}", mode.name, site.edge.status().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    [quiet, busy]
}

#[test]
fn slow_clients_keep_nobody_waiting() {
    require_root();
    open_many_files().unwrap();
    let seconds = TIMEOUT.as_secs();
    let tables =
        format!("\n[service.http]\nhead_timeout = \"{seconds}s\"\nbody_timeout = \"{seconds}s\"\n");
    let site = WebPlan { tables, ..WebPlan::default() }.build().unwrap();
    let slowed: Vec<_> = MODES
        .iter()
        .filter(|mode| !keeps_nobody_waiting(&site, mode, effort::choose(200, 1_000)))
        .map(|mode| mode.name)
        .collect();
    assert!(slowed.is_empty(), "{slowed:?}");
}
