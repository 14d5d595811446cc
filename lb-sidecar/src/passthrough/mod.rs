//! TLS that is passed on: the ClientHello decides where a connection goes, and all of it is relayed as it came.
//!
//! ```text
//! accepted -> hello (bounded, in its time) -> routes -> pool -> connect, retry -> relay, which may be spliced
//! ```
//!
//! Nothing is written to the client but a fatal alert where a connection ends here. Knows nothing of HTTP; who brings that
//! in plain is told so.

pub mod hello;
mod routes;

use std::{future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use hyper::{Request, http::request::Parts};
use tokio::net::TcpStream;

pub use routes::{Routes, Way};

use crate::{
    client::Client,
    connection::in_time,
    entry::Entry,
    exchange::{Exchange, Tried},
    farewell,
    fresh::Fresh,
    life::Open,
    outcome::Outcome,
    pool::Picked,
    relay::End,
    scratch, secure,
    service::Plan,
    splice::tcp::Peer,
    stream::Stream,
    tls::{self, looks_like_http},
    upgrade::{self, Handover},
    upstream::Connected,
};
use hello::{Bad, Hello, Reader};

/// Alerts (RFC 8446, section 6.2; RFC 6066, section 3).
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

/// Why nothing was passed on. None: there is nothing to say of it.
type Refused = Option<Outcome>;

/// Serves a connection up to where the relay takes over, or to its end.
pub(crate) async fn serve(socket: TcpStream, client: Rc<Client>, open: Open, plan: Rc<Plan>) {
    if plan.settings.splice && plan.settings.limits.bytes_per_second == 0 {
        client.fitting.set(Peer::of(&socket));
    }
    drop(plan);
    let mut reader = Reader::default();
    let head = Request::new(()).into_parts().0;
    let began = async {
        let hello = read(&socket, &client, &mut reader).await?;
        // A hello may be long in coming; what it asks for is found by the settings of now.
        let plan = client.service.plan();
        let routes = plan.passthrough.as_ref().ok_or(Outcome::NoBackend)?;
        let name = hello.name.as_deref().unwrap_or_default();
        client.begin_passing(|| Entry::of_tls(&head, client.peer, name));
        let way = routes.find(&hello).ok_or(Outcome::TlsUnknownName)?;
        if routes.are_missed(&hello, way) {
            client.service.count(Outcome::TlsDefaultName);
        }
        client.note(|entry| entry.route = way.route.cloned());
        Ok(reach(&client, &plan, &head, way).await?)
    };
    let began: Result<_, Refused> = in_time(began, &client.deadline).await;
    match began {
        Ok((picked, Connected { stream, port_is_checked })) => {
            client.service.count(Outcome::PassedThrough);
            client.write_entry();
            open.relayed();
            let end = End { stream, read_ahead: Bytes::new() };
            let Picked { backend, lease, .. } = picked;
            let address = client.peer;
            let websocket = false;
            let handover = Handover { backend, lease, end, websocket, port_is_checked, address };
            let ahead = reader.into_bytes().into();
            upgrade::carry(Stream::from(socket), ahead, handover, &client, open);
        }
        Err(None) => {}
        Err(Some(outcome)) => refuse(socket, outcome, &client).await,
    }
}

/// The hello; all that was read of the connection is in the reader then.
async fn read(socket: &TcpStream, client: &Client, reader: &mut Reader) -> Result<Hello, Refused> {
    loop {
        readable(socket, client, reader.is_empty()).await?;
        let fed = scratch::with(|buffer| {
            let room = reader.room().min(buffer.len());
            match socket.try_read(&mut buffer[..room]) {
                Ok(0) => Err(Outcome::TlsCut),
                Ok(_) if reader.is_empty() && looks_like_http(buffer) => Err(Outcome::PlainOnTls),
                Ok(n) => reader.feed(&buffer[..n]).map_err(|bad| match bad {
                    Bad::Foreign | Bad::Malformed => Outcome::TlsFailed,
                    Bad::TooLarge => Outcome::TlsHelloTooLarge,
                }),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(_) => Err(Outcome::TlsCut),
            }
        });
        if let Some(hello) = fed? {
            return Ok(hello);
        }
    }
}

/// Waits for more, in the time that there is for the hello.
async fn readable(socket: &TcpStream, client: &Client, nothing_came: bool) -> Result<(), Refused> {
    let mut fresh = Fresh::new();
    poll_fn(|cx| {
        if socket.poll_read_ready(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if nothing_came && fresh.poll_close(client, cx).is_ready() {
            return Poll::Ready(Err(None));
        }
        match client.deadline.take_expired() {
            Some(_) => Poll::Ready(Err(Some(Outcome::TlsTimeout))),
            None => Poll::Pending,
        }
    })
    .await
}

/// A backend that has accepted a connection.
async fn reach(
    client: &Rc<Client>,
    plan: &Plan,
    head: &Parts,
    way: Way<'_>,
) -> Result<(Picked, Connected<Stream>), Outcome> {
    let (address, pools) = (client.peer, way.pools);
    let to =
        Exchange { client, plan, address, until_close: false, route: None, pools, asked: None };
    let mut tried = Tried::none();
    loop {
        let picked = to.choose(head, &tried).await?;
        if !tried.backends.is_empty() {
            client.service.count(Outcome::RetryConnect);
        }
        match to.connect(&picked.backend, client.fitting.get().as_ref()).await {
            Ok(connected) => return Ok((picked, connected)),
            Err(outcome) => {
                picked.backend.failed.set(picked.backend.failed.get() + 1);
                tried.last = outcome;
                tried.backends.push(picked.backend);
            }
        }
    }
}

/// Counts why, and says so as far as it would be understood.
async fn refuse(socket: TcpStream, outcome: Outcome, client: &Client) {
    client.note(|entry| entry.refused = Some(outcome.label()));
    client.write_entry();
    let alert = match outcome {
        Outcome::PlainOnTls => {
            secure::fail(tls::Failed::Plain, socket, client).await;
            return;
        }
        // Who has not said anything, or not all, hears nothing.
        Outcome::TlsCut | Outcome::TlsTimeout => {
            client.service.count(outcome);
            return;
        }
        Outcome::TlsUnknownName => UNRECOGNIZED_NAME,
        Outcome::TlsFailed | Outcome::TlsHelloTooLarge => DECODE_ERROR,
        _ => INTERNAL_ERROR,
    };
    client.service.count(outcome);
    // The first bytes of a connection: there is room in the socket.
    _ = socket.try_write(&tls::fatal(alert));
    farewell::linger(socket).await;
}
