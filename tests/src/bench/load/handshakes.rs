//! Connect, upgrade, close, and again.

use anyhow::{Result, ensure};

use super::{BUFFER, Effort, STUCK, Sample, connection::Entrance, measure};
use crate::bench::{
    account::Account,
    poll::{Poll, Ready},
};

/// Keeps so many handshakes under way, and counts those which were upgraded.
pub fn handshakes(
    entrance: &Entrance,
    clients: usize,
    effort: &Effort,
    account: &Account,
) -> Result<Sample> {
    let poll = Poll::new()?;
    let mut ready = Ready::new();
    let mut buffer = vec![0; BUFFER];
    let mut next = 0;
    let mut connect = |number| {
        next += 1;
        let client = entrance.connect(next)?;
        poll.changes(client.wire.socket(), number)?;
        anyhow::Ok(client)
    };
    let mut slots = (0..clients).map(&mut connect).collect::<Result<Vec<_>>>()?;
    measure(effort, account, || {
        poll.wait(&mut ready, STUCK)?;
        ensure!(!ready.is_empty(), "no handshake was answered for {STUCK:?}");
        let mut done = 0;
        for number in ready.numbers() {
            if slots[number].advance(entrance, &mut buffer)? {
                done += 1;
                // The new one's descriptor is another, and the old one is closed and forgotten.
                slots[number] = connect(number)?;
            }
        }
        Ok(done)
    })
}
