//! The link emulator between two namespaces, with real TCP on it. Needs root.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::chat::{EchoServer, Exchange, exchange};
use tests::link::{Direction, Impairment, Impairments, Link};
use tests::netns::Netns;
use tests::privilege::require_root;
use tests::process::{Process, binary, command};
use tests::seed::seed;

const SOON: Duration = Duration::from_secs(10);

struct Pair {
    a: Netns,
    b: Netns,
}

impl Pair {
    fn new() -> Self {
        Self { a: Netns::new("a").unwrap(), b: Netns::new("b").unwrap() }
    }

    fn configure(&self) {
        for (namespace, host) in [(&self.a, 1), (&self.b, 2)] {
            let lines = format!(
                "address add 10.9.0.{host}/24 dev wire0\n\
                 address add fd09::{host}/64 dev wire0 nodad\nlink set wire0 up"
            );
            namespace.ip(&lines).unwrap();
        }
    }

    fn link(&self, wire: impl Into<Impairments>, seed: u64) -> Link {
        let link = Link::emulate(&self.a, "wire0", &self.b, "wire0", wire, seed).unwrap();
        self.configure();
        link
    }

    fn echo(&self) -> (EchoServer, [SocketAddr; 2]) {
        let addresses = ["10.9.0.2:7".parse().unwrap(), "[fd09::2]:7".parse().unwrap()];
        (EchoServer::start(Some(&self.b), "echo", &addresses).unwrap(), addresses)
    }
}

#[test]
fn bulk_tcp_stays_whole_on_a_rough_wire() {
    require_root();
    let pair = Pair::new();
    let seed = seed("bulk on a rough wire");
    let link = pair.link(Impairment::rough(5.0), seed);
    let (_server, addresses) = pair.echo();
    for address in addresses {
        let plan = Exchange::new(address, seed, 2 << 20);
        let report = exchange(Some(&pair.a), &plan).unwrap();
        eprintln!("{address}: {:.1} MB/s", report.bytes as f64 / report.seconds / 1e6);
    }
    for direction in [Direction::AToB, Direction::BToA] {
        let counters = link.counters(direction);
        eprintln!("{direction:?}: {counters:?}");
        let hit = [counters.dropped, counters.reordered, counters.duplicated, counters.corrupted];
        assert!(hit.iter().all(|count| *count > 10), "{counters:?}");
    }
    // The receivers' checksums caught what was flipped.
    let errors = pair.b.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let tcp = errors.lines().filter(|l| l.starts_with("Tcp:")).nth(1).unwrap();
    let checksum_errors: u64 = tcp.split(' ').nth(15).unwrap().parse().unwrap();
    assert!(checksum_errors > 0, "{errors}");
}

#[test]
fn a_perfect_wire_carries_everything_fast() {
    require_root();
    let pair = Pair::new();
    let link = pair.link(Impairment::default(), 1);
    let (_server, addresses) = pair.echo();
    for address in addresses {
        let report = exchange(Some(&pair.a), &Exchange::new(address, 1, 16 << 20)).unwrap();
        eprintln!("{address}: {:.1} MB/s", report.bytes as f64 / report.seconds / 1e6);
    }
    let counters = link.counters(Direction::AToB);
    let impaired = [counters.dropped, counters.reordered, counters.duplicated, counters.corrupted];
    assert_eq!(impaired, [0; 4], "{counters:?}");
}

#[test]
fn the_same_seed_has_the_same_fates() {
    require_root();
    let seed = seed("fates");
    let wire = Impairment { drop: 20.0, duplicate: 10.0, corrupt: 10.0, ..Impairment::default() };
    let first = count_fates(&wire, seed);
    assert_eq!(first, count_fates(&wire, seed));
    // And they are those of the pure decision, frame by frame.
    let fates = (0..FRAMES).map(|n| wire.decide(seed, Direction::AToB, n));
    let dropped = fates.filter(|fate| fate.drop).count() as u64;
    assert_eq!(first.dropped, dropped);
}

const FRAMES: u64 = 500;

