//! Relays between real sockets.

use std::{net::SocketAddr, rc::Rc};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet, spawn_local},
};

use super::{registry::Registry, *};
use crate::{
    pool::Backend,
    settings::{self, State},
};

pub const HOUR: Duration = Duration::from_secs(3_600);

/// A relay under test, with the far ends of its connections.
pub struct Case {
    pub client: TcpStream,
    pub server: TcpStream,
    pub ended: JoinHandle<Ended>,
    pub backend: Rc<Backend>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn backend() -> Rc<Backend> {
    Backend::new(&backend_settings())
}

pub fn backend_settings() -> settings::Backend {
    settings::Backend {
        name: "b1".to_owned(),
        id: "0000000000000001".to_owned(),
        address: SocketAddr::from(([127, 0, 0, 1], 9)),
        weight: 100,
        state: State::Up,
        pool: 0,
    }
}

async fn start(
    registry: &Rc<Registry>,
    idle: Duration,
    websocket: bool,
    ahead: [&[u8]; 2],
) -> Case {
    start_with(registry, idle, websocket, ahead, None).await
}

pub async fn start_with(
    registry: &Rc<Registry>,
    idle: Duration,
    websocket: bool,
    ahead: [&[u8]; 2],
    splice: Option<Means>,
) -> Case {
    let ((client, inner), (outer, server)) = tokio::join!(pair(), pair());
    let backend = backend();
    let entry = registry.enter(Rc::clone(&backend));
    let end = |stream: TcpStream, ahead| End {
        stream: stream.into(),
        read_ahead: Bytes::copy_from_slice(ahead),
    };
    let options = Options { idle_timeout: idle, websocket, entry, splice, pace: [None, None] };
    let ended = spawn_local(relay(end(inner, ahead[0]), end(outer, ahead[1]), options));
    Case { client, server, ended, backend }
}

async fn plain() -> Case {
    start(&Rc::default(), HOUR, false, [b"", b""]).await
}

pub async fn on_local_set(test: impl Future<Output = ()>) {
    let tasks = LocalSet::new();
    let limited = tokio::time::timeout(Duration::from_secs(60), tasks.run_until(test));
    limited.await.expect("it hangs");
}

pub async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn what_was_read_ahead_goes_first_in_both_directions() {
    on_local_set(async {
        let ahead: [&[u8]; 2] = [b"early request", b"early answer"];
        let mut case = start(&Rc::default(), HOUR, false, ahead).await;
        case.client.write_all(b", more").await.unwrap();
        case.server.write_all(b", more").await.unwrap();
        case.client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut case.server).await, b"early request, more");
        case.server.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut case.client).await, b"early answer, more");
        let ended = case.ended.await.unwrap();
        assert_eq!((ended.bytes_in, ended.bytes_out, ended.by), (19, 18, By::Client));
    })
    .await;
}

#[tokio::test]
async fn megabytes_pass_both_ways_through_a_slow_reader_unchanged() {
    on_local_set(async {
        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut noise = vec![0; 8 << 20];
        random.fill(&mut noise[..]);
        let Case { client, server, ended, backend } = plain().await;
        let sent = noise.clone();
        let echo = spawn_local(async move {
            let (mut read, mut write) = server.into_split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let (mut read, mut write) = client.into_split();
        let writing = spawn_local(async move {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let n = random.random_range(1..200_000).min(rest.len());
                write.write_all(&rest[..n]).await.unwrap();
                rest = &rest[n..];
            }
        });
        let mut got = Vec::new();
        let mut chunk = vec![0; 10_000];
        while got.len() < noise.len() {
            let n = read.read(&mut chunk).await.unwrap();
            assert!(n > 0, "it ended at {} bytes; seed {seed}", got.len());
            got.extend_from_slice(&chunk[..n]);
            tokio::task::yield_now().await;
        }
        writing.await.unwrap();
        assert!(got == noise, "seed {seed}");
        assert_eq!(read.read(&mut chunk).await.unwrap(), 0, "the half-close came back");
        echo.await.unwrap();
        let ended = ended.await.unwrap();
        let all = noise.len() as u64;
        assert_eq!((ended.bytes_in, ended.bytes_out, ended.by), (all, all, By::Client));
        assert_eq!((backend.bytes_in.get(), backend.bytes_out.get()), (all, all));
    })
    .await;
}

#[tokio::test]
async fn a_half_closed_connection_still_answers() {
    on_local_set(async {
        let mut case = plain().await;
        case.client.write_all(b"question").await.unwrap();
        case.client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut case.server).await, b"question");
        for _ in 0..3 {
            case.server.write_all(b"answer").await.unwrap();
            let mut got = [0; 6];
            case.client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"answer");
        }
        drop(case.server);
        assert_eq!(read_to_end(&mut case.client).await, b"");
        assert_eq!(case.ended.await.unwrap().by, By::Client);
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_passed_on_as_one() {
    for from_client in [true, false] {
        on_local_set(async {
            let Case { client, server, ended, .. } = plain().await;
            let (one, mut other) = if from_client { (client, server) } else { (server, client) };
            socket2::SockRef::from(&one).set_linger(Some(Duration::ZERO)).unwrap();
            drop(one);
            let by = if from_client { By::ClientReset } else { By::BackendReset };
            assert_eq!(ended.await.unwrap().by, by);
            let error = other.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        })
        .await;
    }
}

#[tokio::test]
async fn silence_ends_it_and_words_do_not() {
    on_local_set(async {
        let idle = Duration::from_secs(2);
        let mut case = start(&Rc::default(), idle, false, [b"", b""]).await;
        let begin = Instant::now();
        while begin.elapsed() < idle * 2 {
            case.server.write_all(b".").await.unwrap();
            assert_eq!(case.client.read_u8().await.unwrap(), b'.', "it ended too early");
            tokio::time::sleep(idle / 10).await;
        }
        let last = Instant::now();
        let ended = case.ended.await.unwrap();
        assert_eq!(ended.by, By::Idle);
        assert!(last.elapsed() + idle / 5 >= idle, "after {:?}", last.elapsed());
        assert_eq!(read_to_end(&mut case.client).await, b"");
    })
    .await;
}

/// A frame of a server: FIN, binary.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x82, 126][..], &length, payload].concat()
}

