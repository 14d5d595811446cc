//! The connections of the admin API: so many that their descriptors are never those that the agent needs for its work.
//!
//! Whoever is on this host can open connections and say nothing. So where there are [`MOST`] the oldest one goes, and
//! not the newest: a probe is done before it is the oldest.

use std::{collections::VecDeque, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::AbortHandle,
    time::Instant,
};

use super::PATIENCE;

/// Connections of a listener at a time.
const MOST: usize = 256;

/// How often the log may say that there are too many.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Serves whoever connects. Once it is dropped, connections end with the answer that is on its way.
pub async fn serve<L: Listener>(mut listener: L, router: Router) {
    let (_served, end) = watch::channel(());
    let mut open = VecDeque::new();
    let mut crowd = Crowd::default();
    loop {
        let (stream, _) = listener.accept().await;
        open.retain(|it: &AbortHandle| !it.is_finished());
        if open.len() == MOST {
            open.pop_front().iter().for_each(AbortHandle::abort);
            crowd.closed();
        }
        open.push_back(tokio::spawn(answer(stream, router.clone(), end.clone())).abort_handle());
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    mut end: watch::Receiver<()>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also between one request and the next.
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    // Errors are those of whoever has gone.
    tokio::select! {
        _ = &mut connection => return,
        _ = end.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Connections that were closed since the log has said so.
#[derive(Default)]
struct Crowd {
    closed: u64,
    said: Option<Instant>,
}

impl Crowd {
    fn closed(&mut self) {
        self.closed += 1;
        if self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            let closed = self.closed;
            tracing::warn!(
                closed,
                "the admin API has {MOST} connections, and the oldest are closed for new ones: `ss -tnp` shows whose \
                 they are"
            );
            *self = Self { closed: 0, said: Some(Instant::now()) };
        }
    }
}
