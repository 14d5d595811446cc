//! What a worker is told of TLS that it passes on unread.

use serde::{Deserialize, Serialize};

use super::{Share, UnknownSni};

/// Clients bring TLS, which their backends end: of each connection only the ClientHello is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passthrough {
    /// In order; the first one that matches decides.
    pub routes: Vec<SniRoute>,
    /// What becomes of clients that no route matches: the default pool, or a refusal.
    pub unknown_sni: UnknownSni,
}

/// A rule for connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SniRoute {
    /// Unique in the service, and not [`NO_ROUTE`](super::NO_ROUTE).
    pub name: String,
    /// The name that the client asks for is one of these, at least one: in lower case, or `*.` and a name for all names
    /// below it.
    pub names: Vec<String>,
    /// The client offers one of these protocols (RFC 7301); none: whatever it offers.
    pub alpn: Vec<String>,
    /// As with [`Action::Pools`](super::Action::Pools).
    pub pools: Vec<Share>,
}
