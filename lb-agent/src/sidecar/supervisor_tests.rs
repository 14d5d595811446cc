use std::os::fd::AsFd;

use lb_sidecar::control::{Hello, Receiver, Sender, channel};
use tokio::net::UnixListener;

use super::{sockets::is_same, *};

const NAME: Name = Name { generation: 1, index: 0 };

/// A supervisor, and the worker of an earlier agent that it has found, but not heard of yet.
struct Scene {
    supervisor: Supervisor,
    sender: Sender<FromWorker>,
    receiver: Receiver<ToWorker>,
    /// The worker's.
    sockets: Sockets,
}

impl Scene {
    async fn new(test: &str, sockets: Sockets) -> Self {
        let run_dir = std::env::temp_dir().join(format!("sluice-{test}-{}", std::process::id()));
        let mut supervisor = Supervisor::new(&run_dir, "edge", Vec::new()).unwrap();
        let control = supervisor.directory.bind(NAME).unwrap();
        control.set_nonblocking(true).unwrap();
        let control = UnixListener::from_std(control).unwrap();
        supervisor.fleet.found(NAME.generation, NAME.index, true, Instant::now());
        supervisor.join(NAME, 0);
        let (sender, receiver) = channel(control.accept().await.unwrap().0);
        std::fs::remove_dir_all(&run_dir).unwrap();
        Self { supervisor, sender, receiver, sockets }
    }

    fn apply(&mut self, listeners: BTreeSet<SocketAddr>) {
        let plan = Plan { workers: 1, listeners, ..Plan::default() };
        let prepared = self.supervisor.prepare(plan).unwrap();
        self.supervisor.apply(prepared, Settings::default(), None);
    }

    async fn say(&mut self, message: FromWorker, socket: Option<Arc<Descriptor>>) {
        self.sender.send(&message, socket.as_ref().map(|it| it.as_fd())).await.unwrap();
        let event = self.supervisor.next().await;
        self.supervisor.handle(event);
    }

    async fn greet(&mut self) {
        let listeners = self.sockets.len() as u32;
        let hello = Hello { version: VERSION, pid: 0, index: 0, retired: false, listeners };
        self.say(FromWorker::Hello(hello), None).await;
        assert_eq!(self.hear().await.0, ToWorker::SendListeners);
        for ((_, address), socket) in self.sockets.clone() {
            self.say(FromWorker::Listener { address }, Some(socket)).await;
        }
    }

    async fn hear(&mut self) -> (ToWorker, Option<Descriptor>) {
        self.receiver.receive().await.unwrap().unwrap()
    }
}

/// Sockets of the first place.
fn sockets(ports: usize) -> Sockets {
    let free = |_| std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // All at a time, so that they differ.
    let free: Vec<_> = (0..ports).map(free).collect();
    let addresses = free.iter().map(|it| it.local_addr().unwrap()).collect();
    drop(free);
    sockets::missing(&Sockets::new(), 1, &addresses).unwrap()
}

#[tokio::test]
async fn sockets_that_come_in_time_stay_with_their_worker() {
    let sockets = sockets(2);
    let mut scene = Scene::new("in-time", sockets.clone()).await;
    scene.greet().await;
    assert!(scene.supervisor.fleet.has_joined());
    scene.apply(sockets.keys().map(|(_, address)| *address).collect());
    assert!(matches!(scene.hear().await.0, ToWorker::Settings(_)));
    scene.say(FromWorker::Ready, None).await;
    assert!(scene.supervisor.fleet.is_serving(), "nothing else is to be said");
    for (key, socket) in &sockets {
        assert!(is_same(socket, &scene.supervisor.sockets[key]));
    }
}

#[tokio::test]
async fn sockets_that_come_late_are_given_up_for_those_that_were_opened() {
    let sockets = sockets(2);
    let mut scene = Scene::new("late", sockets.clone()).await;
    let addresses: Vec<_> = sockets.keys().map(|(_, address)| *address).collect();
    let [kept, gone] = addresses[..] else { panic!("{addresses:?}") };
    scene.apply(BTreeSet::from([kept]));
    scene.greet().await;
    for address in [kept, gone] {
        assert_eq!(scene.hear().await.0, ToWorker::Unlisten { address });
    }
    assert!(matches!(scene.hear().await.0, ToWorker::Settings(_)));
    let (message, socket) = scene.hear().await;
    assert_eq!(message, ToWorker::Listen { address: kept });
    let (key, ours) = scene.supervisor.sockets.first_key_value().unwrap();
    assert_eq!(*key, (0, kept));
    assert!(is_same(ours, &socket.unwrap()) && !is_same(ours, &sockets[key]));
    assert_eq!(scene.supervisor.sockets.len(), 1, "nobody would accept at the other one");
}
