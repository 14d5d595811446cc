//! The desk where a worker's relays leave their offers and get their answers: the worker's end of the brokers' sockets.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use tracing::warn;

use super::{ANSWER_BYTES, Answer, OFFER_BYTES, Refusal};

/// Offers without an answer, at most: if the broker hangs no more connections hang with it, and all others are relayed.
const MOST: usize = 64;

/// The offers of a worker.
#[derive(Default)]
pub struct Desk {
    /// The newest one.
    broker: RefCell<Option<Rc<Broker>>>,
    brokers: Cell<u64>,
    offers: RefCell<HashMap<u64, Pending>>,
    next: Cell<u64>,
    shut: Cell<bool>,
    /// There is no offer any more.
    cleared: Notify,
}

struct Broker {
    number: u64,
    socket: AsyncFd<OwnedFd>,
}

/// An offer as the desk knows it.
struct Pending {
    broker: u64,
    news: Option<News>,
    relay: Waker,
}

/// What a relay hears of its offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Answer(Answer),
    /// The broker has ended before it answered.
    Lost,
}

/// An offer as its relay holds it. Nobody waits for the answer any more when this is dropped.
pub struct Offer {
    desk: Rc<Desk>,
    id: u64,
}

impl Desk {
    /// Offers go to this socket from now on. Those that are open may still be answered where they are.
    pub fn open(self: &Rc<Self>, socket: OwnedFd) -> io::Result<()> {
        let number = self.brokers.get() + 1;
        self.brokers.set(number);
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let broker = Rc::new(Broker { number, socket });
        *self.broker.borrow_mut() = Some(Rc::clone(&broker));
        tokio::task::spawn_local(listen(Rc::clone(self), broker));
        Ok(())
    }

    /// Offers the connections of a client and of its backend. None: there is no broker, or it has enough to do.
    pub fn offer(
        self: &Rc<Self>,
        client: BorrowedFd<'_>,
        backend: BorrowedFd<'_>,
        relay: &Waker,
    ) -> Option<Offer> {
        let broker = self.broker.borrow().clone()?;
        if self.offers.borrow().len() >= MOST {
            return None;
        }
        let id = self.next.get();
        self.next.set(id + 1);
        // An end of the socket is noticed where it is read.
        send(broker.socket.get_ref().as_fd(), id, [client, backend]).ok()?;
        let pending = Pending { broker: broker.number, news: None, relay: relay.clone() };
        self.offers.borrow_mut().insert(id, pending);
        Some(Offer { desk: Rc::clone(self), id })
    }

    /// Nothing new is to be offered from now on: all relays are about to be closed. What a broker has begun it may still be
    /// offered again.
    pub fn shut(&self) {
        self.shut.set(true);
    }

    /// Whether a new offer would go to a broker now.
    pub fn has_room(&self) -> bool {
        self.is_open() && self.offers.borrow().len() < MOST
    }

    /// Whether there is a broker, but one who has enough to do for the moment.
    pub fn is_full(&self) -> bool {
        self.is_open() && !self.has_room()
    }

    fn is_open(&self) -> bool {
        !self.shut.get() && self.broker.borrow().is_some()
    }

    /// Waits until no offer is open, but no longer than so.
    pub async fn clear(&self, patience: Duration) {
        let cleared = async {
            // Nothing else runs between the look and the wait: there is one thread.
            while !self.offers.borrow().is_empty() {
                self.cleared.notified().await;
            }
        };
        _ = tokio::time::timeout(patience, cleared).await;
    }

    fn answered(&self, id: u64, answer: Answer) {
        // It may have gone with its relay.
        if let Some(offer) = self.offers.borrow_mut().get_mut(&id) {
            offer.news = Some(News::Answer(answer));
            offer.relay.wake_by_ref();
        }
    }

    fn lost(&self, broker: &Broker) {
        let mut newest = self.broker.borrow_mut();
        if newest.as_ref().is_some_and(|newest| newest.number == broker.number) {
            *newest = None;
        }
        for offer in self.offers.borrow_mut().values_mut() {
            if offer.broker == broker.number && offer.news.is_none() {
                offer.news = Some(News::Lost);
                offer.relay.wake_by_ref();
            }
        }
    }
}

impl Offer {
    /// Ready once there is news.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<News> {
        let mut offers = self.desk.offers.borrow_mut();
        let Some(offer) = offers.get_mut(&self.id) else { return Poll::Ready(News::Lost) };
        match offer.news {
            Some(news) => Poll::Ready(news),
            None => {
                offer.relay.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut offers = self.desk.offers.borrow_mut();
        offers.remove(&self.id);
        if offers.is_empty() {
            self.desk.cleared.notify_waiters();
        }
    }
}

async fn listen(desk: Rc<Desk>, broker: Rc<Broker>) {
    // One byte more, to know what is too long.
    let mut answer = [0; ANSWER_BYTES + 1];
    loop {
        let receive = |socket: &OwnedFd| Ok(recv(socket, &mut answer[..], RecvFlags::DONTWAIT)?.1);
        match broker.socket.async_io(Interest::READABLE, receive).await {
            Ok(0) => break,
            Ok(ANSWER_BYTES) => {}
            Ok(bytes) => {
                warn!("the broker's answer has {bytes} bytes");
                break;
            }
            Err(error) => {
                warn!("the broker's socket: {error}");
                break;
            }
        }
        let [id @ .., byte, _] = answer;
        // A later version's refusal is still one.
        let answer = Answer::from_byte(byte).unwrap_or(Answer::Refused(Refusal::Failed));
        desk.answered(u64::from_ne_bytes(id), answer);
    }
    desk.lost(&broker);
}

fn send(socket: BorrowedFd<'_>, id: u64, connections: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&connections)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    let id: [u8; OFFER_BYTES] = id.to_ne_bytes();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&id)], &mut control, flags)?;
    Ok(())
}
