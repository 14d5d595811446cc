//! What an agent and a worker say to each other, over a real socket.

mod harness;

use std::{io::Write, net::Ipv4Addr, os::fd::AsFd, rc::Rc};

use harness::{agent::Agent, *};
use lb_sidecar::{
    control::{FromWorker, ToWorker},
    session,
    settings::Settings,
    worker::Worker,
};
use tokio::{net::UnixStream, task::spawn_local, time::timeout};

fn agent_of(worker: &Rc<Worker>) -> Agent {
    let (agent, other) = UnixStream::pair().unwrap();
    spawn_local(session::serve(worker.clone(), other));
    Agent::new(agent)
}

fn settings(address: std::net::SocketAddr, backends: &[std::net::SocketAddr]) -> Settings {
    Settings {
        edge: "test".into(),
        services: vec![service(address, backends)],
        ..Settings::default()
    }
}

#[test]
fn from_the_greeting_to_the_end() {
    run(|| async {
        let server = Server::echo("one").await;
        let worker = Worker::new(3);
        let mut agent = agent_of(&worker);
        let hello = agent.hello().await;
        assert_eq!((hello.index, hello.retired, hello.listeners), (3, false, 0));

        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        agent
            .0
            .send(&ToWorker::Settings(Box::new(settings(address, &[server.address]))), None)
            .await
            .unwrap();
        agent.0.send(&ToWorker::Listen { address }, Some(socket.as_fd())).await.unwrap();
        agent.ready().await;

        let mut client = Client(tokio::net::TcpStream::connect(address).await.unwrap());
        assert!(client.get("/").await.starts_with("HTTP/1.1 200 OK"));
        let report = agent
            .next(|m| match m {
                FromWorker::Report(r) if r.services[0].connections == 1 => Some(r),
                _ => None,
            })
            .await;
        assert_eq!(report.services[0].backends[0].picked, 1);

        // Another agent takes over, sockets and all; the connection stays.
        drop(agent);
        let mut agent = agent_of(&worker);
        let hello = agent.hello().await;
        assert_eq!(hello.listeners, 1);
        agent.0.send(&ToWorker::SendListeners, None).await.unwrap();
        let (message, descriptor) = loop {
            let got = timeout(LONG, agent.1.receive()).await.unwrap().unwrap().unwrap();
            if !matches!(got.0, FromWorker::Report(_)) {
                break got;
            }
        };
        assert_eq!(message, FromWorker::Listener { address });
        let taken = std::net::TcpListener::from(descriptor.unwrap());
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(client.get("/").await.starts_with("HTTP/1.1 200 OK"));

        agent.0.send(&ToWorker::Retire { deadline: None }, None).await.unwrap();
        assert_eq!(client.read_to_end().await, "");
        let report = agent
            .next(|m| match m {
                FromWorker::Report(r) if r.services[0].connections == 0 => Some(r),
                _ => None,
            })
            .await;
        let requests = report.services[0].outcomes.iter().find(|(label, _)| label == "request");
        assert_eq!(requests.map(|(_, n)| *n), Some(2));
        assert!(
            timeout(LONG, agent.1.receive()).await.unwrap().unwrap().is_none(),
            "the last word"
        );
        timeout(LONG, worker.life.over()).await.unwrap();

        // Whoever has the socket now gets the clients.
        let mut late = Client(tokio::net::TcpStream::connect(address).await.unwrap());
        let next = Worker::new(0);
        next.apply(settings(address, &[server.address]));
        next.listen(address, taken.into()).unwrap();
        assert!(late.get("/").await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn clients_wait_in_the_backlog_until_there_are_settings() {
    run(|| async {
        let server = Server::echo("one").await;
        let worker = Worker::new(0);
        let mut agent = agent_of(&worker);
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        agent.0.send(&ToWorker::Listen { address }, Some(socket.as_fd())).await.unwrap();
        let mut client = Client(tokio::net::TcpStream::connect(address).await.unwrap());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        agent
            .0
            .send(&ToWorker::Settings(Box::new(settings(address, &[server.address]))), None)
            .await
            .unwrap();
        assert!(client.answer().await.starts_with("HTTP/1.1 200 OK"));

        // A service that goes takes its idle connections with it.
        agent.0.send(&ToWorker::Settings(Box::default()), None).await.unwrap();
        assert_eq!(client.read_to_end().await, "");
    });
}

#[test]
fn who_waits_in_the_backlog_is_served_though_the_listener_goes() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |_| {});
        // Nobody is accepted between this and the end of the listener: there is one thread.
        let clients: Vec<_> = (0..50)
            .map(|_| {
                let mut client = std::net::TcpStream::connect(edge.address).unwrap();
                client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                client.set_nonblocking(true).unwrap();
                Client(tokio::net::TcpStream::from_std(client).unwrap())
            })
            .collect();
        edge.worker.unlisten(edge.address).await;
        edge.worker.retire(None);
        for mut client in clients {
            let answer = client.read_to_end().await;
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
            assert_eq!(field(&answer, "connection"), Some("close"));
        }
        assert!(std::net::TcpStream::connect(edge.address).is_err());
        timeout(LONG, edge.worker.life.over()).await.expect("the end");
    });
}

