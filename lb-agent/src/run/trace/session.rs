//! One trace, from the swap to its end: reads records and writes lines of JSON.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    time::{Duration, SystemTime, UNIX_EPOCH},
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
        let (lines, waiting) = mpsc::channel(WAITING + 1);
        // There is a place for it also where nobody reads.
        let last = lines.clone().try_reserve_owned()?;
        tokio::spawn(async move {
            let (told, reason) = self.read(records, &lines).await;
            let counts = self.traced.counts().unwrap_or_default();
            let (above_rate, lost) = (counts.limited, counts.full);
            let end = End { reason: reason.to_owned(), told, above_rate, lost };
            last.send(line(&serde_json::json!({ "end": end })));
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
        let Self { plan, names, cut, .. } = self;
        let boot = boot();
        let mut told = 0;
        let mut end = pin!(end(plan.duration, cut, lines));
        loop {
            tokio::select! {
                ready = records.readable_mut() => {
                    let Ok(mut ready) = ready else { return (told, "the records cannot be read") };
                    let mut packets = Vec::new();
                    while packets.len() < WAITING && told + (packets.len() as u64) < plan.count {
                        let Some(record) = ready.get_inner_mut().next() else {
                            ready.clear_ready();
                            break;
                        };
                        packets.extend(parse(&record).map(|it| line(&names.packet(&it, boot))));
                    }
                    for packet in packets {
                        if let Err(why) = tell(packet, lines, end.as_mut()).await {
                            return (told, why);
                        }
                        told += 1;
                    }
                    if told == plan.count {
                        return (told, "as many packets as were asked for");
                    }
                }
                why = &mut end => return (told, why),
            }
        }
    }
}

/// Why a trace is over that has not told of as many packets as it may.
async fn end(duration: Duration, cut: &mut Cut, lines: &mpsc::Sender<Bytes>) -> &'static str {
    tokio::select! {
        () = sleep(duration) => "its time is over",
        () = lines.closed() => "nobody reads it any more",
        why = cut => why.unwrap_or("the agent has ended it"),
    }
}

/// Waits for somebody who reads too slowly until the trace is over, and no longer. A line for which there is a place is told.
async fn tell(
    packet: Bytes,
    lines: &mpsc::Sender<Bytes>,
    end: Pin<&mut impl Future<Output = &'static str>>,
) -> Result<(), &'static str> {
    tokio::select! {
        biased;
        sent = lines.send(packet) => sent.map_err(|_| "nobody reads it any more"),
        why = end => Err(why),
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
    let micros = |it: Duration| u64::try_from(it.as_micros()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(micros).unwrap_or(0);
    let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map(|it| micros(it.into())).unwrap_or(0);
    now.saturating_sub(since)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// What becomes of lines that nobody takes away.
    async fn stalled(cut: &mut Cut) -> &'static str {
        let (lines, _waiting) = mpsc::channel(1);
        let mut end = pin!(end(Duration::from_secs(60), cut, &lines));
        let packet = || Bytes::from_static(b"{}");
        assert_eq!(tell(packet(), &lines, end.as_mut()).await, Ok(()));
        tell(packet(), &lines, end.as_mut()).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_that_nobody_reads_ends_all_the_same() {
        let (sender, mut cut) = oneshot::channel();
        assert_eq!(stalled(&mut cut).await, "its time is over");
        sender.send("a changed configuration").unwrap();
        assert_eq!(stalled(&mut cut).await, "a changed configuration");
    }

    #[test]
    fn a_record_that_is_cut_off_is_none() {
        let bytes = vec![0; size_of::<Trace>()];
        assert_eq!(parse(&bytes), Some(Trace::default()));
        assert_eq!(parse(&bytes[1..]), None);
    }
}
