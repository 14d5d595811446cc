//! The agent's end of a control connection.

use lb_sidecar::control::{FromWorker, Hello, Receiver, Sender, ToWorker, channel};
use tokio::{net::UnixStream, time::timeout};

use super::LONG;

pub struct Agent(pub Sender<ToWorker>, pub Receiver<FromWorker>);

impl Agent {
    pub fn new(stream: UnixStream) -> Self {
        let (sender, receiver) = channel(stream);
        Self(sender, receiver)
    }

    /// The next message that `want` knows.
    pub async fn next<T>(&mut self, want: impl Fn(FromWorker) -> Option<T>) -> T {
        timeout(LONG, async {
            loop {
                let (message, _) =
                    self.1.receive().await.unwrap().expect("the worker closed the connection");
                if let Some(wanted) = want(message) {
                    return wanted;
                }
            }
        })
        .await
        .expect("no such message")
    }

    pub async fn hello(&mut self) -> Hello {
        self.next(|m| if let FromWorker::Hello(hello) = m { Some(hello) } else { None }).await
    }

    pub async fn ready(&mut self) {
        self.next(|m| (m == FromWorker::Ready).then_some(())).await;
    }
}
