//! Takes the packets which XDP could not send because their next hop was not resolved, and sends them on.
//!
//! Most go through the kernel, which resolves the next hop by its own routes. With `dsr` the packet's destination is
//! the VIP, so no route leads to the backend: such packets wait here until the neighbour is known.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use lb_common::punt::{MAX_PACKET, Punt};
use tokio::{
    io::unix::AsyncFd,
    time::{Interval, MissedTickBehavior, interval},
};

use super::roster::Current;
use crate::{
    bpf::{PinDir, specs::names},
    netlink::Kernel,
    reset::ResetSender,
};

/// Most packets that wait for a neighbour; a newcomer takes the oldest one's place.
const MOST_WAITING: usize = 512;
/// Most packets that are taken from the ring before they are sent.
const MOST_AT_ONCE: usize = 64;
/// The kernel gives a neighbour up after 3 s.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How often the waiting ones are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The consumer of the ring buffer.
pub struct Punts {
    ring: AsyncFd<RingBuf<MapData>>,
    sender: ResetSender,
    kernel: Kernel,
    roster: Arc<Current>,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    backend: u16,
    packet: Vec<u8>,
    since: Instant,
}

impl Punts {
    /// Opens the ring buffer, and sockets in the network namespace of the caller.
    pub fn open(pins: &PinDir, kernel: Kernel, roster: Arc<Current>) -> Result<Self> {
        let ring: RingBuf<MapData> = pins.map(names::PUNTS)?.try_into().context(names::PUNTS)?;
        Ok(Self {
            // SAFETY: the ring owns its map, whose descriptor stays the same and open for as long as it lives.
            ring: unsafe { AsyncFd::register(ring) }.context(names::PUNTS)?,
            sender: ResetSender::open()?,
            kernel,
            roster,
            waiting: VecDeque::new(),
        })
    }

    /// Sends on whatever comes, until the ring cannot be read.
    pub async fn run(mut self) -> io::Error {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.next(&mut look).await {
                return error;
            }
        }
    }

    async fn next(&mut self, look: &mut Interval) -> io::Result<()> {
        tokio::select! {
            ready = self.ring.readable_mut() => {
                let mut ready = ready?;
                let mut punts = Vec::new();
                while punts.len() < MOST_AT_ONCE {
                    let Some(record) = ready.get_inner_mut().next() else {
                        ready.clear_ready();
                        break;
                    };
                    punts.extend(parse(&record));
                }
                for (backend, packet) in punts {
                    self.take(backend, packet).await;
                }
            }
            _ = look.tick(), if !self.waiting.is_empty() => self.look(),
        }
        Ok(())
    }

    async fn take(&mut self, backend: u16, packet: Vec<u8>) {
        if backend == 0 {
            if let Err(error) = self.sender.send_packet(&packet) {
                tracing::debug!(%error, "a packet without a next hop cannot be sent");
            }
            return;
        }
        if let Some(link) = self.roster.get().way(backend).link
            && let Err(error) = self.kernel.resolve(link.ifindex, link.neighbour).await
        {
            tracing::debug!(error = format!("{error:#}"), "neighbour not resolved");
        }
        if self.waiting.len() == MOST_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting { backend, packet, since: Instant::now() });
        self.look();
    }

    /// Sends what can be sent by now, and drops what has waited for too long.
    fn look(&mut self) {
        let (roster, sender) = (self.roster.get(), &self.sender);
        self.waiting.retain(|it| {
            let link = roster.way(it.backend).link;
            let Some((link, (dst_mac, src_mac))) = link.and_then(|link| Some((link, link.macs?)))
            else {
                return it.since.elapsed() < LONGEST_WAIT;
            };
            if let Err(error) = sender.send_frame(link.ifindex, dst_mac, src_mac, &it.packet) {
                tracing::debug!(%error, "a packet that waited for its backend cannot be sent");
            }
            false
        });
    }
}

/// The backend and the packet of a record; nothing of one that contradicts itself.
fn parse(record: &[u8]) -> Option<(u16, Vec<u8>)> {
    const HEADER: usize = size_of::<Punt>() - MAX_PACKET;
    let header = record.get(..HEADER)?;
    let length = u32::from_ne_bytes(header[..4].try_into().ok()?);
    let backend = u16::from_ne_bytes(header[4..6].try_into().ok()?);
    let packet = record.get(HEADER..HEADER + usize::try_from(length).ok()?)?;
    Some((backend, packet.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_to_its_length_and_no_further() {
        let mut record = vec![0; size_of::<Punt>()];
        record[..4].copy_from_slice(&3_u32.to_ne_bytes());
        record[4..6].copy_from_slice(&7_u16.to_ne_bytes());
        record[16..20].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(parse(&record), Some((7, vec![1, 2, 3])));
        record[..4].copy_from_slice(&(MAX_PACKET as u32 + 1).to_ne_bytes());
        assert_eq!(parse(&record), None);
        assert_eq!(parse(&[0; 3]), None);
    }

    #[test]
    fn the_header_is_where_the_shared_type_has_it() {
        assert_eq!(std::mem::offset_of!(Punt, len), 0);
        assert_eq!(std::mem::offset_of!(Punt, backend), 4);
        assert_eq!(std::mem::offset_of!(Punt, packet), size_of::<Punt>() - MAX_PACKET);
    }
}
