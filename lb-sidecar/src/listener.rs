//! Accepting connections for a listener.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use nix::errno::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::warn;

use crate::{connection, life::Life, outcome::Outcome, service::Service, upstream::guard};

/// How long nothing is accepted after the kernel had no means for it.
const PAUSE: Duration = Duration::from_millis(100);

/// How often that is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// While connections are held back, how often it is looked whether their service has another rate.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many are accepted from a socket that is to be closed: as many as its backlog usually holds (net.core.somaxconn).
const MOST_WAITING: u32 = 4_096;

/// A socket that accepts for whatever service has its address now.
pub struct Listener {
    pub socket: Rc<StdListener>,
    service: Rc<RefCell<Option<Rc<Service>>>>,
    life: Rc<Life>,
    task: RefCell<Option<JoinHandle<()>>>,
}

impl Listener {
    pub fn new(fd: OwnedFd, life: Rc<Life>) -> io::Result<Self> {
        let socket = StdListener::from(fd);
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it.
        let options = socket2::SockRef::from(&socket);
        options.set_tcp_nodelay(true)?;
        // The answer acknowledges the request: a packet less (tcp(7), TCP_QUICKACK).
        options.set_tcp_quickack(false)?;
        Ok(Self { socket: Rc::new(socket), service: Rc::default(), life, task: RefCell::default() })
    }

    /// Accepts for this service from now on, or, without one, not at all: clients wait in the backlog.
    pub fn serve(&self, service: Option<Rc<Service>>) -> io::Result<()> {
        let serves = service.is_some();
        if let Some(service) = &service {
            let http = &service.plan().settings.http;
            let socket = socket2::SockRef::from(&*self.socket);
            guard(&socket, http.tcp_keepalive, http.tcp_user_timeout)?;
        }
        *self.service.borrow_mut() = service;
        let mut task = self.task.borrow_mut();
        if serves && task.is_none() {
            // The socket itself stays here, for whoever comes after.
            let socket = TcpListener::from_std(self.socket.try_clone()?)?;
            let accept = accept(socket, self.service.clone(), self.life.clone());
            *task = Some(tokio::task::spawn_local(accept));
        } else if !serves && let Some(task) = task.take() {
            task.abort();
        }
        Ok(())
    }

    /// Accepts who waits in the backlog.
    pub fn accept_all(&self) {
        let Some(service) = self.service.borrow().clone() else { return };
        let Ok(local) = self.socket.local_addr() else { return };
        for _ in 0..MOST_WAITING {
            let (stream, peer) = match self.socket.accept() {
                Ok(accepted) => accepted,
                Err(error)
                    if error.kind() != io::ErrorKind::WouldBlock
                        && is_of_one_connection(&error) =>
                {
                    continue;
                }
                Err(_) => return,
            };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            let Ok(stream) = stream else { return };
            begin(stream, peer, local, &service, &self.life);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.abort();
        }
    }
}

async fn accept(socket: TcpListener, service: Rc<RefCell<Option<Rc<Service>>>>, life: Rc<Life>) {
    let logged = Cell::new(None::<Instant>);
    let Ok(local) = socket.local_addr() else { return };
    loop {
        let mut has_waited = hold_back(&service).await;
        // Tokio makes way for other tasks after a number of connections.
        let accepted = poll_fn(|cx| {
            let accepted = socket.poll_accept(cx);
            has_waited &= accepted.is_ready();
            accepted
        });
        match accepted.await {
            Ok((stream, peer)) => {
                let Some(service) = service.borrow().clone() else { continue };
                if has_waited {
                    service.count(Outcome::ConnectionDelayed);
                }
                begin(stream, peer, local, &service, &life);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(service) = &*service.borrow() {
                    service.count(Outcome::AcceptFailed);
                }
                if logged.get().is_none_or(|at| at.elapsed() > LOG_EVERY) {
                    logged.set(Some(Instant::now()));
                    warn!(
                        "{local}: accept: {error}: clients wait; raise the limit of open files or add workers"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until the service may have another connection. Says whether that was not at once.
async fn hold_back(service: &RefCell<Option<Rc<Service>>>) -> bool {
    let mut held = false;
    loop {
        let now = Instant::now();
        let due = service.borrow().as_ref().and_then(|it| {
            let rate = it.plan().settings.limits.handshakes_per_second;
            it.arrivals.due(rate, now)
        });
        let Some(due) = due else { return held };
        held = true;
        sleep_until(due.min(now + LOOK_EVERY)).await;
    }
}

fn begin(
    stream: TcpStream,
    peer: SocketAddr,
    listener: SocketAddr,
    service: &Rc<Service>,
    life: &Rc<Life>,
) {
    service.count(Outcome::Connection);
    service.arrivals.spend(service.plan().settings.limits.handshakes_per_second, Instant::now());
    let local = local_address(&stream, listener);
    let connection = connection::serve(stream, peer, local, service.clone(), life.clone());
    tokio::task::spawn_local(connection);
}

/// Where the client connected to; a listener of all addresses does not know.
fn local_address(stream: &TcpStream, listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() { stream.local_addr().unwrap_or(listener) } else { listener }
}

/// Errors that Linux passes on from a connection that failed in the backlog (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    !matches!(Errno::from_raw(code), Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}
