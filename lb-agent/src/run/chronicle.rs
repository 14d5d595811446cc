//! What the agent notes of what happens, in words. Pure.

use crate::{
    events::{Kind, News},
    health::{HealthEvent, State},
    sidecar::Memory,
};

/// A judgement of health checks; none of one that says nothing.
pub fn health(event: &HealthEvent) -> Option<News> {
    let (kind, text) = match (event.state, &event.reason) {
        (State::Up, _) => {
            (Kind::BackendUp, format!("health checks succeed, in {:?}", event.latency))
        }
        (State::Down, Some(reason)) => (Kind::BackendDown, reason.to_string()),
        (State::Down, None) => (Kind::BackendDown, "health checks fail".to_owned()),
        (State::Unknown, _) => return None,
    };
    Some(News::new(kind, text).at(&event.key.service, &event.key.backend))
}

/// The drains that have begun or ended from one moment to the next.
pub fn drains(before: &Memory, after: &Memory) -> Vec<News> {
    let mut news = Vec::new();
    match (before.edge_drains, after.edge_drains) {
        (None, Some(_)) => {
            news.push(News::new(Kind::DrainBegan, "the edge takes no new l7 clients"))
        }
        (Some(_), None) => {
            news.push(News::new(Kind::DrainEnded, "the edge takes l7 clients again"))
        }
        _ => {}
    }
    let lists = [
        (
            after,
            before,
            Kind::DrainBegan,
            "it takes only clients that belong to it, and those for a while",
        ),
        (before, after, Kind::DrainEnded, "it takes clients again, or is gone"),
    ];
    for (these, those, kind, text) in lists {
        for (service, backends) in &these.drains {
            let others = those.drains.get(service);
            let new =
                backends.keys().filter(|it| others.is_none_or(|others| !others.contains_key(*it)));
            news.extend(new.map(|backend| News::new(kind, text).at(service, backend)));
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::{
        events::Events,
        health::{Failure, Stage, TargetKey},
    };

    fn told(news: impl IntoIterator<Item = News>) -> Vec<String> {
        let events = Events::default();
        news.into_iter().for_each(|it| events.add(it));
        let events = events.page(None, 100).events.into_iter();
        events
            .map(|it| {
                format!(
                    "{:?} {} {}",
                    it.kind,
                    it.service.unwrap_or_default(),
                    it.backend.unwrap_or_default()
                )
            })
            .collect()
    }

    #[test]
    fn a_judgement_has_its_reason() {
        let key = TargetKey {
            service: "chat".into(),
            backend: "a".into(),
            address: "10.2.0.2:80".parse().unwrap(),
        };
        let event = |state, reason| HealthEvent {
            key: key.clone(),
            at: Instant::now(),
            state,
            reason,
            latency: Duration::from_millis(2),
        };
        assert_eq!(told(health(&event(State::Up, None))), ["BackendUp chat a"]);
        let failure = Failure::Closed { stage: Stage::Head };
        assert_eq!(told(health(&event(State::Down, Some(failure)))), ["BackendDown chat a"]);
        assert_eq!(health(&event(State::Unknown, None)), None);
    }

    #[test]
    fn drains_begin_and_end() {
        let of = |edge: bool, backends: &[&str]| Memory {
            edge_drains: edge.then_some(1),
            drains: match backends {
                [] => BTreeMap::new(),
                names => {
                    [("chat".to_owned(), names.iter().map(|it| ((*it).to_owned(), 1)).collect())]
                        .into()
                }
            },
            ..Memory::default()
        };
        assert_eq!(told(drains(&of(true, &["a"]), &of(true, &["a"]))), Vec::<String>::new());
        assert_eq!(
            told(drains(&of(false, &[]), &of(true, &["a"]))),
            ["DrainBegan  ", "DrainBegan chat a"]
        );
        let ends = told(drains(&of(true, &["a", "b"]), &of(false, &["b"])));
        assert_eq!(ends, ["DrainEnded  ", "DrainEnded chat a"]);
    }
}
