//! Tells that the host's network changed, and which part of it.
//!
//! It reads no more of a notification than its type: the state itself comes from a new dump, so a notification
//! that is lost, reordered or not understood can at worst make the agent late, never wrong.

use std::{future::poll_fn, io, time::Duration};

use bytes::{Buf, BytesMut};
use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::state::NetEvent;

/// How long changes are gathered after the first one, so that an `ip addr add` (address, routes, neighbours)
/// makes one event.
pub const DEBOUNCE: Duration = Duration::from_millis(20);

/// Room for a burst, e.g. a routing daemon which loads a table. An overrun costs a full snapshot, no more.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Subscribes, for the network namespace of the calling thread, and spawns the reader (needs a tokio runtime).
///
/// Changes that come while the receiver is busy are merged into one event. Lost notifications (`ENOBUFS`) are
/// [`NetEvent::EVERYTHING`]. The channel closes if the socket fails otherwise: open a new watch and take a
/// snapshot then. Dropping the receiver ends the watch.
pub fn watch() -> io::Result<mpsc::Receiver<NetEvent>> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.set_rx_buf_sz(RECEIVE_BUFFER_BYTES as u32)?;
    inner.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        inner.add_membership(group as u32)?;
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(run(socket, sender));
    Ok(receiver)
}

async fn run(socket: TokioSocket, events: mpsc::Sender<NetEvent>) {
    let mut pending = NetEvent::NONE;
    let mut due = Instant::now();
    let mut buffer = BytesMut::new();
    loop {
        let waiting = pending != NetEvent::NONE;
        let deliver = async {
            sleep_until(due).await;
            events.reserve().await
        };
        tokio::select! {
            change = read(&socket, &mut buffer) => {
                let change = match change {
                    Ok(change) => change,
                    Err(error) => {
                        tracing::error!(%error, "netlink: notifications ended");
                        return;
                    }
                };
                if !waiting {
                    due = Instant::now() + DEBOUNCE;
                }
                pending = pending.and(change);
            }
            permit = deliver, if waiting => {
                let Ok(permit) = permit else { return };
                permit.send(std::mem::take(&mut pending));
            }
            () = events.closed() => return,
        }
    }
}

async fn read(socket: &TokioSocket, buffer: &mut BytesMut) -> io::Result<NetEvent> {
    buffer.clear();
    buffer.reserve(64 * 1024);
    match poll_fn(|cx| socket.poll_recv_from(cx, buffer)).await {
        Ok(_) => Ok(classify(buffer)),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(NetEvent::EVERYTHING),
        Err(error) => Err(error),
    }
}

/// What a datagram of netlink messages is about.
fn classify(mut datagram: &[u8]) -> NetEvent {
    let mut event = NetEvent::NONE;
    // struct nlmsghdr: length (header included), type, flags, sequence, port: host byte order.
    while datagram.len() >= 16 {
        let length = (&datagram[0..4]).get_u32_ne() as usize;
        let kind = (&datagram[4..6]).get_u16_ne();
        event = event.and(class(kind));
        if length < 16 {
            return NetEvent::EVERYTHING;
        }
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    event
}

/// RTM_* of include/uapi/linux/rtnetlink.h; each class has the numbers of new, del, get, set.
fn class(kind: u16) -> NetEvent {
    match kind {
        // A link that goes down takes IPv4 routes with it, and fib_flush() announces none of them.
        16..20 => NetEvent::EVERYTHING,
        // Nor those which vanish because their preferred source did.
        20..24 => NetEvent { addresses: true, routes: true, ..NetEvent::NONE },
        24..28 => NetEvent { routes: true, ..NetEvent::NONE },
        28..32 => NetEvent { neighbours: true, ..NetEvent::NONE },
        // Rules, nexthop objects.
        32..36 | 104..108 => NetEvent { routes: true, ..NetEvent::NONE },
        _ => NetEvent::NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + payload as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.resize((16 + payload).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_of_several_messages_is_the_union_of_their_classes() {
        let route = NetEvent { routes: true, ..NetEvent::NONE };
        let neighbour = NetEvent { neighbours: true, ..NetEvent::NONE };
        assert_eq!(classify(&message(24, 13)), route);
        assert_eq!(classify(&[message(24, 13), message(29, 20)].concat()), route.and(neighbour));
        assert_eq!(classify(&message(17, 4)), NetEvent::EVERYTHING);
        assert_eq!(classify(&message(104, 4)), route);
        assert_eq!(classify(&message(3, 4)), NetEvent::NONE);
    }

    #[test]
    fn a_malformed_datagram_is_read_to_its_end_and_no_further() {
        let whole = message(24, 20);
        for length in 0..whole.len() {
            classify(&whole[..length]);
        }
        let mut endless = message(28, 0);
        endless[0..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(classify(&endless), NetEvent::EVERYTHING);
    }
}
