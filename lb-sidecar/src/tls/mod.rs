//! TLS (RFC 8446, RFC 5246), by rustls: with clients (`server`) and with backends (`backend`).
//!
//! Knows nothing of HTTP, and nothing of files: certificates and keys come with the settings.

mod anyone;
mod backend;
mod handshake;
mod server;
mod session;
mod stream;
mod subject;
mod tickets;
mod x509;

use std::rc::Rc;

pub use anyone::Anyone;
pub use backend::{client_config, server_name};
pub use handshake::{Failed, accept, connect, fatal, looks_like_http, looks_like_tls};
pub use server::{config, info};
pub use stream::Stream;
pub use tickets::TICKET_LIFETIME;
pub use x509::{Leaf, authorities, leaf, ocsp, to_pem};

/// Who a client is by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// By RFC 4514. None: it cannot be read, or is too long to be told.
    pub subject: Option<Rc<str>>,
}

/// What a handshake with a client has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    pub cipher: &'static str,
    /// The host that the client asked for.
    pub name: Option<Box<str>>,
    /// The protocol that both agreed on.
    pub alpn: Option<Box<[u8]>>,
    /// The client's certificate, which was verified.
    pub client: Option<Client>,
    /// Whether it took up an earlier session.
    pub resumed: bool,
}
