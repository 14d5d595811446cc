//! `GET /v1/stream`: the edge as it changes, for the dashboard, as server-sent events.
//!
//! The status is read once a second for all who watch, and not at all while nobody does. Each of them gets a `state` first
//! and then a `change` a second; one that was too slow for a change gets a `state` again, and nothing waits for him.

mod frame;
mod produce;
mod shown;

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::sync::watch;

use super::{Over, State, problem::Problem};
use frame::Frame;
pub use produce::Feed;

/// Those who may watch at a time.
const MOST: usize = 16;

/// `GET /v1/stream`
pub async fn stream(
    extract::State(state): extract::State<State>,
    over: Over,
) -> Result<Response, Problem> {
    let Some(watching) = state.feed.watch(&state.view) else {
        let error = format!("{MOST} others watch already");
        let remedy = "close a page of the dashboard that nobody looks at, or try again later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, remedy));
    };
    let hello = frame::hello(changes(&state, over));
    let steps = unfold((Some(hello), watching), |(hello, mut watching)| async move {
        let bytes = match hello {
            Some(hello) => hello,
            None => watching.next().await?,
        };
        Some((Ok::<_, Infallible>(bytes), (None, watching)))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(steps)).into_response())
}

/// What the page has to do before it may change something.
fn changes(state: &State, over: Over) -> &'static str {
    let picture = state.view.picture();
    let edge = picture.sources.as_ref().map(|sources| &sources.config.edge);
    match (over, edge.is_some_and(|edge| edge.admin_token_file.is_some())) {
        (Over::Local, _) => "open",
        (Over::Tcp, true) => "token",
        (Over::Tcp, false) => "none",
    }
}

/// Somebody who watches, until he is dropped.
struct Watching {
    frames: watch::Receiver<Option<Arc<Frame>>>,
    /// Number of the frame that he has seen last.
    seen: Option<u64>,
    _seat: produce::Seat,
}

impl Watching {
    /// What he has not seen yet; none when there will be nothing more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.frames.borrow_and_update().clone()
                && self.seen.is_none_or(|seen| seen < frame.number)
            {
                let bytes = frame.after(self.seen);
                self.seen = Some(frame.number);
                return Some(bytes);
            }
            self.frames.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests;
