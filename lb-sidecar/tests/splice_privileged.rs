//! Upgrades that are offered to be spliced, beside a real flow table. Needs root (CAP_BPF, CAP_NET_ADMIN):
//! `cargo test -p lb-sidecar --features privileged --test splice_privileged`

mod harness;

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use harness::*;
use lb_common::{
    addr::{Tuple, V4},
    flow::Flow,
};
use lb_sidecar::{
    control::{FromWorker, Receiver, Sender, ToWorker, channel},
    session,
    splice::{
        ANSWER_BYTES, Answer, OFFER_BYTES, Refusal,
        flows::{Flows as _, Tables},
    },
};
use nix::{errno::Errno, libc, sys::socket::setsockopt, sys::socket::sockopt::TcpRepair};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use tokio::{
    io::{AsyncReadExt, Interest, unix::AsyncFd},
    net::UnixStream,
    task::spawn_local,
    time::timeout,
};

/// A flow table of this test's own.
struct Table(OwnedFd);

/// The beginning of `union bpf_attr`, for all commands that are used here.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    words: [u64; 16],
}

fn bpf(command: libc::c_int, attributes: &mut Attributes) -> nix::Result<i64> {
    // SAFETY: what the attributes point to lives until the end of the call, and is as large as the map's keys and values.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    Errno::result(result)
}

impl Table {
    fn new() -> Self {
        const BPF_MAP_TYPE_HASH: u64 = 1;
        let mut attributes = Attributes::default();
        attributes.words[0] = BPF_MAP_TYPE_HASH | (size_of::<Tuple<V4>>() as u64) << 32;
        attributes.words[1] = size_of::<Flow<V4>>() as u64 | 65_536 << 32;
        let fd = bpf(0, &mut attributes).expect("a map");
        // SAFETY: the kernel has just made the descriptor for this process.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// A descriptor as the agent sends it.
    fn read_only(&self) -> OwnedFd {
        let (mut info, mut attributes) = ([0_u32; 2], Attributes::default());
        attributes.words[0] = self.0.as_raw_fd() as u64 | 8 << 32;
        attributes.words[1] = info.as_mut_ptr() as u64;
        bpf(15, &mut attributes).expect("BPF_OBJ_GET_INFO_BY_FD");
        let mut attributes = Attributes::default();
        // BPF_F_RDONLY, behind the id of the next one.
        attributes.words[0] = info[1].into();
        attributes.words[1] = 1 << 3;
        let fd = bpf(14, &mut attributes).expect("BPF_MAP_GET_FD_BY_ID");
        // SAFETY: as above.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    fn insert(&self, backend: SocketAddr, local: SocketAddr) {
        let v4 = |address: SocketAddr| match address.ip() {
            std::net::IpAddr::V4(it) => V4(u32::from_ne_bytes(it.octets())),
            std::net::IpAddr::V6(_) => panic!("{address}"),
        };
        let key = Tuple {
            src: v4(backend),
            dst: v4(local),
            sport: backend.port().to_be(),
            dport: local.port().to_be(),
        };
        let value = Flow::<V4>::default();
        let mut attributes = Attributes::default();
        attributes.words[0] = self.0.as_raw_fd() as u64;
        attributes.words[1] = std::ptr::from_ref(&key) as u64;
        attributes.words[2] = std::ptr::from_ref(&value) as u64;
        bpf(2, &mut attributes).expect("BPF_MAP_UPDATE_ELEM");
    }
}

/// An agent whose broker does as the test says.
struct Agent {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    broker: AsyncFd<OwnedFd>,
}

struct Offered {
    id: [u8; OFFER_BYTES],
    client: std::net::TcpStream,
    backend: std::net::TcpStream,
}

impl Agent {
    async fn new(edge: &Edge) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        spawn_local(session::serve(edge.worker.clone(), far));
        let (mut to, from) = channel(near);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (broker, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        to.send(&ToWorker::Broker, Some(far.as_fd())).await.unwrap();
        // SAFETY: an `OwnedFd` keeps its descriptor.
        let broker =
            unsafe { AsyncFd::register_with_interest(broker, Interest::READABLE) }.unwrap();
        Self { to, from, broker }
    }

    async fn with_table(edge: &Edge, table: &Table) -> Self {
        let mut agent = Self::new(edge).await;
        let message = ToWorker::Flows { ipv6: false };
        agent.to.send(&message, Some(table.read_only().as_fd())).await.unwrap();
        agent.heard(edge).await;
        agent
    }

    /// Waits until the worker has done what was said to it.
    async fn heard(&mut self, edge: &Edge) {
        let settings = ToWorker::Settings(Box::new(edge.settings.clone()));
        self.to.send(&settings, None).await.unwrap();
        while timeout(LONG, self.from.receive()).await.unwrap().unwrap().unwrap().0
            != FromWorker::Ready
        {}
    }

    async fn offer(&self) -> Offered {
        let offer = timeout(LONG, self.broker.async_io(Interest::READABLE, receive)).await;
        offer.expect("no offer").unwrap()
    }

