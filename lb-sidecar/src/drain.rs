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

/// What comes at once after a delay: a fiftieth of a second's share at most. Timers of a busy machine are late by as much.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How much faster it goes until a longer delay is made up for: with what comes at once, a second never has more than a
/// twentieth above its share, which leaves room for what is late on the way to the clients.
const FASTER: f64 = 1.03;

/// When the next relay may be closed.
struct Pacer {
    /// By the rate alone.
    due: Instant,
    /// By what has just been closed.
    earliest: Instant,
}

impl Pacer {
    fn new(now: Instant) -> Self {
        Self { due: now, earliest: now }
    }

    /// After one was closed, at so many a second.
    fn next(&mut self, rate: u32, now: Instant) -> Instant {
        let step = Duration::from_secs(1) / rate.max(1);
        self.due += step;
        self.earliest = (self.earliest + step.div_f64(FASTER)).max(now - AT_ONCE);
        self.due.max(self.earliest)
    }
}

/// Begins to close what is to be closed, if there is any and it is not being done.
pub fn pace(service: &Rc<Service>, life: &Rc<Life>) {
    if service.pacing.get() || !close_one(service, life) {
        return;
    }
    service.pacing.set(true);
    let (service, life) = (service.clone(), life.clone());
    tokio::task::spawn_local(async move {
        let mut pacer = Pacer::new(Instant::now());
        loop {
            // The pace may be changed on the way.
            let rate = service.plan().settings.drain.rate;
            sleep_until(pacer.next(rate, Instant::now())).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// When relays are closed by a worker that is late by what `late` says at each time; in seconds.
    fn closed(count: u32, rate: u32, late: impl Fn(f64) -> f64) -> Vec<f64> {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        let mut now = start;
        let mut times = vec![0.0];
        for _ in 1..count {
            let due = pacer.next(rate, now).max(now);
            let late = late((due - start).as_secs_f64());
            now = due + Duration::from_secs_f64(late);
            times.push((now - start).as_secs_f64());
        }
        times
    }

    fn most_in_a_second(times: &[f64]) -> usize {
        let until = |from: f64| times.partition_point(|it| *it < from + 1.0);
        times.iter().enumerate().map(|(n, from)| until(*from) - n).max().unwrap()
    }

    #[test]
    fn a_busy_worker_keeps_its_rate_and_never_goes_much_faster() {
        let moments =
            |every: f64, long: f64| move |at: f64| if at % every < 0.004 { long } else { 0.0 };
        type Late = Box<dyn Fn(f64) -> f64>;
        let cases: [(&str, Late); 4] = [
            ("on time", Box::new(|_| 0.0)),
            ("timers of a millisecond", Box::new(|_| 0.001)),
            ("100 ms away every 3 s", Box::new(moments(3.0, 0.1))),
            (
                "once half a second away",
                Box::new(|at| if (5.0..5.004).contains(&at) { 0.5 } else { 0.0 }),
            ),
        ];
        for (name, late) in cases {
            let times = closed(5_000, 250, late);
            let took = times.last().unwrap();
            assert!((19.9..20.4).contains(took), "{name}: {took}");
            let most = most_in_a_second(&times);
            assert!(most <= 264, "{name}: {most}");
        }
    }
}