/// Sends frames of our own, of which none depends on what came of another one.
fn count_fates(wire: &Impairment, seed: u64) -> tests::link::Counters {
    let pair = Pair::new();
    let link = Link::emulate(&pair.a, "wire0", &pair.b, "wire0", wire.clone(), seed).unwrap();
    // Without IPv6 the kernel itself has nothing to say on the wire.
    for namespace in [&pair.a, &pair.b] {
        namespace.sysctl("ipv6/conf/wire0/disable_ipv6", "1").unwrap();
        namespace.ip("link set wire0 up").unwrap();
    }
    let index = pair.a.run(|| nix::net::if_::if_nametoindex("wire0")).unwrap();
    pair.a.run(|| {
        use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: sockaddr_ll is a socket address that fits the storage and may be written as such.
        let address = unsafe { storage.view_as::<nix::libc::sockaddr_ll>() };
        address.sll_family = nix::libc::AF_PACKET as u16;
        address.sll_ifindex = index.cast_signed();
        let length = size_of::<nix::libc::sockaddr_ll>() as u32;
        // SAFETY: the storage holds an address of that length.
        let address = unsafe { SockAddr::new(storage, length) };
        let mut frame = [0xff; 100];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        for sent in 1..=FRAMES {
            socket.send_to(&frame, &address).unwrap();
            // The device's own queue is short: let the link take each frame.
            let deadline = Instant::now() + SOON;
            while link.counters(Direction::AToB).received < sent {
                assert!(Instant::now() < deadline, "frame {sent} did not arrive");
                std::thread::yield_now();
            }
        }
    });
    let deadline = Instant::now() + SOON;
    loop {
        let counters = link.counters(Direction::AToB);
        let out = counters.forwarded + counters.refused + counters.overflowed;
        if out == counters.received - counters.dropped + counters.duplicated {
            return counters;
        }
        assert!(Instant::now() < deadline, "frames stayed in the link: {counters:?}");
        std::thread::yield_now();
    }
}

#[test]
fn delay_is_what_was_asked_for_and_can_be_changed() {
    require_root();
    let pair = Pair::new();
    let delay = Duration::from_millis(20);
    let link = pair.link(Impairment::delayed(delay), 1);
    let (_server, [address, _]) = pair.echo();
    let round_trip = || {
        let start = Instant::now();
        pair.a.run(|| std::net::TcpStream::connect_timeout(&address, SOON)).unwrap();
        start.elapsed()
    };
    round_trip();
    // The fastest of some: on a busy machine one waits for more than the wire.
    let fastest = || (0..10).map(|_| round_trip()).min().unwrap();
    let slow = fastest();
    assert!(slow >= 2 * delay, "{slow:?}");
    assert!(slow < 10 * delay, "{slow:?}");
    link.set(Impairment::default());
    // What is on its way is not overtaken.
    round_trip();
    let fast = fastest();
    assert!(fast < delay, "{fast:?}");
}

#[test]
fn a_cut_wire_carries_nothing_and_heals() {
    require_root();
    let pair = Pair::new();
    let link = pair.link(Impairment::default(), 1);
    let (_server, [address, _]) = pair.echo();
    link.set(Impairment::cut());
    let timeout = Duration::from_millis(200);
    let connect = |timeout| std::net::TcpStream::connect_timeout(&address, timeout);
    assert!(pair.a.run(|| connect(timeout)).is_err());
    link.set(Impairment::default());
    pair.a.run(|| connect(SOON)).unwrap();
}

#[test]
fn a_rate_limits() {
    require_root();
    let pair = Pair::new();
    let wire = Impairment { rate: Some(40_000_000), ..Impairment::default() };
    let _link = pair.link(wire, 1);
    let (_server, [address, _]) = pair.echo();
    let report = exchange(Some(&pair.a), &Exchange::new(address, 1, 5_000_000)).unwrap();
    // 40 Mbit/s are 5 MB/s, less the headers. Both directions run at the same time.
    assert!(report.seconds > 1.0, "{report:?}");
    assert!(report.seconds < 8.0, "{report:?}");
}

#[test]
fn a_dropped_link_takes_its_devices_along() {
    require_root();
    let pair = Pair::new();
    let link = pair.link(Impairment::default(), 1);
    let index = || pair.a.run(|| nix::net::if_::if_nametoindex("wire0"));
    assert!(index().is_ok());
    drop(link);
    assert!(index().is_err());
    // A device that is removed under the link ends it, too.
    let link = pair.link(Impairment::default(), 1);
    pair.a.ip("link delete wire0").unwrap();
    drop(link);
}

#[test]
fn the_program_emulates_and_reports() {
    require_root();
    let pair = Pair::new();
    let mut program = command(binary("link-emulator").unwrap());
    let [a, b] = [&pair.a, &pair.b].map(|namespace| format!("{}:wire0", namespace.name()));
    program.args(["--a", &a, "--b", &b, "--seed", "77", "--drop", "2", "--delay", "1"]);
    let mut program = Process::spawn("link-emulator", program).unwrap();
    program.wait_for_line(SOON, |line| line.contains("seed 77")).unwrap();
    pair.configure();
    let (_server, [address, _]) = pair.echo();
    exchange(Some(&pair.a), &Exchange::new(address, 77, 200_000)).unwrap();
    program.signal(Signal::SIGINT).unwrap();
    assert!(program.wait(SOON).unwrap().success());
    let line = program.wait_for_line(SOON, |line| line.starts_with("a_to_b")).unwrap();
    assert!(line.contains("\"forwarded\":"), "{line}");
}
