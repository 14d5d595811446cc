//! Who comes, and whether it may stay: before anything else of a connection.

use std::rc::Rc;

use tokio::{net::TcpStream, time::Instant};

use crate::{
    farewell::reset,
    limits::{self, Place, sources::Permit},
    outcome::Outcome,
    proxy_protocol::{self, Ends},
    service::{Plan, Service},
};

/// Learns who a client is that was accepted `since`, and whether it may stay; whoever may not is reset.
pub async fn admit(
    stream: &TcpStream,
    ends: Ends,
    since: Instant,
    service: &Rc<Service>,
    plan: &Plan,
) -> Option<(Ends, Place, Option<Permit>)> {
    let admitted = match plan.settings.proxy_protocol.accept.is_empty() {
        true => limits::place(service)
            .and_then(|place| Ok((ends, place, limits::admit(service, ends.peer)?))),
        // Boxed: few need the room, and all connections would have it.
        false => Box::pin(introduced(stream, ends, since, service, plan)).await,
    };
    admitted
        .inspect_err(|outcome| {
            service.count(*outcome);
            reset(stream);
        })
        .ok()
}

/// The same where proxies are to name their clients. A connection counts for its service from the beginning, and for its
/// source as soon as that is known: of a proxy with its header, which may have any number on the way, of everybody else at
/// once.
async fn introduced(
    stream: &TcpStream,
    ends: Ends,
    since: Instant,
    service: &Rc<Service>,
    plan: &Plan,
) -> Result<(Ends, Place, Option<Permit>), Outcome> {
    let place = limits::place(service)?;
    let by = since + plan.settings.http.head_timeout;
    if plan.proxies.contains(ends.peer.ip()) {
        let ends = proxy_protocol::named(stream, ends, by).await?;
        return Ok((ends, place, limits::admit(service, ends.peer)?));
    }
    let permit = limits::admit(service, ends.peer)?;
    proxy_protocol::unnamed(stream, by).await?;
    Ok((ends, place, permit))
}
