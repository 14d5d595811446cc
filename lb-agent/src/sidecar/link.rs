//! The control connection to one worker: a task that reads, and one that writes.

use std::{os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use lb_sidecar::control::{FromWorker, ToWorker, channel};
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle, time::timeout};

use super::fleet::Generation;

/// Messages to a worker that wait. One that leaves more unread hangs.
const MOST_WAITING: usize = 256;

/// A descriptor that is sent with a message, or came with one.
pub type Descriptor = std::os::fd::OwnedFd;

/// What came of a connection.
#[derive(Debug)]
pub enum Heard {
    Message(Box<FromWorker>, Option<Descriptor>),
    /// The worker is no more, or is not understood any more.
    End(Option<String>),
}

type Letter = (ToWorker, Option<Arc<Descriptor>>);

/// An open connection. Dropped, it is closed, and the worker goes on without.
#[derive(Debug)]
pub struct Link {
    letters: mpsc::Sender<Letter>,
    task: JoinHandle<()>,
}

impl Link {
    /// Connects to the socket on which a worker listens. What is heard goes to `heard`; the last thing is an end.
    pub fn open(
        worker: Generation,
        socket: PathBuf,
        heard: mpsc::Sender<(Generation, Heard)>,
    ) -> Self {
        let (letters, inbox) = mpsc::channel(MOST_WAITING);
        let task = tokio::spawn(async move {
            let why = converse(worker, socket, inbox, &heard).await.err();
            let _ = heard.send((worker, Heard::End(why))).await;
        });
        Self { letters, task }
    }

    /// Sends a message, later. False if the worker does not read.
    pub fn send(&self, message: ToWorker, descriptor: Option<Arc<Descriptor>>) -> bool {
        match self.letters.try_send((message, descriptor)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => false,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker accepts the connection whenever it gets to it; the kernel makes it at once.
const CONNECT: Duration = Duration::from_secs(5);

async fn converse(
    worker: Generation,
    socket: PathBuf,
    mut inbox: mpsc::Receiver<Letter>,
    heard: &mpsc::Sender<(Generation, Heard)>,
) -> Result<(), String> {
    let connecting = timeout(CONNECT, UnixStream::connect(&socket)).await;
    let stream = connecting
        .map_err(|_| "nobody accepts".to_owned())?
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    let (mut sender, mut receiver) = channel::<ToWorker, FromWorker>(stream);
    let write = async {
        while let Some((message, descriptor)) = inbox.recv().await {
            let descriptor = descriptor.as_ref().map(|it| it.as_fd());
            if sender.send(&message, descriptor).await.is_err() {
                break;
            }
        }
        // Who reads learns of the end, and after what had been said before it.
        std::future::pending().await
    };
    let read = async {
        loop {
            match receiver.receive().await {
                Ok(Some((message, descriptor))) => {
                    let message = Heard::Message(Box::new(message), descriptor);
                    if heard.send((worker, message)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    tokio::select! {
        result = read => result,
        () = write => Ok(()),
    }
}
