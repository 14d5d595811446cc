//! A worker, as a process of its own, whose clients have taken all descriptors that there are.

mod harness;

use std::{
    env,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use harness::{agent::Agent, *};
use lb_sidecar::{
    control::{FromWorker, ToWorker},
    settings::Settings,
    worker::Options,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::net::UnixStream;

/// How many descriptors the worker may have.
const MOST: u64 = 256;

/// Tells the process that it is the worker.
const VARIABLE: &str = "SLUICE_TEST_WORKER";

/// Nothing by itself: what the worker's process runs.
#[test]
fn worker() {
    if env::var_os(VARIABLE).is_some() {
        let limit = Rlimit { current: Some(MOST), maximum: Some(MOST) };
        setrlimit(Resource::Nofile, limit).unwrap();
        lb_sidecar::worker::run(Options { index: 0 }).unwrap();
    }
}

struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    fn start() -> Self {
        let socket = env::temp_dir().join(format!("sluice-descriptors-{}", std::process::id()));
        let control = UnixListener::bind(&socket).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "worker", "--nocapture"])
            .env(VARIABLE, "")
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stdout(Stdio::null())
            .spawn();
        Self { child: child.unwrap(), socket }
    }

    async fn agent(&self) -> Agent {
        Agent::new(UnixStream::connect(&self.socket).await.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn settle(agent: &mut Agent, settings: &Settings) {
    agent.0.send(&ToWorker::Settings(Box::new(settings.clone())), None).await.unwrap();
}

async fn listen(agent: &mut Agent, socket: &TcpListener) {
    let address = socket.local_addr().unwrap();
    agent.0.send(&ToWorker::Listen { address }, Some(socket.as_fd())).await.unwrap();
}

fn accepts_failed(message: FromWorker) -> Option<()> {
    let FromWorker::Report(report) = message else { return None };
    let mut outcomes = report.services.iter().flat_map(|service| &service.outcomes);
    outcomes.any(|(label, times)| label == "accept_failed" && *times > 0).then_some(())
}

async fn answered(address: SocketAddr) {
    let mut client = Client(tokio::net::TcpStream::connect(address).await.unwrap());
    let answer = client.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn clients_leave_room_for_what_an_agent_sends_and_for_the_next_agent() {
    run(|| async {
        let server = Server::echo("one").await;
        let process = Process::start();
        let sockets = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [first, second] = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
        let services = vec![service(first, &[server.address])];
        let mut settings = Settings { edge: "test".into(), services, ..Settings::default() };
        let mut agent = process.agent().await;
        agent.hello().await;
        settle(&mut agent, &settings).await;
        listen(&mut agent, &sockets[0]).await;
        agent.ready().await;
        let clients: Vec<_> = (0..MOST).map(|_| TcpStream::connect(first).unwrap()).collect();
        agent.next(accepts_failed).await;

        let file = File::open("/dev/null").unwrap();
        for _ in 0..10 {
            agent.0.send(&ToWorker::AccessLog, Some(file.as_fd())).await.unwrap();
            settle(&mut agent, &settings).await;
            agent.ready().await;
        }
        let mut agent = process.agent().await;
        assert_eq!(agent.hello().await.listeners, 1);
        settings.services[0].listen.push(second);
        settle(&mut agent, &settings).await;
        listen(&mut agent, &sockets[1]).await;
        agent.ready().await;

        drop(clients);
        answered(first).await;
        answered(second).await;
    });
}
