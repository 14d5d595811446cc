//! Opens many upgraded connections and keeps them.

use anyhow::{Context, Result, ensure};

use super::{
    AT_ONCE, BUFFER, STUCK,
    connection::{Client, Entrance},
    wire::Wire,
};
use crate::bench::poll::{Poll, Ready};

/// Opens so many.
pub fn open(entrance: &Entrance, count: usize) -> Result<Vec<Wire>> {
    let poll = Poll::new()?;
    let mut ready = Ready::new();
    let mut buffer = vec![0; BUFFER];
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut opened = Vec::with_capacity(count);
    while opened.len() < count {
        while clients.len() < count && clients.len() - opened.len() < AT_ONCE {
            let client = entrance.connect(clients.len())?;
            poll.changes(client.wire.socket(), clients.len())?;
            clients.push(Some(client));
        }
        poll.wait(&mut ready, STUCK)?;
        ensure!(!ready.is_empty(), "connection {} of {count}: no answer", opened.len() + 1);
        for number in ready.numbers() {
            let Some(client) = &mut clients[number] else { continue };
            let upgraded = client
                .advance(entrance, &mut buffer)
                .with_context(|| format!("connection {} of {count}", number + 1))?;
            if upgraded && let Some(client) = clients[number].take() {
                client.wire.socket().set_nodelay(true)?;
                opened.push(client.wire);
            }
        }
    }
    Ok(opened)
}
