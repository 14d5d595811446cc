//! `lb-agent upgrade`: another program takes this process's place, and the edge goes on.
//!
//! ```text
//! the page ([`Desk`]): one at a time
//!     -> the new program tries itself out beside this agent ([`trial`])
//!     -> an [`Order`] for the agent, which ends as for a restart and executes it ([`succession`])
//!     -> the new program adopts maps, links and workers; if it cannot, it executes the old one again
//! ```
//! The process stays the same, and so does what a supervisor knows of it.

pub mod program;
pub mod succession;
pub mod trial;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use program::File;

/// So long whoever asked for an upgrade has for its answer, which the same process gives.
pub const ANSWER: Duration = Duration::from_millis(200);

/// Who asks for an upgrade is heard here; cheap to clone.
#[derive(Clone)]
pub struct Desk {
    one: Arc<Semaphore>,
    orders: mpsc::Sender<Order>,
}

/// To become another program.
#[derive(Debug)]
pub struct Order {
    /// By which the asker knows this upgrade from others.
    pub id: String,
    pub program: PathBuf,
    /// What was tried out.
    pub file: File,
    pub version: String,
}

/// Why an agent has ended in good order.
#[derive(Debug)]
pub enum End {
    Stopped,
    /// For another program, in place of the one whose XDP program has this id.
    Upgrade(Order, u32),
}

/// An upgrade is about to happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub id: String,
    /// Of the program that runs.
    pub from: String,
    /// Of the one that follows.
    pub to: String,
}

impl Desk {
    /// And where its orders come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(1);
        (Self { one: Arc::new(Semaphore::new(1)), orders }, receiver)
    }

    /// Held by who prepares an upgrade; none while another one does.
    pub fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.one.try_acquire().ok()
    }

    /// False if the agent is about to end, or to become another program already.
    pub fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}
