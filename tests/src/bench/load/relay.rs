//! Messages back and forth on open connections.

use anyhow::{Context, Result, bail, ensure};

use super::{BUFFER, Effort, STUCK, Sample, measure, wire::Wire};
use crate::bench::{
    account::Account,
    poll::{Poll, Ready},
    websocket,
};

/// An application's message.
const PAYLOAD: usize = 128;
/// What is different in each message of a connection: its number.
const NUMBER: usize = 8;
const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x88];

/// Open connections with a message under way on each.
pub struct Echoes {
    poll: Poll,
    ready: Ready,
    buffer: Vec<u8>,
    talks: Vec<Talk>,
}

struct Talk {
    wire: Wire,
    /// What is sent, and what must come back.
    request: Vec<u8>,
    answer: Vec<u8>,
    number: u64,
    /// Bytes of the answer that have come.
    come: usize,
}

/// Measures closed loops of so many echoes on all the connections.
pub fn relay(wires: Vec<Wire>, effort: &Effort, account: &Account) -> Result<Sample> {
    let mut echoes = Echoes::start(wires)?;
    let sample = measure(effort, account, || echoes.turn(true))?;
    echoes.finish()?;
    Ok(sample)
}

impl Echoes {
    /// Sends the first message on each connection.
    pub fn start(wires: Vec<Wire>) -> Result<Self> {
        let poll = Poll::new()?;
        let mut talks = Vec::with_capacity(wires.len());
        for (number, wire) in wires.into_iter().enumerate() {
            poll.readable(wire.socket(), number)?;
            let mut talk = Talk::new(wire, number);
            talk.send()?;
            talks.push(talk);
        }
        Ok(Self { poll, ready: Ready::new(), buffer: vec![0; BUFFER], talks })
    }

    /// Takes what has come and sends the next messages, if they are wanted. Returns how many echoes were complete.
    fn turn(&mut self, go_on: bool) -> Result<u64> {
        self.poll.wait(&mut self.ready, STUCK)?;
        ensure!(!self.ready.is_empty(), "no message was echoed for {STUCK:?}");
        let mut done = 0;
        for number in self.ready.numbers() {
            let talk = &mut self.talks[number];
            let complete = talk.receive(&mut self.buffer);
            if complete.with_context(|| format!("connection {}", number + 1))? {
                done += 1;
                if go_on {
                    talk.send()?;
                }
            }
        }
        Ok(done)
    }

    /// Waits for all the echoes that are still due, and gives the connections back.
    pub fn finish(mut self) -> Result<Vec<Wire>> {
        let mut due = self.talks.iter().filter(|talk| talk.come < talk.answer.len()).count() as u64;
        while due > 0 {
            due -= self.turn(false)?;
        }
        Ok(self.talks.into_iter().map(|talk| talk.wire).collect())
    }
}

impl Talk {
    fn new(wire: Wire, connection: usize) -> Self {
        let mut payload: Vec<u8> = (0..PAYLOAD).map(|n| (n * 7 + connection) as u8).collect();
        payload[NUMBER..2 * NUMBER].copy_from_slice(&(connection as u64).to_be_bytes());
        payload[..NUMBER].fill(0);
        let (request, answer) = (websocket::masked(&payload, MASK), websocket::plain(&payload));
        let come = answer.len();
        Self { wire, request, answer, number: 0, come }
    }

    fn send(&mut self) -> Result<()> {
        let number = self.number.to_be_bytes();
        self.number += 1;
        self.come = 0;
        let (at, back_at) = (self.request.len() - PAYLOAD, self.answer.len() - PAYLOAD);
        self.answer[back_at..][..NUMBER].copy_from_slice(&number);
        for (n, byte) in number.into_iter().enumerate() {
            self.request[at + n] = byte ^ MASK[n % MASK.len()];
        }
        ensure!(self.wire.send(&self.request)?, "a message found no room");
        Ok(())
    }

    /// Returns whether the echo is complete.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let Some(len) = self.wire.receive(buffer)? else { return Ok(false) };
        let expected = self.answer.get(self.come..self.come + len);
        if expected != Some(&buffer[..len]) {
            bail!("echo {} is wrong from byte {} on", self.number, self.come);
        }
        self.come += len;
        Ok(self.come == self.answer.len())
    }
}
