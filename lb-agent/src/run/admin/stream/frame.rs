//! From one status after the other to what is sent: everything, or what has changed since the one before. Pure.

use std::{collections::VecDeque, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;

use super::shown::{Edge, Service};
use crate::{
    events::{Event, Events},
    run::status::Status,
};

/// Events of a `state`, and the most of a `change`.
const EVENTS: usize = 50;

/// The first thing that is said.
pub fn hello(changes: &str) -> Bytes {
    let hello = json!({ "changes": changes });
    // A browser that has lost the connection asks again after so many milliseconds.
    format!("retry: 2000\n{}", event("hello", &hello.to_string())).into()
}

/// The edge at one moment.
pub struct Frame {
    pub number: u64,
    /// In milliseconds of Unix time.
    at: u64,
    edge: String,
    services: Vec<Arc<str>>,
    recent: Vec<Arc<str>>,
    /// What to tell whoever has seen the frame before; none if it cannot be told in short.
    change: Option<Bytes>,
}

impl Frame {
    /// What to tell whoever has seen that one last.
    pub fn after(&self, seen: Option<u64>) -> Bytes {
        match &self.change {
            Some(change) if seen.is_some_and(|seen| seen + 1 == self.number) => change.clone(),
            _ => message("state", self.at, &self.edge, &self.services, &self.recent),
        }
    }
}

/// Makes one frame after the other.
#[derive(Default)]
pub struct Maker {
    number: u64,
    names: Vec<String>,
    services: Vec<Arc<str>>,
    recent: VecDeque<Arc<str>>,
    newest: Option<u64>,
}

impl Maker {
    /// Goes on to the status of this moment.
    pub fn make(&mut self, status: &Status, events: &Events, at: u64) -> Result<Frame> {
        let edge = serde_json::to_string(&Edge::from(status))?;
        let names = status.services.iter().map(|it| it.name.as_str());
        let same = self.number > 0 && names.clone().eq(self.names.iter().map(String::as_str));
        if !same {
            self.names = names.map(str::to_owned).collect();
            self.services = vec![Arc::default(); self.names.len()];
        }
        let mut changed = Vec::new();
        for (sent, service) in self.services.iter_mut().zip(&status.services) {
            let text = serde_json::to_string(&Service::from(service))?;
            if **sent != *text {
                *sent = text.into();
                changed.push(Arc::clone(sent));
            }
        }
        let news = self.news(events)?;
        let change = same.then(|| message("change", at, &edge, &changed, &news));
        self.number += 1;
        let (services, recent) = (self.services.clone(), self.recent.iter().cloned().collect());
        Ok(Frame { number: self.number, at, edge, services, recent, change })
    }

    /// What has happened since; what is beyond the most comes with the next frame.
    fn news(&mut self, events: &Events) -> Result<Vec<Arc<str>>> {
        let page = events.page(self.newest, EVENTS);
        self.newest = page.events.last().map(|event| event.id).or(self.newest);
        let shown = |event: &Event| Ok(serde_json::to_string(event)?.into());
        let news = page.events.iter().map(shown).collect::<Result<Vec<Arc<str>>>>()?;
        self.recent.extend(news.iter().cloned());
        let beyond = self.recent.len().saturating_sub(EVENTS);
        self.recent.drain(..beyond);
        Ok(news)
    }
}

fn message(name: &str, at: u64, edge: &str, services: &[Arc<str>], events: &[Arc<str>]) -> Bytes {
    let (services, events) = (services.join(","), events.join(","));
    let data =
        format!(r#"{{"at":{at},"edge":{edge},"services":[{services}],"events":[{events}]}}"#);
    event(name, &data).into()
}

/// JSON has no line feed in it that would end the event.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
