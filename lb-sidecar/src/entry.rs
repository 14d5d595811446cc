//! What the access log will say of the request at hand: collected as it becomes known, written once.

use std::{net::SocketAddr, rc::Rc};

use hyper::{
    Method, Version,
    header::{HOST, HeaderValue},
    http::request::Parts,
};
use tokio::time::Instant;

use crate::{
    access_log::{AccessLog, Close, Passthrough, Request},
    pool::{Backend, Sticky},
    relay::By,
};

/// The lines of one connection.
#[derive(Clone)]
pub struct Lines {
    log: Rc<AccessLog>,
    edge: Rc<str>,
    service: Rc<str>,
    /// What joins them.
    connection: u64,
}

/// See the module.
pub struct Entry {
    started: Instant,
    method: Method,
    path: String,
    host: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    /// As far as proxies in front are believed.
    pub client: SocketAddr,
    pub status: u16,
    pub refused: Option<&'static str>,
    pub backend: Option<Rc<Backend>>,
    pub sticky: Option<Sticky>,
    pub retries: usize,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub route: Option<Rc<str>>,
    pub pool: Option<Rc<str>>,
    version: Version,
    /// The connection, or the stream, goes on in another protocol.
    pub upgraded: bool,
    /// Of TLS that is passed on: the name that the client asks for, empty if it asks for none. There is no request then.
    pub sni: Option<Box<str>>,
}

impl Entry {
    pub fn new(head: &Parts, peer: SocketAddr) -> Self {
        Self {
            started: Instant::now(),
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            host: head.headers.get(HOST).cloned().or_else(|| authority(head)),
            request_id: None,
            client: peer,
            status: 0,
            refused: None,
            backend: None,
            sticky: None,
            retries: 0,
            bytes_in: 0,
            bytes_out: 0,
            route: None,
            pool: None,
            version: head.version,
            upgraded: false,
            sni: None,
        }
    }

    /// Of TLS that is passed on, to what name; the head is that of no request.
    pub fn of_tls(head: &Parts, peer: SocketAddr, name: &str) -> Self {
        Self { sni: Some(name.into()), ..Self::new(head, peer) }
    }
}

/// HTTP/2 has it in place of `Host`.
fn authority(head: &Parts) -> Option<HeaderValue> {
    HeaderValue::from_str(head.uri.authority()?.as_str()).ok()
}

impl Lines {
    /// None if this connection is not in the sample.
    pub fn of(
        log: Option<&Rc<AccessLog>>,
        sample: f64,
        edge: &Rc<str>,
        service: &str,
    ) -> Option<Self> {
        let log = log.filter(|_| AccessLog::samples(sample))?;
        let connection = log.connection_id();
        Some(Self { log: log.clone(), edge: edge.clone(), service: service.into(), connection })
    }

    pub fn request(&self, entry: &Entry) {
        let bytes = |value: &Option<HeaderValue>| {
            value.as_ref().map(|v| v.as_bytes().to_vec()).unwrap_or_default()
        };
        let name = entry.backend.as_ref().map(|backend| backend.name());
        if let Some(sni) = &entry.sni {
            self.log.passthrough(&Passthrough {
                edge: &self.edge,
                service: &self.service,
                connection: self.connection,
                client: entry.client,
                sni,
                refused: entry.refused,
                backend: name.as_deref(),
                sticky: entry.sticky,
                retries: entry.retries,
                duration: entry.started.elapsed(),
                route: entry.route.as_deref(),
                pool: entry.pool.as_deref(),
            });
            return;
        }
        self.log.request(&Request {
            edge: &self.edge,
            service: &self.service,
            connection: self.connection,
            client: entry.client,
            method: entry.method.as_str(),
            path: &entry.path,
            host: &bytes(&entry.host),
            request_id: &bytes(&entry.request_id),
            status: entry.status,
            refused: entry.refused,
            backend: name.as_deref(),
            sticky: entry.sticky,
            retries: entry.retries,
            upgraded: entry.upgraded,
            bytes_in: entry.bytes_in,
            bytes_out: entry.bytes_out,
            duration: entry.started.elapsed(),
            route: entry.route.as_deref(),
            pool: entry.pool.as_deref(),
            protocol: match entry.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
        });
    }

    /// The end of an upgraded connection, or of what the sidecar has to do with it.
    pub fn close(
        &self,
        client: SocketAddr,
        backend: &Backend,
        since: Instant,
        (bytes_in, bytes_out): (u64, u64),
        by: By,
    ) {
        let name = backend.name();
        let close = Close {
            edge: &self.edge,
            service: &self.service,
            connection: Some(self.connection),
            client,
            backend: &name,
            bytes_in,
            bytes_out,
            duration: since.elapsed(),
            ended_by: by.label(),
        };
        match by {
            By::Splice => self.log.splice(&close),
            _ => self.log.close(&close),
        }
    }
}
