//! Upgrades: the handshake with a backend, and what is handed over to the relay after it.
//!
//! The handshake is written and read here, not by hyper: it is one message each way, and what was written must be at
//! hand when it is written again to another backend. Any answer but a 101 is an ordinary response, and read by hyper.

mod replay;

use std::{net::SocketAddr, rc::Rc, time};

use bytes::{Buf, Bytes, BytesMut};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONNECTION, HeaderName, HeaderValue, TE, UPGRADE},
    http::request::Parts,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::{
    body::{RequestBody, ResponseBody},
    client::Client,
    deadline::Wait,
    exchange::{Exchange, RESPONSE_HEAD_BYTES, Tried, open},
    headers, http2,
    outcome::{Outcome, Reason},
    pool::{Backend, Lease, Picked},
    relay::{self, End, Means, Options, Side},
    stream::Stream,
    times::Time,
    upstream::Connected,
};
use replay::Replay;

/// Most header fields of an answer, as with hyper.
const MOST_FIELDS: usize = 100;

/// A backend's side of an upgraded connection, or of one that is passed on, for the relay.
pub struct Handover {
    pub backend: Rc<Backend>,
    pub lease: Lease,
    pub end: End,
    pub websocket: bool,
    /// The source port is known to be free of flows, see [`Ports`](crate::upstream::Ports).
    pub port_is_checked: bool,
    /// Who the client is.
    pub address: SocketAddr,
}

/// For as long as a handshake is under way, and for good if it has come to something.
struct Switching<'a>(&'a Client);

impl<'a> Switching<'a> {
    fn of(client: &'a Client) -> Self {
        client.switching.set(true);
        Self(client)
    }
}

impl Drop for Switching<'_> {
    fn drop(&mut self) {
        self.0.switching.set(self.0.handover.borrow().is_some());
    }
}

/// Asks a backend to upgrade, and another one if that fails or refuses.
pub async fn handshake(
    to: &Exchange<'_>,
    mut head: Parts,
    protocol: &str,
) -> Result<Response<ResponseBody>, Reason> {
    let service = &to.client.service;
    let mut tried = Tried::none();
    head.headers.remove(TE);
    head.headers.remove(CONNECTION);
    let request = serialize(&head, protocol);
    let _switching = Switching::of(to.client);
    let mut chosen: Option<Picked> = None;
    loop {
        let mut picked = match chosen.take() {
            Some(picked) => to.wait_for_room(picked, &head, &tried).await?,
            None => to.choose(&head, &tried).await?,
        };
        if !tried.backends.is_empty() {
            service.count(match tried.last {
                Outcome::ConnectFailed
                | Outcome::ConnectTimeout
                | Outcome::BackendTlsFailed
                | Outcome::BackendTlsUntrusted => Outcome::RetryConnect,
                _ => Outcome::RetryHandshake,
            });
        }
        let failed = match to.connect(&picked.backend, to.client.fitting.get().as_ref()).await {
            Err(outcome) => outcome,
            Ok(Connected { stream, port_is_checked }) => {
                to.client.deadline.set(Wait::Response, to.client.timeouts().response);
                let begun = time::Instant::now();
                let answer = to.in_time(ask(stream, &request)).await;
                if let Ok(Answer::Switched(..) | Answer::Other(..)) = &answer {
                    service.times.took(Time::BackendAnswer, begun.elapsed());
                }
                match answer {
                    Err(_) => {
                        refuses(&picked.backend);
                        return Err(Outcome::ResponseTimeout.into());
                    }
                    Ok(Answer::Switched(mut headers, end)) => {
                        if !switches_to(&headers, protocol) {
                            refuses(&picked.backend);
                            return Err(Outcome::UnaskedSwitch.into());
                        }
                        if to.client.http2 && !http2::accepts(&head.headers, &headers) {
                            refuses(&picked.backend);
                            return Err(Outcome::WrongAccept.into());
                        }
                        picked.backend.handshakes.note(true);
                        let upgrade = headers.get(UPGRADE).cloned();
                        headers::remove_hop_by_hop(&mut headers);
                        to.dress(&mut headers, picked.set_cookie.take());
                        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                        headers.extend(upgrade.map(|value| (UPGRADE, value)));
                        let websocket = protocol == "websocket";
                        *to.client.handover.borrow_mut() = Some(Handover {
                            backend: picked.backend,
                            lease: picked.lease,
                            end,
                            websocket,
                            port_is_checked,
                            address: to.address,
                        });
                        let mut response = Response::new(ResponseBody::Empty);
                        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                        *response.headers_mut() = headers;
                        return Ok(response);
                    }
                    Ok(Answer::Other(status, end)) => {
                        // What is wrong with the request is none of its failures.
                        picked.backend.handshakes.note(status < 500);
                        tried.backends.push(picked.backend.clone());
                        tried.last = Outcome::BackendClosed;
                        let refused = status == StatusCode::SERVICE_UNAVAILABLE.as_u16();
                        chosen = if refused { to.pick(&head, &tried).ok() } else { None };
                        if chosen.is_none() && to.client.http2 && (200..300).contains(&status) {
                            // To the client this would be the switch itself (RFC 8441, section 5).
                            fail(&picked.backend);
                            return Err(Outcome::UpgradeIgnored.into());
                        }
                        if chosen.is_none() {
                            // Nobody else is there: the client may know what to make of it.
                            return answered_otherwise(to, &head, end, picked).await;
                        }
                        fail(&picked.backend);
                        continue;
                    }
                    Ok(Answer::Closed) => {
                        picked.backend.handshakes.note(false);
                        Outcome::BackendClosed
                    }
                    Ok(Answer::Garbage) => {
                        refuses(&picked.backend);
                        return Err(Outcome::BackendGarbage.into());
                    }
                }
            }
        };
        fail(&picked.backend);
        tried.last = failed;
        tried.backends.push(picked.backend);
    }
}

