//! Connect, shake hands by TLS, take a ticket, close, and again.

use anyhow::{Context, Result, ensure};
use rustls::HandshakeKind;

use super::{BUFFER, Effort, STUCK, Sample, connection::Entrance, measure, wire::Wire};
use crate::bench::{
    account::Account,
    poll::{Poll, Ready},
    tls::Tickets,
};

/// Keeps so many handshakes under way, and counts those whose client has a ticket: the server has then verified the
/// client's last words. All that are counted are of the kind that is expected.
pub fn tls_handshakes(
    entrance: &Entrance,
    tickets: &Tickets,
    kind: HandshakeKind,
    clients: usize,
    effort: &Effort,
    account: &Account,
) -> Result<Sample> {
    let mut crowd = Crowd::gather(entrance, tickets, clients)?;
    if kind == HandshakeKind::Resumed {
        // The first ones have no tickets yet.
        let mut first = 0;
        while first < 2 * clients as u64 {
            first += crowd.turn(None)?;
        }
    }
    measure(effort, account, || crowd.turn(Some(kind)))
}

struct Crowd<'a> {
    entrance: &'a Entrance,
    tickets: &'a Tickets,
    poll: Poll,
    ready: Ready,
    buffer: Vec<u8>,
    slots: Vec<Wire>,
    next: usize,
}

impl<'a> Crowd<'a> {
    fn gather(entrance: &'a Entrance, tickets: &'a Tickets, clients: usize) -> Result<Self> {
        let (poll, ready, buffer) = (Poll::new()?, Ready::new(), vec![0; BUFFER]);
        let mut crowd = Self { entrance, tickets, poll, ready, buffer, slots: Vec::new(), next: 0 };
        for number in 0..clients {
            let wire = crowd.connect(number)?;
            crowd.slots.push(wire);
        }
        Ok(crowd)
    }

    fn connect(&mut self, number: usize) -> Result<Wire> {
        self.next += 1;
        let wire = self.entrance.dial(self.next)?;
        self.poll.changes(wire.socket(), number)?;
        Ok(wire)
    }

    /// Returns how many handshakes came to their end.
    fn turn(&mut self, kind: Option<HandshakeKind>) -> Result<u64> {
        self.poll.wait(&mut self.ready, STUCK)?;
        ensure!(!self.ready.is_empty(), "no handshake was answered for {STUCK:?}");
        let mut done = 0;
        let ready: Vec<usize> = self.ready.numbers().collect();
        for number in ready {
            let wire = &mut self.slots[number];
            let before = self.tickets.come();
            let advanced = wire.shake_hands().and_then(|over| {
                let more = if over { wire.receive(&mut self.buffer)? } else { None };
                ensure!(more.is_none(), "bytes that nobody has asked for");
                Ok(())
            });
            advanced.with_context(|| format!("handshake {}", self.next))?;
            if self.tickets.come() > before {
                let is_expected = kind.is_none() || wire.handshake() == kind;
                ensure!(is_expected, "a handshake that is {:?}", wire.handshake());
                done += 1;
                // The new one's descriptor is another, and the old one is closed and forgotten.
                self.slots[number] = self.connect(number)?;
            }
        }
        Ok(done)
    }
}
