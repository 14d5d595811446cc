//! Relays that offer themselves, and a broker that does as the test says. It is another process otherwise, so only its end
//! of the socket is made up.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    rc::Rc,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::TcpStream,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

use super::{registry::Registry, tests::*, *};
use crate::{
    outcome::{Outcome, Outcomes},
    settings::{self, State},
    splice::{ANSWER_BYTES, Answer, OFFER_BYTES, Refusal, desk::Desk},
};

/// What should come comes within it.
const LONG: Duration = Duration::from_secs(10);

/// Far longer than the first pauses are.
const PAUSES: Duration = Duration::from_millis(100);

/// The broker's end.
struct Broker(AsyncFd<OwnedFd>);

struct Offered {
    id: [u8; OFFER_BYTES],
    client: TcpStream,
    backend: TcpStream,
}

impl Broker {
    fn at(desk: &Rc<Desk>) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        desk.open(far).unwrap();
        // SAFETY: an `OwnedFd` keeps its descriptor.
        Self(unsafe { AsyncFd::register_with_interest(near, Interest::READABLE) }.unwrap())
    }

    async fn offer(&self) -> Offered {
        self.offer_within(LONG).await
    }

    async fn offer_within(&self, time: Duration) -> Offered {
        let offer = timeout(time, self.0.async_io(Interest::READABLE, receive)).await;
        offer.expect("no offer").unwrap()
    }

    async fn no_offer_within(&self, time: Duration) {
        let offer = timeout(time, self.0.async_io(Interest::READABLE, receive)).await;
        assert!(offer.is_err(), "an offer came");
    }

    fn answer(&self, offer: &Offered, answer: Answer) {
        let mut bytes = [0; ANSWER_BYTES];
        bytes[..OFFER_BYTES].copy_from_slice(&offer.id);
        bytes[OFFER_BYTES] = answer.to_byte();
        let mut control = SendAncillaryBuffer::default();
        sendmsg(self.0.get_ref(), &[IoSlice::new(&bytes)], &mut control, SendFlags::empty())
            .unwrap();
    }
}

fn receive(socket: &OwnedFd) -> std::io::Result<Offered> {
    let mut id = [0; OFFER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut id)], &mut control, flags)?;
    let mut descriptors = control.drain().flat_map(|part| match part {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let mut next = || TcpStream::from_std(descriptors.next().expect("two descriptors").into());
    Ok(Offered { id, client: next()?, backend: next()? })
}

/// A relay that may be spliced.
struct Spliceable {
    desk: Rc<Desk>,
    outcomes: Rc<Outcomes>,
    registry: Rc<Registry>,
}

impl Spliceable {
    fn new() -> Self {
        Self { desk: Rc::default(), outcomes: Rc::default(), registry: Rc::default() }
    }

    async fn start(&self) -> Case {
        let means = Means {
            desk: Rc::clone(&self.desk),
            outcomes: Rc::clone(&self.outcomes),
            round_trip: Duration::ZERO,
        };
        start_with(&self.registry, HOUR, true, [b"", b""], Some(means)).await
    }

    fn count(&self, label: &str) -> u64 {
        self.outcomes.report().find(|(name, _)| name == label).map_or(0, |(_, n)| n)
    }
}

async fn ended(ended: JoinHandle<Ended>) -> By {
    timeout(LONG, ended).await.expect("it goes on").unwrap().by
}

async fn passes(case: &mut Case, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    case.client.write_all(bytes).await.unwrap();
    timeout(LONG, case.server.read_exact(&mut got)).await.expect("nothing came").unwrap();
    assert_eq!(got, bytes);
    case.server.write_all(bytes).await.unwrap();
    timeout(LONG, case.client.read_exact(&mut got)).await.expect("nothing came").unwrap();
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn a_connection_at_rest_is_offered_and_ends_here_when_it_is_spliced() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        let offer = broker.offer().await;
        let client = case.client.local_addr().unwrap();
        assert_eq!(offer.client.peer_addr().unwrap(), client, "the client's comes first");
        assert_eq!(offer.backend.local_addr().unwrap(), case.server.peer_addr().unwrap());
        broker.answer(&offer, Answer::Spliced);
        assert_eq!(ended(case.ended).await, By::Splice);
        assert_eq!(all.count("spliced"), 1);
        assert!(all.registry.is_empty());
        // The relay has said nothing: as long as others have the connection, it is open.
        case.client.write_all(b"to the new owner").await.unwrap();
        let mut got = [0; 16];
        let mut taken = offer.client;
        taken.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"to the new owner");
    })
    .await;
}