    fn answer(&self, offer: &Offered, answer: Answer) {
        let mut bytes = [0; ANSWER_BYTES];
        bytes[..OFFER_BYTES].copy_from_slice(&offer.id);
        bytes[OFFER_BYTES] = answer.to_byte();
        send(self.broker.get_ref(), &bytes, SendFlags::empty()).unwrap();
    }
}

fn receive(socket: &OwnedFd) -> std::io::Result<Offered> {
    let mut id = [0; OFFER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut id)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    let [client, backend] = <[OwnedFd; 2]>::try_from(descriptors).expect("two descriptors");
    Ok(Offered { id, client: client.into(), backend: backend.into() })
}

async fn upgraded(edge: &Edge) -> Client {
    let mut client = edge.connect().await;
    client.send(ASK).await;
    client.read_until("\r\n\r\n").await;
    client
}

async fn spliceable() -> (Edge, Server) {
    let server = Server::upgrading("").await;
    let edge = Edge::new(&[server.address], |service| {
        service.splice = true;
        service.log_sample = 1.0;
    });
    (edge, server)
}

#[test]
fn a_spliced_connection_leaves_nothing_here() {
    run(|| async {
        let (edge, _server) = spliceable().await;
        let log = tempfile();
        edge.worker.life.log_to(log.1.into()).unwrap();
        let agent = Agent::with_table(&edge, &Table::new()).await;
        let client = upgraded(&edge).await;
        let offer = agent.offer().await;
        assert_eq!(offer.client.peer_addr().unwrap(), client.0.local_addr().unwrap());
        assert_eq!((edge.live(), edge.count("splice_unchecked_port")), (1, 0));
        for socket in [&offer.client, &offer.backend] {
            setsockopt(socket, TcpRepair, &1).unwrap();
        }
        agent.answer(&offer, Answer::Spliced);
        drop(offer);
        edge.counted("spliced", 1).await;
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
        let mut client = client;
        let silence = timeout(Duration::from_millis(50), client.0.read(&mut [0])).await;
        assert!(silence.is_err(), "the sockets' end was heard: {silence:?}");
        edge.worker.life.log().unwrap().finish(LONG);
        let text = std::fs::read_to_string(&log.0).unwrap();
        std::fs::remove_file(&log.0).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["upgrade", "splice"], "{text}");
        assert_eq!(lines[0]["connection"], lines[1]["connection"]);
    });
}

#[test]
fn a_refused_connection_is_relayed() {
    run(|| async {
        let (edge, _server) = spliceable().await;
        let agent = Agent::with_table(&edge, &Table::new()).await;
        let mut client = upgraded(&edge).await;
        let offer = agent.offer().await;
        client.send("in the midst of it").await;
        agent.answer(&offer, Answer::Refused(Refusal::Sack));
        client.read_until("in the midst of it").await;
        assert_eq!((edge.count("splice_sack"), edge.live()), (1, 1));
    });
}

#[test]
fn no_connection_comes_from_the_port_of_a_flow() {
    run(|| async {
        let (edge, server) = spliceable().await;
        let table = Table::new();
        let agent = Agent::with_table(&edge, &table).await;
        // All ports that the kernel might choose but those that end in 7.
        for port in (1_024..=u16::MAX).filter(|port| port % 10 != 7) {
            table.insert(server.address, SocketAddr::new(server.address.ip(), port));
        }
        for _ in 0..20 {
            let _client = upgraded(&edge).await;
            let offer = agent.offer().await;
            let port = offer.backend.local_addr().unwrap().port();
            assert_eq!(port % 10, 7, "{port}");
            agent.answer(&offer, Answer::Refused(Refusal::Sack));
        }
    });
}

/// The agent is killed when it has the numbers of one connection and not of the other. Whoever comes next puts it right.
#[test]
fn what_a_dead_agent_has_begun_is_the_next_ones() {
    run(|| async {
        let (edge, _server) = spliceable().await;
        let table = Table::new();
        let agent = Agent::with_table(&edge, &table).await;
        let mut client = upgraded(&edge).await;
        let offer = agent.offer().await;
        setsockopt(&offer.client, TcpRepair, &1).unwrap();
        let nothing = [socket2::SockFilter::new(0x06, 0, 0, 0)];
        for socket in [&offer.client, &offer.backend] {
            socket2::SockRef::from(socket).attach_filter(&nothing).unwrap();
        }
        drop((offer, agent));
        client.send("to whom").await;
        let next = Agent::with_table(&edge, &table).await;
        let offer = next.offer().await;
        assert_eq!(edge.count("splice_lost"), 0, "it is not the worker's again");
        // TCP_REPAIR_OFF_NO_WP, as an unsigned number.
        setsockopt(&offer.client, TcpRepair, &u32::MAX).unwrap();
        next.answer(&offer, Answer::Refused(Refusal::Closing));
        client.read_until("to whom").await;
        assert_eq!(edge.count("splice_closing"), 1);
    });
}

/// What a worker does without any privilege.
#[test]
fn a_table_is_read_without_privileges() {
    let table = Table::new();
    let [backend, local]: [SocketAddr; 2] =
        ["10.0.0.1:9", "10.0.0.2:40000"].map(|it| it.parse().unwrap());
    table.insert(backend, local);
    let read_only = table.read_only();
    let thread = std::thread::spawn(move || {
        // SAFETY: the bare system call changes this thread's user, and with it its capabilities, and no other's.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(changed, 0);
        let tables = Tables::default();
        tables.put(false, read_only).unwrap();
        assert_eq!(tables.holds(backend, local), Some(true));
        assert_eq!(tables.holds(local, backend), Some(false));
    });
    thread.join().unwrap();
}

fn tempfile() -> (std::path::PathBuf, std::fs::File) {
    let path = std::env::temp_dir().join(format!("splice-log-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    (path, file)
}
