//! Closing relays at a pace: those of a backend whose drain has come to its end, or all of a worker that must end.

use std::{
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep_until};

use crate::{
    life::Life,
    pool::Backend,
    relay::{GOING_AWAY, SERVICE_RESTART},
    service::Service,
    settings::State,
};

/// How far a drain that was late may be made up for: a twentieth of a second's share at most comes at once.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Begins to close what is to be closed, if there is any and it is not being done.
pub fn pace(service: &Rc<Service>, life: &Rc<Life>) {
    if service.pacing.get() || !close_one(service, life) {
        return;
    }
    service.pacing.set(true);
    let (service, life) = (service.clone(), life.clone());
    tokio::task::spawn_local(async move {
        let mut due = Instant::now();
        loop {
            // The pace may be changed on the way.
            let rate = service.plan().settings.drain.rate.max(1);
            due += Duration::from_secs(1) / rate;
            // Timers come late, which would make a high rate a lower one. What was missed for longer stays so.
            due = due.max(Instant::now() - CATCH_UP);
            sleep_until(due).await;
            if !close_one(&service, &life) {
                break;
            }
        }
        service.pacing.set(false);
    });
}

fn close_one(service: &Service, life: &Life) -> bool {
    if life.drains() {
        return service.relays.close_one(GOING_AWAY, |_| true);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    service.relays.close_one(SERVICE_RESTART, |backend| is_drained(backend, now))
}

/// Whether the time is over that its own clients had.
fn is_drained(backend: &Backend, now: u64) -> bool {
    matches!(backend.state(), State::Draining { until } if until <= now)
}
