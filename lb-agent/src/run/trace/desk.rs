//! Where those who trace meet the agent: one at a time.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use aya::programs::ProgramFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    bpf::{PinDir, traced},
    overrides::Refusal,
};

/// Why a trace has ended without having come to its own end.
pub type Cut = oneshot::Receiver<&'static str>;

/// A traced program that is to be put in the place of the usual one.
pub struct Swap {
    program: ProgramFd,
    /// Closes when the tracer has ended.
    over: oneshot::Receiver<()>,
    reply: oneshot::Sender<Result<Cut>>,
}

/// The tracers' side.
#[derive(Clone)]
pub struct Desk {
    swaps: mpsc::Sender<Swap>,
    one: Arc<Semaphore>,
}

/// The right to trace. The usual program comes back when it is dropped.
pub struct Turn {
    #[expect(dead_code, reason = "the next tracer may begin when it is dropped")]
    permit: OwnedSemaphorePermit,
    over: Option<oneshot::Sender<()>>,
}

/// The agent's side.
pub struct Tracer {
    swaps: mpsc::Receiver<Swap>,
    current: Option<Current>,
}

struct Current {
    over: oneshot::Receiver<()>,
    cut: oneshot::Sender<&'static str>,
}

/// What the agent has to do.
pub enum Event {
    Begin(Swap),
    /// The tracer has ended.
    Over,
}

/// A desk and its agent's side.
#[must_use]
pub fn desk() -> (Desk, Tracer) {
    let (sender, swaps) = mpsc::channel(1);
    let desk = Desk { swaps: sender, one: Arc::new(Semaphore::new(1)) };
    (desk, Tracer { swaps, current: None })
}

impl Desk {
    /// The right to trace, if nobody has it.
    pub fn turn(&self) -> Result<Turn, Refusal> {
        let permit = Arc::clone(&self.one).try_acquire_owned().map_err(|_| {
            Refusal::conflict(
                "somebody traces this edge already, and one can at a time".to_owned(),
                "wait for its end, at most ten minutes".to_owned(),
            )
        })?;
        Ok(Turn { permit, over: None })
    }

    /// Has the agent put the program on the interfaces.
    pub async fn swap(&self, turn: &mut Turn, program: ProgramFd) -> Result<Cut> {
        let (sender, over) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let gone = || anyhow!("the agent is about to end");
        self.swaps.send(Swap { program, over, reply }).await.map_err(|_| gone())?;
        turn.over = Some(sender);
        answer.await.map_err(|_| gone())?
    }
}

impl Tracer {
    /// What is to be done next.
    pub async fn next(&mut self) -> Event {
        let over = async {
            match &mut self.current {
                Some(current) => drop((&mut current.over).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => Event::Over,
            Some(swap) = self.swaps.recv() => Event::Begin(swap),
            else => std::future::pending().await,
        }
    }

    /// Does it. `usual` is the program that belongs on the interfaces.
    pub fn handle(&mut self, event: Event, pins: &PinDir, usual: &ProgramFd) {
        match event {
            Event::Over => self.cut(pins, usual, "the tracer has ended"),
            Event::Begin(Swap { program, over, reply }) => {
                let swapped = traced::swap(pins, &program);
                if swapped.is_err() {
                    restore(pins, usual);
                }
                let (cut, is_cut) = oneshot::channel();
                let begun = swapped.map(|()| is_cut);
                if begun.is_ok() {
                    tracing::info!("the traced XDP program is in place of the usual one");
                    self.current = Some(Current { over, cut });
                }
                // Who does not wait any more has closed the other channel, too.
                let _ = reply.send(begun);
            }
        }
    }

    /// Ends the trace that there is, and says why.
    pub fn cut(&mut self, pins: &PinDir, usual: &ProgramFd, why: &'static str) {
        let Some(current) = self.current.take() else { return };
        restore(pins, usual);
        tracing::info!(why, "the usual XDP program is back");
        let _ = current.cut.send(why);
    }
}

fn restore(pins: &PinDir, usual: &ProgramFd) {
    if let Err(error) = traced::swap(pins, usual) {
        tracing::error!("the usual XDP program does not come back: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_traces_at_a_time() {
        let (desk, _tracer) = desk();
        let first = desk.turn().ok();
        assert!(first.is_some());
        let refusal = desk.turn().err().unwrap();
        assert!(refusal.error.contains("already"), "{refusal:?}");
        drop(first);
        assert!(desk.turn().is_ok());
    }
}
