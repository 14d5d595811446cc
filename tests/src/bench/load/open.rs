//! Opens many upgraded connections and keeps them.

use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use super::{
    BUFFER, STUCK,
    connection::{Client, Entrance},
};
use crate::bench::poll::{Poll, Ready};

/// Handshakes that are under way at a time.
const AT_ONCE: usize = 100;

/// Opens so many.
pub fn open(entrance: &Entrance, count: usize) -> Result<Vec<TcpStream>> {
    let poll = Poll::new()?;
    let mut ready = Ready::new();
    let mut buffer = vec![0; BUFFER];
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut opened = Vec::with_capacity(count);
    while opened.len() < count {
        while clients.len() < count && clients.len() - opened.len() < AT_ONCE {
            let client = entrance.connect(clients.len())?;
            poll.changes(&client.stream, clients.len())?;
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
                client.stream.set_nodelay(true)?;
                opened.push(client.stream);
            }
        }
    }
    Ok(opened)
}