#[tokio::test]
async fn a_close_frame_stands_where_a_frame_ends() {
    on_local_set(async {
        let registry: Rc<Registry> = Rc::default();
        let mut case = start(&registry, HOUR, true, [b"", b""]).await;
        let whole = frame(&[7; 50_000]);
        let (first, second) = whole.split_at(20_000);
        case.server.write_all(first).await.unwrap();
        let mut got = vec![0; first.len()];
        case.client.read_exact(&mut got).await.unwrap();
        assert!(registry.close_one(SERVICE_RESTART, |_| true));
        assert!(!registry.close_one(SERVICE_RESTART, |_| true), "it was told already");
        case.client.write_all(b"last words").await.unwrap();
        let mut words = [0; 10];
        case.server.read_exact(&mut words).await.unwrap();
        case.server.write_all(second).await.unwrap();
        case.server.write_all(&frame(b"too late")).await.unwrap();
        got.extend(read_to_end(&mut case.client).await);
        assert_eq!(&got[..whole.len()], &whole[..]);
        assert_eq!(&got[whole.len()..], [0x88, 2, 0x03, 0xf4], "1012, and a FIN");
        drop(case.client);
        assert_eq!(case.ended.await.unwrap().by, By::Drain);
        assert!(registry.is_empty());
    })
    .await;
}

#[tokio::test]
async fn at_rest_it_is_closed_at_once() {
    on_local_set(async {
        let registry: Rc<Registry> = Rc::default();
        let ahead: [&[u8]; 2] = [b"", &frame(b"hello")];
        let mut case = start(&registry, HOUR, true, ahead).await;
        case.client.read_exact(&mut vec![0; ahead[1].len()]).await.unwrap();
        registry.close_one(GOING_AWAY, |_| true);
        assert_eq!(read_to_end(&mut case.client).await, [0x88, 2, 0x03, 0xe9]);
        drop(case.client);
        assert_eq!(read_to_end(&mut case.server).await, b"");
        assert_eq!(case.ended.await.unwrap().by, By::Drain);
    })
    .await;
}

#[tokio::test]
async fn after_the_backends_own_close_frame_comes_no_other() {
    on_local_set(async {
        let registry: Rc<Registry> = Rc::default();
        let closed = [0x88, 2, 0x03, 0xe8];
        let mut case = start(&registry, HOUR, true, [b"", &closed]).await;
        case.client.read_exact(&mut [0; 4]).await.unwrap();
        registry.close_one(GOING_AWAY, |_| true);
        assert_eq!(read_to_end(&mut case.client).await, b"");
    })
    .await;
}

#[tokio::test]
async fn other_protocols_get_a_fin() {
    on_local_set(async {
        let registry: Rc<Registry> = Rc::default();
        let mut case = start(&registry, HOUR, false, [b"", b"hello"]).await;
        case.client.read_exact(&mut [0; 5]).await.unwrap();
        registry.close_one(GOING_AWAY, |_| true);
        assert_eq!(read_to_end(&mut case.client).await, b"");
        drop(case.client);
        assert_eq!(case.ended.await.unwrap().by, By::Drain);
    })
    .await;
}

#[tokio::test]
async fn those_of_one_backend_are_closed_oldest_first_and_the_rest_aborted() {
    on_local_set(async {
        let registry: Rc<Registry> = Rc::default();
        let mut cases = Vec::new();
        for _ in 0..3 {
            cases.push(start(&registry, HOUR, true, [b"", b""]).await);
        }
        let second = Rc::clone(&cases[1].backend);
        assert!(registry.close_one(GOING_AWAY, |it| std::ptr::eq(it, &*second)));
        assert!(!registry.close_one(GOING_AWAY, |it| std::ptr::eq(it, &*second)));
        assert!(registry.close_one(GOING_AWAY, |_| true));
        assert_eq!(read_to_end(&mut cases[1].client).await.len(), 4);
        assert_eq!(read_to_end(&mut cases[0].client).await.len(), 4, "the oldest");
        registry.abort_all();
        for case in cases {
            assert_eq!(case.ended.await.unwrap().by, By::Deadline);
        }
        assert!(registry.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_idle_relay_is_small() {
    on_local_set(async {
        let (one, other) = tokio::join!(pair(), pair());
        let registry: Rc<Registry> = Rc::default();
        let entry = registry.enter(backend());
        let end = |stream: TcpStream| End { stream: stream.into(), read_ahead: Bytes::new() };
        let options = Options {
            idle_timeout: HOUR,
            websocket: true,
            entry,
            splice: None,
            pace: [None, None],
        };
        let relay = relay(end(one.0), end(other.0), options);
        assert!(size_of_val(&relay) <= 512, "{} bytes", size_of_val(&relay));
    })
    .await;
}
