//! Following an edge's events through restarts of its agent: what to ask for next, what is new, and what was missed. Pure.
//!
//! An agent's log dies with it. The ids of the next one are higher unless the clock was set back, so that it is known by its
//! own number ([`Page::agent`]) and asked for all that it has.

use serde::Deserialize;
use serde_json::Value;

/// An answer: [`lb_agent::events::Page`], but for kinds of events that only the next version knows.
#[derive(Debug, Default, Deserialize)]
pub struct Page {
    agent: u64,
    events: Vec<Value>,
    newest: Option<u64>,
}

/// Who follows, and how far it has come.
#[derive(Debug, Default)]
pub struct Follower {
    agent: Option<u64>,
    /// The id of the last event that was seen of this agent.
    last: u64,
}

/// What a page has told.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// These are new, all there is between them and what came before them, but for so many that the agent has forgotten.
    New { events: Vec<Value>, forgotten: u64 },
    /// Another agent answers. The page says too little of what it has: ask again.
    Another,
}

impl Follower {
    /// What to ask for; `limit`: of what has happened before, as long as nothing is known.
    pub fn path(&self, limit: usize) -> String {
        match self.agent {
            None => format!("/v1/events?limit={limit}"),
            Some(_) => format!("/v1/events?since={}&limit=1000", self.last),
        }
    }

    /// Takes the answer to that.
    pub fn take(&mut self, page: Page) -> Told {
        let first = self.agent.is_none();
        if !first && self.agent != Some(page.agent) {
            *self = Self { agent: Some(page.agent), last: 0 };
            return Told::Another;
        }
        self.agent = Some(page.agent);
        // Ids of an agent have no gaps. Of one that was not heard before, nothing is missed that was promised.
        let next = page.events.first().map_or(0, id);
        let forgotten = if self.last == 0 { 0 } else { next.saturating_sub(self.last + 1) };
        let newest = page.events.last().map(id);
        // What happens from now on is wanted, even if nothing has happened yet that was asked for.
        self.last = newest.or(page.newest.filter(|_| first)).unwrap_or(self.last);
        Told::New { events: page.events, forgotten }
    }
}

fn id(event: &Value) -> u64 {
    event["id"].as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(agent: u64, ids: std::ops::Range<u64>) -> Page {
        let newest = ids.clone().last();
        Page { agent, newest, events: ids.map(|id| serde_json::json!({ "id": id })).collect() }
    }

    fn ids(told: Told) -> (Vec<u64>, u64) {
        let Told::New { events, forgotten } = told else { panic!("{told:?}") };
        (events.iter().map(id).collect(), forgotten)
    }

    #[test]
    fn every_event_comes_once() {
        let mut follower = Follower::default();
        assert_eq!(follower.path(100), "/v1/events?limit=100");
        assert_eq!(ids(follower.take(page(1, 11..13))), (vec![11, 12], 0));
        assert_eq!(follower.path(100), "/v1/events?since=12&limit=1000");
        assert_eq!(ids(follower.take(page(1, 13..13))), (vec![], 0));
        assert_eq!(ids(follower.take(page(1, 13..15))), (vec![13, 14], 0));
        assert_eq!(ids(follower.take(page(1, 20..21))), (vec![20], 5), "five are forgotten");
        assert_eq!(follower.path(100), "/v1/events?since=20&limit=1000");
    }

    #[test]
    fn of_another_agent_everything_is_new_whatever_its_clock_says() {
        for start in [1_000, 5] {
            let mut follower = Follower::default();
            follower.take(page(1, 11..13));
            assert_eq!(follower.take(page(2, start..start)), Told::Another);
            assert_eq!(follower.path(100), "/v1/events?since=0&limit=1000");
            assert_eq!(ids(follower.take(page(2, start..start + 2))), (vec![start, start + 1], 0));
            assert_eq!(follower.path(100), format!("/v1/events?since={}&limit=1000", start + 1));
        }
    }

    #[test]
    fn who_wants_nothing_of_the_past_gets_what_is_new() {
        let mut follower = Follower::default();
        let quiet = Page { events: Vec::new(), ..page(1, 11..13) };
        assert_eq!(ids(follower.take(quiet)), (vec![], 0));
        assert_eq!(follower.path(0), "/v1/events?since=12&limit=1000");
        let mut follower = Follower::default();
        follower.take(Page { agent: 1, ..Page::default() });
        assert_eq!(ids(follower.take(page(1, 11..12))), (vec![11], 0), "its first one");
    }
}