#[test]
fn who_is_terminated_leaves_no_socket_behind_and_says_that_it_retires() {
    run(|| async {
        for is_busy in [true, false] {
            let server = Server::upgrading("").await;
            let edge = Edge::new(&[server.address], |_| {});
            let mut agent = agent_of(&edge.worker);
            let greeting = agent.hello().await;
            assert_eq!((greeting.retired, greeting.listeners), (false, 1));
            // Nobody is accepted between this and the end of the listener: there is one thread.
            let client = is_busy.then(|| {
                let mut client = std::net::TcpStream::connect(edge.address).unwrap();
                client.write_all(ASK.as_bytes()).unwrap();
                client.set_nonblocking(true).unwrap();
                Client(tokio::net::TcpStream::from_std(client).unwrap())
            });
            edge.worker.terminate().await;
            assert!(std::net::TcpStream::connect(edge.address).is_err());
            let greeting = agent.hello().await;
            assert_eq!((greeting.retired, greeting.listeners), (true, 0), "busy: {is_busy}");
            if let Some(mut client) = client {
                client.read_until("\r\n\r\n").await;
                // An agent that has not heard of it.
                let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let address = socket.local_addr().unwrap();
                agent.0.send(&ToWorker::Listen { address }, Some(socket.as_fd())).await.unwrap();
                drop(socket);
                // It has been read.
                let retire = ToWorker::Retire { deadline: None };
                agent.0.send(&retire, None).await.unwrap();
                client.send("still").await;
                client.read_until("still").await;
                edge.until(|| std::net::TcpStream::connect(address).is_err(), String::new).await;
                assert!(edge.worker.listeners().is_empty());
                drop(client);
            }
            let last = async {
                while let Some((message, _)) = agent.1.receive().await.unwrap() {
                    assert!(matches!(message, FromWorker::Report(_)), "{message:?}");
                }
            };
            timeout(LONG, last).await.expect("the end");
            timeout(LONG, edge.worker.life.over()).await.expect("the end");
        }
    });
}

#[test]
fn a_deadline_ends_all() {
    run(|| async {
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("\r\n\r\n").await;
        edge.worker.retire(None);
        let mut over = std::pin::pin!(edge.worker.life.over());
        assert!(
            timeout(std::time::Duration::from_millis(20), &mut over).await.is_err(),
            "the relay goes on"
        );
        client.send("still").await;
        client.read_until("still").await;
        edge.worker.retire(Some(0));
        timeout(LONG, over).await.expect("the end");
    });
}

#[test]
fn the_access_log_has_requests_and_ends() {
    run(|| async {
        let (plain, upgrading) = (Server::echo("one").await, Server::upgrading("hi").await);
        let mut edge = Edge::new(&[plain.address], |s| {
            s.log_sample = 1.0;
            s.forwarded.request_id = Some("x-request-id".into());
        });
        let path = std::env::temp_dir().join(format!(
            "access-{}-{}",
            std::process::id(),
            edge.address.port()
        ));
        let file = std::fs::File::create(&path).unwrap();
        edge.worker.life.log_to(file.into()).unwrap();
        let mut client = edge.connect().await;
        client.get("/path?secret").await;
        edge.settings.services[0].backends = vec![backend(7, upgrading.address)];
        edge.worker.apply(edge.settings.clone());
        client.send(ASK).await;
        client.read_until("hi").await;
        client.send("12345").await;
        client.read_until("12345").await;
        drop(client);
        edge.quiet().await;
        let mut refused = edge.connect().await;
        refused.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").await;
        refused.read_to_end().await;
        drop(refused);
        edge.quiet().await;
        edge.worker.life.log().unwrap().finish(LONG);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        let id = &lines[0]["connection"];
        assert_eq!(
            (lines[0]["path"].as_str(), lines[0]["status"].as_u64()),
            (Some("/path"), Some(200)),
            "{text}"
        );
        assert_eq!(lines[0]["backend"], "b0");
        assert_eq!(lines[0]["request_id"].as_str().map(str::len), Some(32));
        assert_eq!(
            (lines[1]["status"].as_u64(), &lines[1]["connection"]),
            (Some(101), id),
            "{text}"
        );
        assert_eq!(
            (lines[2]["bytes_in"].as_u64(), lines[2]["bytes_out"].as_u64()),
            (Some(5), Some(7)),
            "{text}"
        );
        assert_eq!(&lines[2]["connection"], id, "{text}");
        assert_eq!(
            (lines[3]["status"].as_u64(), lines[3]["refused"].as_str()),
            (Some(501), Some("connect_method"))
        );
    });
}
