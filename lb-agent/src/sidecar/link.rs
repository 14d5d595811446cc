//! The control connection to one worker: a task that reads, and one that writes.

use std::{os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use lb_sidecar::control::{FromWorker, ToWorker, channel};
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle, time::timeout};

use super::fleet::Generation;
use crate::bpf::specs::MAX_LISTENERS;

/// Messages to a worker that wait. They are said faster than anybody reads: four reloads have room that replace every
/// listener of both IP versions.
const MOST_WAITING: usize = 16 * MAX_LISTENERS as usize;

/// A worker that has not taken a message within this time hangs. One that has much to do may be slow.
const HANGS: Duration = Duration::from_secs(30);

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

    /// Sends a message, later. False if too many wait already.
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
            let sending = timeout(HANGS, sender.send(&message, descriptor));
            match sending.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => return format!("it has not read what it is told for {HANGS:?}"),
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
        hangs = write => Err(hangs),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::UnixListener;

    use super::*;

    const WORKER: Generation = 1;

    struct Scene {
        link: Link,
        worker: UnixStream,
        heard: mpsc::Receiver<(Generation, Heard)>,
    }

    async fn connected(name: &str) -> Scene {
        let socket = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, heard) = mpsc::channel(16);
        let link = Link::open(WORKER, socket.clone(), sender);
        let worker = listener.accept().await.unwrap().0;
        std::fs::remove_file(&socket).unwrap();
        Scene { link, worker, heard }
    }

    fn listen(n: u32) -> ToWorker {
        let ip = std::net::Ipv4Addr::from_bits(n);
        ToWorker::Listen { address: SocketAddr::from((ip, 80)) }
    }

    #[tokio::test]
    async fn as_many_listeners_as_there_can_be_are_sent_at_once() {
        let Scene { link, worker, heard: _heard } = connected("listeners").await;
        // Of both IP versions, each in place of another.
        let most = 4 * MAX_LISTENERS;
        let sent = (0..most).take_while(|&n| link.send(listen(n), None)).count();
        assert_eq!(sent, most as usize);
        let (_sender, mut receiver) = channel::<FromWorker, ToWorker>(worker);
        for n in 0..most {
            assert_eq!(receiver.receive().await.unwrap().unwrap().0, listen(n));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_read_is_given_up_and_one_that_does_is_not() {
        let Scene { link, worker, mut heard } = connected("hangs").await;
        let (_sender, mut receiver) = channel::<FromWorker, ToWorker>(worker);
        // More than the socket holds.
        let many = 20_000;
        for n in 0..many {
            assert!(link.send(listen(n), None));
        }
        for n in 0..many {
            assert_eq!(receiver.receive().await.unwrap().unwrap().0, listen(n));
            if n.is_multiple_of(2_000) {
                tokio::time::sleep(HANGS / 2).await;
            }
        }
        assert!(heard.try_recv().is_err(), "it reads, if slowly");
        for n in 0..many {
            assert!(link.send(listen(n), None));
        }
        let (worker, end) = heard.recv().await.unwrap();
        let Heard::End(Some(why)) = end else { panic!("{end:?}") };
        assert_eq!(worker, WORKER);
        assert!(why.contains("has not read"), "{why}");
    }
}
