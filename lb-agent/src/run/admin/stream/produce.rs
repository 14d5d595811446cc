//! Who watches, and the one task that makes frames while somebody does.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Error;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{
    MOST, Watching,
    frame::{Frame, Maker},
};
use crate::run::{sidecar::unix_millis, view::View};

/// From one frame to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// Frames for whoever watches. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Feed(Arc<Shared>);

struct Shared {
    seats: Mutex<Seats>,
    frames: watch::Sender<Option<Arc<Frame>>>,
}

#[derive(Default)]
struct Seats {
    taken: usize,
    /// Whether the task is there that makes frames.
    producing: bool,
}

impl Default for Shared {
    fn default() -> Self {
        Self { seats: Mutex::default(), frames: watch::Sender::new(None) }
    }
}

impl Shared {
    /// A panic while the lock is held leaves numbers behind, not broken invariants.
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the production if nobody watches any more.
    fn rests(&self) -> bool {
        let mut seats = self.lock();
        if seats.taken == 0 {
            seats.producing = false;
            // Who comes next must not see what is old.
            self.frames.send_replace(None);
        }
        !seats.producing
    }
}

/// A place among those who watch; free again when it is dropped.
pub struct Seat(Arc<Shared>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.lock().taken -= 1;
    }
}

impl Feed {
    /// Lets somebody watch; none if too many do. Needs a tokio runtime.
    pub(super) fn watch(&self, view: &View) -> Option<Watching> {
        let mut seats = self.0.lock();
        if seats.taken == MOST {
            return None;
        }
        seats.taken += 1;
        if !seats.producing {
            seats.producing = true;
            tokio::spawn(produce(Arc::clone(&self.0), view.clone()));
        }
        let seat = Seat(Arc::clone(&self.0));
        Some(Watching { frames: self.0.frames.subscribe(), seen: None, _seat: seat })
    }

    /// Whether frames are made.
    #[cfg(test)]
    pub fn is_at_work(&self) -> bool {
        self.0.lock().producing
    }
}

async fn produce(shared: Arc<Shared>, view: View) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let maker = Arc::new(Mutex::new(Maker::default()));
    loop {
        ticks.tick().await;
        if shared.rests() {
            return;
        }
        let (view, maker) = (view.clone(), Arc::clone(&maker));
        // It makes system calls, and many.
        let made = tokio::task::spawn_blocking(move || {
            let status = view.status()?;
            let mut maker = maker.lock().unwrap_or_else(PoisonError::into_inner);
            maker.make(&status, view.events(), unix_millis())
        });
        match made.await.map_err(Error::from).flatten() {
            Ok(frame) => {
                shared.frames.send_replace(Some(Arc::new(frame)));
            }
            // Whoever watches sees that nothing new comes.
            Err(error) => tracing::warn!("the dashboard cannot be told the status: {error:#}"),
        }
    }
}
