//! One trace, from the swap to its end: reads records and writes lines of JSON.

use std::{
    convert::Infallible,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use futures_util::{Stream, stream};
use lb_common::trace::Trace;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::{io::unix::AsyncFd, sync::mpsc, task::JoinHandle, time::sleep};

use super::{
    desk::{Cut, Turn},
    plan::Plan,
    says::{End, Names},
};
use crate::bpf::traced::Traced;

/// Lines that wait to be read; then the ring buffer fills, and what does not fit is counted.
const WAITING: usize = 256;

/// What is needed for it.
pub struct Session {
    pub traced: Traced,
    pub plan: Plan,
    pub names: Names,
    pub cut: Cut,
    /// Dropped last, so that the next one begins when all of this is over.
    pub turn: Turn,
    /// Reads what the program logs.
    pub log: Option<JoinHandle<()>>,
}

impl Session {
    /// Begins to read. The lines end with the trace, and the trace with them.
    pub fn start(mut self) -> Result<impl Stream<Item = Result<Bytes, Infallible>>> {
        // SAFETY: the ring owns its map, whose descriptor stays the same and open for as long as it lives.
        let records =
            unsafe { AsyncFd::register(self.traced.take_records()?) }.context("TRACES")?;
        let (lines, waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let (told, reason) = self.read(records, &lines).await;
            let counts = self.traced.counts().unwrap_or_default();
            let (above_rate, lost) = (counts.limited, counts.full);
            let end = End { reason: reason.to_owned(), told, above_rate, lost };
            // Nobody may be there any more.
            let _ = lines.send(line(&serde_json::json!({ "end": end }))).await;
            if let Some(log) = &self.log {
                log.abort();
            }
        });
        Ok(stream::unfold(waiting, |mut waiting| async {
            let line = waiting.recv().await?;
            Some((Ok(line), waiting))
        }))
    }

    /// How many packets were told of, and why no more.
    async fn read(
        &mut self,
        mut records: AsyncFd<RingBuf<MapData>>,
        lines: &mpsc::Sender<Bytes>,
    ) -> (u64, &'static str) {
        let boot = boot();
        let mut told = 0;
        let over = sleep(self.plan.duration);
        tokio::pin!(over);
        loop {
            tokio::select! {
                ready = records.readable_mut() => {
                    let Ok(mut ready) = ready else { return (told, "the records cannot be read") };
                    let mut packets = Vec::new();
                    while packets.len() < WAITING && told + (packets.len() as u64) < self.plan.count {
                        let Some(record) = ready.get_inner_mut().next() else {
                            ready.clear_ready();
                            break;
                        };
                        packets.extend(parse(&record).map(|it| self.names.packet(&it, boot)));
                    }
                    for packet in packets {
                        if lines.send(line(&packet)).await.is_err() {
                            return (told, "nobody reads it any more");
                        }
                        told += 1;
                    }
                    if told == self.plan.count {
                        return (told, "as many packets as were asked for");
                    }
                }
                () = &mut over => return (told, "its time is over"),
                () = lines.closed() => return (told, "nobody reads it any more"),
                why = &mut self.cut => return (told, why.unwrap_or("the agent has ended it")),
            }
        }
    }
}

fn line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn parse(record: &[u8]) -> Option<Trace> {
    let record = record.get(..size_of::<Trace>())?;
    // SAFETY: the bytes are there, and all of them make a `Trace`, which is integers without padding.
    Some(unsafe { record.as_ptr().cast::<Trace>().read_unaligned() })
}

/// Microseconds of Unix time at which the clock of records began.
fn boot() -> u64 {
    let micros = |it: std::time::Duration| u64::try_from(it.as_micros()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(micros).unwrap_or(0);
    let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map(|it| micros(it.into())).unwrap_or(0);
    now.saturating_sub(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_cut_off_is_none() {
        let bytes = vec![0; size_of::<Trace>()];
        assert_eq!(parse(&bytes), Some(Trace::default()));
        assert_eq!(parse(&bytes[1..]), None);
    }
}