/// It accepted the connection, and then it did not answer as asked.
fn refuses(backend: &Backend) {
    backend.handshakes.note(false);
    fail(backend);
}

fn fail(backend: &Backend) {
    backend.failed.set(backend.failed.get() + 1);
}

/// A request head that asks for one protocol.
fn serialize(head: &Parts, protocol: &str) -> Vec<u8> {
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let fields: usize =
        head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut bytes = Vec::with_capacity(target.len() + fields + 80);
    for part in [head.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
    for (name, value) in &head.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"connection: Upgrade\r\nupgrade: ");
    bytes.extend_from_slice(protocol.as_bytes());
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

/// What a backend says to an upgrade.
enum Answer {
    Switched(HeaderMap, End),
    /// An ordinary response, unread: all bytes of it are in the end's read-ahead or still to come.
    Other(u16, End),
    /// The connection ended before the first byte.
    Closed,
    Garbage,
}

async fn ask(mut stream: Stream, request: &[u8]) -> Answer {
    if stream.write_all(request).await.is_err() {
        return Answer::Closed;
    }
    let mut read = BytesMut::with_capacity(1024);
    loop {
        match parse(&read) {
            Ok(Some(Parsed { status: 101, headers, len })) => {
                read.advance(len);
                return Answer::Switched(headers, End { stream, read_ahead: read.freeze() });
            }
            // Another answer follows (RFC 9110, section 15.2).
            Ok(Some(Parsed { status: 100..200, len, .. })) => {
                read.advance(len);
                continue;
            }
            Ok(Some(Parsed { status, .. })) => {
                return Answer::Other(status, End { stream, read_ahead: read.freeze() });
            }
            Ok(None) if read.len() < RESPONSE_HEAD_BYTES => {}
            Ok(None) | Err(_) => return Answer::Garbage,
        }
        match stream.read_buf(&mut read).await {
            Ok(n) if n > 0 => {}
            _ if read.is_empty() => return Answer::Closed,
            // A head that ends in the middle is none.
            _ => return Answer::Garbage,
        }
    }
}

struct Parsed {
    status: u16,
    headers: HeaderMap,
    len: usize,
}

/// The head at the beginning, when all of it is there. The fields are read for a 101 only.
fn parse(bytes: &[u8]) -> Result<Option<Parsed>, httparse::Error> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(len) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let mut headers = HeaderMap::new();
    if status == 101 {
        headers.reserve(response.headers.len() + 2);
        for field in response.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes())
                .map_err(|_| httparse::Error::HeaderName)?;
            let value =
                HeaderValue::from_bytes(field.value).map_err(|_| httparse::Error::HeaderValue)?;
            headers.append(name, value);
        }
    }
    Ok(Some(Parsed { status, headers, len }))
}

/// Whether a 101 is to what was asked for.
fn switches_to(headers: &HeaderMap, protocol: &str) -> bool {
    let mut values = headers.get_all(UPGRADE).iter();
    let first = values
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()));
    first && values.next().is_none() && headers::lists(headers, CONNECTION, "upgrade")
}