#[tokio::test]
async fn from_offer_to_answer_nothing_is_read_and_after_a_refusal_nothing_is_lost() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        for round in 0..20_u8 {
            let offer = broker.offer().await;
            case.client.write_all(&[round; 1_000]).await.unwrap();
            case.server.write_all(&[!round; 3_000]).await.unwrap();
            assert!(
                timeout(PAUSES / 10, case.server.read_u8()).await.is_err(),
                "it was passed on in the midst of the splice"
            );
            broker.answer(&offer, Answer::Refused(Refusal::Busy));
            drop(offer);
            let mut got = [0; 1_000];
            timeout(LONG, case.server.read_exact(&mut got)).await.expect("lost").unwrap();
            assert_eq!(got, [round; 1_000]);
            let mut got = [0; 3_000];
            timeout(LONG, case.client.read_exact(&mut got)).await.expect("lost").unwrap();
            assert_eq!(got, [!round; 3_000]);
            // Else the pauses would grow too long.
            if round % 4 == 3 {
                case = all.start().await;
            }
        }
        assert_eq!(all.count("splice_busy"), 20);
    })
    .await;
}

#[tokio::test]
async fn while_anything_is_under_way_there_is_no_offer() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let Case { client, mut server, .. } = all.start().await;
        let (_read, mut write) = client.into_split();
        let bytes = 32 << 20;
        let writing = spawn_local(async move {
            write.write_all(&vec![7; bytes]).await.unwrap();
            write
        });
        // Nobody reads: it stands in the relay and in the sockets.
        while all.count("splice_waits") < 5 {
            broker.no_offer_within(Duration::from_millis(10)).await;
        }
        let mut got = vec![0; bytes];
        server.read_exact(&mut got).await.unwrap();
        let _open = writing.await.unwrap();
        assert!(got.iter().all(|byte| *byte == 7));
        broker.offer().await;
    })
    .await;
}

#[tokio::test]
async fn a_half_closed_connection_is_not_offered() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        case.client.shutdown().await.unwrap();
        broker.no_offer_within(PAUSES).await;
        case.server.write_all(b"answer").await.unwrap();
        case.client.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(all.count("splice_waits"), 0, "nothing is to be waited for");
    })
    .await;
}

/// How long each of so many offers is waited for, when all of them are refused.
async fn pauses<const OFFERS: usize>(refusal: Refusal) -> [Duration; OFFERS] {
    let all = Spliceable::new();
    let broker = Broker::at(&all.desk);
    let _case = all.start().await;
    let mut before = Instant::now();
    let mut pauses = [Duration::ZERO; OFFERS];
    for pause in &mut pauses {
        // The sockets' own time goes on while that of the test stands.
        let offer = broker.offer_within(2 * LONG).await;
        *pause = before.elapsed();
        before = Instant::now();
        broker.answer(&offer, Answer::Refused(refusal));
    }
    pauses
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_ten_seconds() {
    on_local_set(async {
        let pauses = pauses::<18>(Refusal::Failed).await;
        for (pause, next) in pauses[2..].iter().zip(&pauses[3..]) {
            assert!(*next >= *pause, "{pauses:?}");
            assert!(*next <= 3 * *pause, "{pauses:?}");
        }
        assert!(pauses[..3].iter().all(|it| *it <= Duration::from_millis(10)), "{pauses:?}");
        let ten = Duration::from_secs(10);
        assert!((ten..ten * 11 / 10).contains(pauses.last().unwrap()), "{pauses:?}");
    })
    .await;
}

/// The broker has asked for acknowledgements that were put off, and they come within a round trip.
#[tokio::test(start_paused = true)]
async fn who_was_busy_is_offered_again_a_round_trip_later_and_then_after_the_pause() {
    on_local_set(async {
        let pauses = pauses::<24>(Refusal::Busy).await;
        // The first one comes after no refusal; then a short one follows on each that doubles.
        let (short, doubling): (Vec<_>, Vec<_>) =
            pauses[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip();
        assert!(short.iter().all(|it| *it <= Duration::from_millis(5)), "{pauses:?}");
        assert!(*doubling.last().unwrap() >= Duration::from_secs(1), "{pauses:?}");
    })
    .await;
}

#[tokio::test]
async fn what_will_never_do_is_offered_once() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        let offer = broker.offer().await;
        broker.answer(&offer, Answer::Refused(Refusal::Sack));
        broker.no_offer_within(PAUSES).await;
        passes(&mut case, b"relayed").await;
        broker.no_offer_within(PAUSES).await;
        assert_eq!((all.count("splice_sack"), all.count("splice_waits")), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn without_a_broker_it_is_relayed_until_there_is_one() {
    on_local_set(async {
        let all = Spliceable::new();
        let mut case = all.start().await;
        while all.count("splice_waits") < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        passes(&mut case, b"relayed").await;
        let broker = Broker::at(&all.desk);
        let offer = broker.offer().await;
        broker.answer(&offer, Answer::Spliced);
        assert_eq!(ended(case.ended).await, By::Splice);
    })
    .await;
}

/// The agent dies with its filters on and before it has taken any numbers.
#[tokio::test]
async fn a_broker_that_dies_leaves_the_connection_as_it_was() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        let offer = broker.offer().await;
        for socket in [&offer.client, &offer.backend] {
            // BPF_RET | BPF_K, 0 bytes.
            let nothing = [socket2::SockFilter::new(0x06, 0, 0, 0)];
            socket2::SockRef::from(socket).attach_filter(&nothing).unwrap();
        }
        drop((broker, offer));
        passes(&mut case, b"as before").await;
        assert_eq!(all.count("splice_lost"), 1);
        let next = Broker::at(&all.desk);
        let offer = next.offer().await;
        next.answer(&offer, Answer::Spliced);
        assert_eq!(ended(case.ended).await, By::Splice);
    })
    .await;
}

