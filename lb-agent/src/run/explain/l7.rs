//! The pick of a worker's pool, by a pool of one's own that was told the same.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Uri,
    header::{COOKIE, HOST, UPGRADE},
    request::Parts,
};
use lb_sidecar::{
    passthrough::{self, hello::Hello},
    pool::{Ask, ONLY_DEFAULT, Pool, Sticky},
    routing::Routes,
    settings::{self, Balance, DEFAULT_POOL, Settings, Share, State},
};

use super::{Client, Explanation, Question, seed};
use crate::{
    config::Service,
    overrides::Refusal,
    run::view::{Picture, Sources},
};

/// The place of the backend that a request gets, if it is already decided.
pub fn pick(
    answer: &mut Explanation,
    picture: &Picture,
    sources: &Sources,
    service: &Service,
    (client, question): (Client, &Question),
) -> Result<Option<usize>, Refusal> {
    let Some(shown) = picture.l7.iter().find(|it| it.config.name == service.name) else {
        answer.step("sidecar", "the workers do not know the service yet");
        return Ok(None);
    };
    let told = &shown.told;
    let settings = Settings {
        edge: sources.config.edge.name.clone(),
        hash_seed: seed(sources),
        cookie_keys: sources.keys.to_vec(),
        services: vec![told.clone()],
        ..Settings::default()
    };
    let head = request(question)?;
    let Some(pools) = pools(answer, told, &head) else { return Ok(None) };
    // An affinity by address does not look at the port.
    let address = SocketAddr::new(client.ip, client.port.unwrap_or(0));
    let ask = Ask { client: address, headers: &head.headers, uri: &head.uri, pools: &pools };
    let Some(picked) = Pool::new(&settings, told).pick(&ask, &[], SystemTime::now()) else {
        answer.step("balance", "no backend takes clients: they are answered with 503");
        return Ok(None);
    };
    answer.step("affinity", format!("{}: {}", picked.sticky.label(), means(picked.sticky)));
    let kept = matches!(picked.sticky, Sticky::Hit | Sticky::Keyed);
    let on_ring = |share: &Share| balance(told, share.pool) == Balance::Maglev;
    let decided = kept
        || takers(told, &pools).count() == 1
        || client.port.is_some() && matches!(&pools[..], [only] if on_ring(only));
    if !kept {
        for share in &pools {
            let names: Vec<_> = takers(told, &[*share]).map(|it| it.name.as_str()).collect();
            if !names.is_empty() {
                let rule = rule(balance(told, share.pool));
                let says = format!("{}{rule} of {}", of_pool(told, *share), names.join(", "));
                answer.step("balance", says);
            }
        }
    }
    let place = told.backends.iter().position(|it| it.id == picked.backend.id());
    let place = place.filter(|_| decided);
    if let Some(backend) = place.and_then(|place| told.backends.get(place)) {
        answer.step("state", state(backend));
    }
    Ok(place)
}

/// The pools that the request may go to; none if it needs no backend, or gets none.
fn pools(answer: &mut Explanation, told: &settings::Service, head: &Parts) -> Option<Vec<Share>> {
    if let Some(passing) = &told.passthrough {
        return passed(answer, passing, head);
    }
    if told.routes.is_empty() {
        return Some(ONLY_DEFAULT.to_vec());
    }
    let routes = Routes::new(&told.routes, None);
    let route = match routes.find(head, head.headers.contains_key(UPGRADE)) {
        Ok(Some(route)) => route,
        Ok(None) => {
            answer.step("route", "none matches: it goes to the default pool");
            return Some(ONLY_DEFAULT.to_vec());
        }
        Err(outcome) => {
            let why = outcome.answer().map_or(outcome.label(), |(_, text)| text);
            answer.step("route", format!("it is refused: {why}"));
            return None;
        }
    };
    let pools = route.pools();
    let name = |share: &Share| pool_name(told, share.pool).to_owned();
    let goes = match pools {
        [] => ", and answers it".to_owned(),
        [only] => format!(": pool {}", name(only)),
        several => {
            let names: Vec<_> = several.iter().map(name).collect();
            let shares: Vec<_> = several.iter().map(|it| it.weight.to_string()).collect();
            format!(": pools {}, with shares of {}", names.join(" and "), shares.join(" and "))
        }
    };
    answer.step("route", format!("{:?} matches{goes}", route.name));
    (!pools.is_empty()).then(|| pools.to_vec())
}

fn pool(told: &settings::Service, place: u16) -> Option<&settings::Pool> {
    told.pools.get(usize::from(place).checked_sub(1)?)
}

fn pool_name(told: &settings::Service, place: u16) -> &str {
    pool(told, place).map_or(DEFAULT_POOL, |it| &it.name)
}