/// The backend answered as to any request: so does the sidecar, through hyper.
async fn answered_otherwise(
    to: &Exchange<'_>,
    head: &Parts,
    end: End,
    picked: Picked,
) -> Result<Response<ResponseBody>, Reason> {
    let mut sender =
        open(Replay::new(end)).await.map_err(|_| Reason::from(Outcome::BackendGarbage))?;
    // Its bytes go nowhere: the request was written before. The method decides how the response is read.
    let mut asked = Request::new(RequestBody::Empty);
    *asked.method_mut() = head.method.clone();
    let response = match to.in_time(sender.send_request(asked)).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Err(Outcome::BackendGarbage.into()),
        Err(_) => return Err(Outcome::ResponseTimeout.into()),
    };
    to.pass(response, None, picked)
}

/// Relays an upgraded connection: see [`carry`].
pub fn hand_over(
    stream: impl Side + 'static,
    read_ahead: Bytes,
    handover: Handover,
    client: &Client,
    held: impl Sized + 'static,
) {
    client.service.count(Outcome::Upgraded);
    carry(stream, read_ahead, handover, client, held);
}

/// Starts the relay, in a task of its own: what the handshake needed is dropped with the connection's.
///
/// `held` stands for what it is relayed over, until it ends.
pub fn carry(
    stream: impl Side + 'static,
    read_ahead: Bytes,
    handover: Handover,
    client: &Client,
    held: impl Sized + 'static,
) {
    let service = client.service.clone();
    let Handover { backend, lease, end, websocket, port_is_checked, address } = handover;
    let entry = service.relays.enter(backend.clone());
    let plan = service.plan();
    let settings = &plan.settings;
    let is_limited = client.pace.iter().any(Option::is_some);
    let is_plain = stream.socket().is_some() && end.stream.is_plain();
    if settings.splice && client.http2 {
        service.count(Outcome::SpliceHttp2);
    } else if settings.splice && !is_plain {
        service.count(Outcome::SpliceTls);
    } else if settings.splice && is_limited {
        service.count(Outcome::SpliceLimited);
    } else if settings.splice && !port_is_checked {
        service.count(Outcome::SpliceUncheckedPort);
    }
    let fitting = client.fitting.get();
    let fitting = fitting.filter(|_| settings.splice && !is_limited && port_is_checked && is_plain);
    let splice = fitting.map(|peer| Means {
        desk: service.splicing.desk.clone(),
        outcomes: service.outcomes.clone(),
        round_trip: peer.rtt,
    });
    let idle_timeout = settings.http.idle_timeout;
    let pace = client.pace.clone();
    let options = Options { idle_timeout, websocket, entry, splice, pace };
    let lines = client.lines.clone();
    let client = End { stream, read_ahead };
    tokio::task::spawn_local(async move {
        let since = Instant::now();
        let ended = relay::relay(client, end, options).await;
        if let Some(lines) = lines {
            let bytes = (ended.bytes_in, ended.bytes_out);
            lines.close(address, &backend, since, bytes, ended.by);
        }
        drop(lease);
        drop(held);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_asks_for_one_protocol() {
        let head = Request::get("/chat?room=1")
            .header("host", "a")
            .header("cookie", "b=c")
            .body(())
            .unwrap();
        let bytes = serialize(&head.into_parts().0, "websocket");
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "GET /chat?room=1 HTTP/1.1\r\nhost: a\r\ncookie: b=c\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
        );
    }

    #[test]
    fn only_what_was_asked_for_is_switched_to() {
        for (head, switches) in [
            ("Upgrade: WebSocket\r\nConnection: Upgrade\r\n", true),
            ("Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n", true),
            ("Upgrade: h2c\r\nConnection: Upgrade\r\n", false),
            ("Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n", false),
            ("Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", false),
            ("Upgrade: websocket\r\n", false),
            ("Connection: Upgrade\r\n", false),
        ] {
            let bytes = format!("HTTP/1.1 101 Switching Protocols\r\n{head}\r\nframes");
            let parsed = parse(bytes.as_bytes()).unwrap().unwrap();
            assert_eq!(switches_to(&parsed.headers, "websocket"), switches, "{head}");
            assert_eq!(&bytes[parsed.len..], "frames");
        }
    }

    #[test]
    fn heads_in_parts_and_heads_that_are_none() {
        assert!(parse(b"").unwrap().is_none());
        assert!(parse(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: w").unwrap().is_none());
        assert!(parse(b"\x16\x03\x01").is_err());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert_eq!(parse(b"HTTP/1.0 200\r\n\r\n").unwrap().unwrap().status, 200);
    }
}
