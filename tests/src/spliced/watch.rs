//! Who is spliced at the moment, for many clients at once: a thread that lists the flows again and again.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::edge::Lister;

/// Between two looks, and between two questions.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Seen {
    /// Listed after this.
    at: Instant,
    open: HashSet<SocketAddr>,
    trouble: Option<String>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    done: AtomicBool,
}

/// Ends with the last one who holds it.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Watcher>);

#[derive(Debug)]
struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// # Panics
    /// If no thread can be had.
    #[must_use]
    pub fn start(lister: Lister) -> Self {
        let seen = Seen { at: Instant::now(), open: HashSet::new(), trouble: None };
        let shared = Arc::new(Shared { seen: Mutex::new(seen), done: AtomicBool::new(false) });
        let of_thread = Arc::clone(&shared);
        let look = move || {
            while !of_thread.done.load(Ordering::Relaxed) {
                let at = Instant::now();
                let (open, trouble) = match lister.flows() {
                    Ok(flows) => {
                        let open = flows.into_iter().filter(|it| it.is_spliced() && it.is_open());
                        (open.map(|it| it.client).collect(), None)
                    }
                    Err(error) => (HashSet::new(), Some(format!("{error:#}"))),
                };
                let took = at.elapsed();
                let seen = Seen { at, open, trouble };
                *of_thread.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
                // Half of the time at most is for looking.
                std::thread::sleep(PAUSE.max(took));
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(look);
        let thread = Some(thread.expect("a thread"));
        Self(Arc::new(Watcher { shared, thread }))
    }

    /// Whether a client was seen to be spliced in a list that was begun after `since`: what was on the same tuple
    /// before is none of its business.
    #[must_use]
    pub fn has(&self, client: SocketAddr, since: Instant) -> bool {
        let seen = self.0.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.at >= since && seen.open.contains(&client)
    }

    /// Waits until it is so.
    pub async fn spliced(
        &self,
        client: SocketAddr,
        since: Instant,
        timeout: Duration,
    ) -> Result<()> {
        while !self.has(client, since) {
            if since.elapsed() > timeout {
                let seen = self.0.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
                bail!("{client} is not spliced after {timeout:?}; trouble: {:?}", seen.trouble);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