fn balance(told: &settings::Service, place: u16) -> Balance {
    pool(told, place).map_or(told.balance, |it| it.balance)
}

/// Which pool is spoken of, where there are several.
fn of_pool(told: &settings::Service, share: Share) -> String {
    if told.pools.is_empty() {
        return String::new();
    }
    format!("pool {}: ", pool_name(told, share.pool))
}

/// The same of a connection whose TLS is passed on. The question's `Host` stands for the name that the client asks for; what
/// protocols it offers is not asked here.
fn passed(
    answer: &mut Explanation,
    told: &settings::Passthrough,
    head: &Parts,
) -> Option<Vec<Share>> {
    let name = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let hello = Hello { name: name.map(|it| it.to_ascii_lowercase().into()), alpn: Vec::new() };
    let asked = name.map_or_else(|| "no name".to_owned(), |name| format!("{name:?}"));
    match passthrough::Routes::new(told, None).find(&hello) {
        Some(way) => {
            let how = way.route.map_or_else(
                || format!("none has {asked}: it goes to the default pool"),
                |route| format!("{route:?} has {asked}"),
            );
            answer.step("route", how);
            Some(way.pools.to_vec())
        }
        None => {
            answer.step("route", format!("none has {asked}: it is refused"));
            None
        }
    }
}

fn request(question: &Question) -> Result<Parts, Refusal> {
    let invalid = |what: &str, value: &str, remedy: &str| {
        Refusal::invalid(format!("{what} {value:?} cannot stand in a request"), remedy.to_owned())
    };
    let mut headers = HeaderMap::new();
    if let Some(cookie) = &question.cookie {
        let value = HeaderValue::from_str(cookie);
        let value = value.map_err(|_| invalid("cookie", cookie, "write e.g. sluice=VALUE"))?;
        headers.insert(COOKIE, value);
    }
    if let Some(header) = &question.header {
        let wrong = || invalid("header", header, "write e.g. \"X-Room: 7\"");
        let (name, value) = header.split_once(':').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        headers.insert(name, HeaderValue::from_str(value.trim()).map_err(|_| wrong())?);
    }
    let path = question.path.as_deref().unwrap_or("/");
    let uri: Uri =
        path.parse().map_err(|_| invalid("path", path, "write e.g. \"/chat?room=7\""))?;
    let mut request = Request::new(());
    (*request.headers_mut(), *request.uri_mut()) = (headers, uri);
    Ok(request.into_parts().0)
}

/// Who of these pools gets clients that belong to nobody.
fn takers<'a>(
    told: &'a settings::Service,
    pools: &[Share],
) -> impl Iterator<Item = &'a settings::Backend> {
    let pools: Vec<u16> = pools.iter().filter(|it| it.weight > 0).map(|it| it.pool).collect();
    let takes = |it: &settings::Backend, open: bool| match it.state {
        State::Up | State::Forced => it.weight > 0,
        State::Down => open && it.weight > 0,
        State::Spare | State::Draining { .. } => false,
    };
    let backends = told.backends.iter().filter(|it| pools.contains(&it.pool));
    let backends: Vec<_> = backends.collect();
    let open = told.fail_open && !backends.iter().any(|it| takes(it, false));
    backends.into_iter().filter(move |it| takes(it, open))
}

const fn rule(balance: Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "whose turn it is",
        Balance::LeastConnections => "whoever has the fewest connections for its weight",
        Balance::Maglev => "the hash of the client's address and port",
    }
}

const fn means(sticky: Sticky) -> &'static str {
    match sticky {
        Sticky::Off => "the service keeps nobody on a backend",
        Sticky::Hit => "the cookie's backend",
        Sticky::Keyed => "the backend on which the ring has the value",
        Sticky::Missing => "the request has no such cookie, header or parameter",
        Sticky::Tampered => "the cookie is none of this edge's",
        Sticky::UnknownKey => "the cookie's key is not in the file",
        Sticky::Expired => "the cookie is beyond its time",
        Sticky::Future => "the cookie is from the future: see to the clocks of the edges",
        Sticky::UnknownBackend => "the cookie's backend was removed or renamed",
        Sticky::Down => "the cookie's backend is down",
        Sticky::Drained => "the cookie's backend drains, and the deadline is over",
        Sticky::Failed => "no backend of the ring is there for the value",
    }
}

fn state(backend: &settings::Backend) -> String {
    match backend.state {
        State::Up => format!("{} is up", backend.name),
        State::Spare => {
            format!("{} is up, and gets no newcomers as long as others are", backend.name)
        }
        State::Forced => format!("{} is down, as are too many others", backend.name),
        State::Down => format!("{} is down, and the service fails open", backend.name),
        State::Draining { until } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let left = Duration::from_millis(until).saturating_sub(now).as_secs();
            format!("{} drains: its clients may stay for {left} s", backend.name)
        }
    }
}
