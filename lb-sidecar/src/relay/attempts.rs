//! When a relayed connection is offered to be spliced, and what follows from the answer.
//!
//! A look is at most four ioctls, and comes with the relay's own timer: soon after the 101, then after pauses that double
//! while the connection is busy or refusals are passing.

use std::{
    os::fd::AsFd as _,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};

use crate::{
    outcome::{Outcome, Outcomes},
    splice::{
        Answer, Refusal,
        desk::{Desk, News, Offer},
        tcp,
    },
};

/// Between the 101 and the first look: within these limits it is a round trip, so that who answers at once has done so.
const FIRST: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

const LONGEST: Duration = Duration::from_secs(10);

/// Until the broker has less to do: it takes more offers meanwhile than may be open at a time.
const TURN: Duration = Duration::from_millis(50);

/// Between offers to the brokers that come after one that died in the middle.
const AGAIN: Duration = Duration::from_millis(200);

/// What a relay needs so that it can be spliced.
pub struct Means {
    pub(crate) desk: Rc<Desk>,
    pub(crate) outcomes: Rc<Outcomes>,
    /// The client's.
    pub(crate) round_trip: Duration,
}

/// The attempts for one connection.
pub(super) struct Attempts {
    means: Means,
    /// The first pause.
    quiet: Duration,
    pause: Duration,
    /// The broker has asked for acknowledgements: the next look comes as soon as they can be here.
    asked: bool,
    stage: Stage,
}

enum Stage {
    /// The next look is then.
    Waiting(Instant),
    /// Neither connection may be touched.
    Offered(Offer),
    /// Nor here: the broker has died in the middle. The next offer is then.
    Torn(Instant),
}

/// How an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// XDP has the connection.
    Spliced,
    /// It is relayed, and may be offered again.
    Later,
    /// It is relayed for good.
    Never,
}

impl Attempts {
    pub fn new(means: Means, now: Instant) -> Self {
        let [least, most] = FIRST;
        let quiet = means.round_trip.clamp(least, most);
        Self { means, quiet, pause: quiet, asked: false, stage: Stage::Waiting(now + quiet) }
    }

    /// Whether the connections may not be touched.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Waiting(_))
    }

    /// Whether there is no broker who could say what has become of it.
    pub fn is_torn(&self) -> bool {
        matches!(self.stage, Stage::Torn(_))
    }

    /// When the timer must go off.
    pub fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting(at) | Stage::Torn(at) => Some(at),
            Stage::Offered(_) => None,
        }
    }

    /// Looks whether the connections are at rest, and offers them if they are. Nothing has passed since `active`.
    pub fn look(
        &mut self,
        client: &TcpStream,
        backend: &TcpStream,
        active: Instant,
        now: Instant,
        relay: &Waker,
    ) {
        if self.means.desk.is_full() {
            // No reason to come less often: whoever did would be relayed while the broker has nothing to do.
            self.means.outcomes.count(Outcome::SpliceWaits);
            self.stage = Stage::Waiting(now + TURN);
            return;
        }
        // What came with the 101 was passed on a little later.
        let quiet = now.saturating_duration_since(active) >= self.quiet / 2
            && self.means.desk.has_room()
            && tcp::is_at_rest(client)
            && tcp::is_at_rest(backend);
        match quiet.then(|| self.offer(client, backend, relay)).flatten() {
            Some(offer) => self.stage = Stage::Offered(offer),
            None => {
                self.means.outcomes.count(Outcome::SpliceWaits);
                self.wait(now);
            }
        }
    }

    fn offer(&self, client: &TcpStream, backend: &TcpStream, relay: &Waker) -> Option<Offer> {
        self.means.desk.offer(client.as_fd(), backend.as_fd(), relay)
    }

    /// The next look comes after a longer pause.
    fn wait(&mut self, now: Instant) {
        self.asked = false;
        self.stage = Stage::Waiting(now + self.pause);
        self.pause = (2 * self.pause).min(LONGEST);
    }

    /// Waits for the end of an attempt that is under way. Of one that is torn, it makes the next offer when that is due.
    pub fn poll(
        &mut self,
        client: &TcpStream,
        backend: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict> {
        let now = Instant::now();
        if self.due().is_some_and(|due| due <= now) {
            self.stage = match self.offer(client, backend, cx.waker()) {
                Some(offer) => Stage::Offered(offer),
                None => Stage::Torn(now + AGAIN),
            };
        }
        let Stage::Offered(offer) = &self.stage else { return Poll::Pending };
        let outcomes = &self.means.outcomes;
        let verdict = match ready!(offer.poll(cx)) {
            News::Answer(Answer::Spliced) => {
                outcomes.count(Outcome::Spliced);
                Verdict::Spliced
            }
            News::Answer(Answer::Refused(refusal)) => {
                outcomes.not_spliced(refusal);
                if refusal == Refusal::Busy && !self.asked {
                    self.asked = true;
                    self.stage = Stage::Waiting(now + self.quiet);
                    return Poll::Ready(Verdict::Later);
                }
                if refusal.is_passing() { Verdict::Later } else { Verdict::Never }
            }
            News::Lost => {
                for socket in [client, backend] {
                    tcp::take_filter_off(socket);
                }
                if tcp::is_in_repair(client) || tcp::is_in_repair(backend) {
                    self.stage = Stage::Torn(now + AGAIN);
                    return Poll::Pending;
                }
                outcomes.count(Outcome::SpliceLost);
                Verdict::Later
            }
        };
        self.wait(now);
        Poll::Ready(verdict)
    }
}