#[tokio::test]
async fn an_offer_is_answered_where_it_was_made_and_the_newest_broker_gets_the_next() {
    on_local_set(async {
        let all = Spliceable::new();
        let old = Broker::at(&all.desk);
        let first = all.start().await;
        let offer = old.offer().await;
        let new = Broker::at(&all.desk);
        let second = all.start().await;
        let other = new.offer().await;
        old.answer(&offer, Answer::Spliced);
        assert_eq!(ended(first.ended).await, By::Splice);
        drop(old);
        new.answer(&other, Answer::Spliced);
        assert_eq!(ended(second.ended).await, By::Splice);
    })
    .await;
}

#[tokio::test]
async fn orders_wait_for_the_answer() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut case = all.start().await;
        let offer = broker.offer().await;
        assert!(all.registry.close_one(GOING_AWAY, |_| true));
        let early = timeout(PAUSES / 2, case.client.read_u8()).await;
        assert!(early.is_err(), "it was touched");
        broker.answer(&offer, Answer::Refused(Refusal::Busy));
        drop(offer);
        assert_eq!(read_to_end(&mut case.client).await, [0x88, 2, 0x03, 0xe9]);
        drop(case.client);
        assert_eq!(ended(case.ended).await, By::Drain);

        let case = all.start().await;
        let offer = broker.offer().await;
        all.registry.abort_all();
        broker.no_offer_within(PAUSES / 2).await;
        assert!(!case.ended.is_finished());
        broker.answer(&offer, Answer::Spliced);
        assert_eq!(ended(case.ended).await, By::Splice, "the agent ends it now");
    })
    .await;
}

#[tokio::test]
async fn what_is_about_to_be_closed_is_not_offered() {
    on_local_set(async {
        let all = Spliceable::new();
        let case = all.start().await;
        for state in [State::Draining { until: u64::MAX }, State::Down] {
            case.backend.update(&settings::Backend { state, ..backend_settings() });
            let broker = Broker::at(&all.desk);
            broker.no_offer_within(PAUSES).await;
        }
        let broker = Broker::at(&all.desk);
        case.backend.update(&backend_settings());
        let offer = broker.offer().await;
        broker.answer(&offer, Answer::Refused(Refusal::Busy));
        all.desk.shut();
        broker.no_offer_within(PAUSES).await;
    })
    .await;
}

#[tokio::test]
async fn a_slow_broker_holds_few_connections() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut cases = Vec::new();
        for _ in 0..80 {
            cases.push(all.start().await);
        }
        let mut offers = Vec::new();
        while offers.len() < 64 {
            offers.push(broker.offer().await);
        }
        broker.no_offer_within(PAUSES).await;
        for offer in offers.drain(..) {
            broker.answer(&offer, Answer::Spliced);
        }
        while offers.len() < 16 {
            offers.push(broker.offer().await);
        }
        for offer in &offers {
            broker.answer(offer, Answer::Spliced);
        }
        all.desk.clear(LONG).await;
        for case in cases {
            assert_eq!(ended(case.ended).await, By::Splice);
        }
        assert_eq!(all.outcomes.get(Outcome::Spliced), 80);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_has_found_the_broker_busy_comes_back_soon() {
    on_local_set(async {
        let all = Spliceable::new();
        let broker = Broker::at(&all.desk);
        let mut cases = Vec::new();
        for _ in 0..65 {
            cases.push(all.start().await);
        }
        let mut offers = Vec::new();
        while offers.len() < 64 {
            offers.push(broker.offer().await);
        }
        broker.no_offer_within(LONG).await;
        let before = Instant::now();
        for offer in &offers {
            broker.answer(offer, Answer::Spliced);
        }
        _ = broker.offer().await;
        assert!(before.elapsed() <= Duration::from_millis(100), "{:?}", before.elapsed());
    })
    .await;
}
