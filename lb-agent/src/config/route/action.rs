//! What becomes of the requests of a route.

use std::net::IpAddr;

use lb_sidecar::settings::{Action, Answer, DEFAULT_POOL, Redirect, Share};

use super::super::address;
use super::super::nearest::nearest;
use super::super::pools::ReadPool;
use super::super::reader::{Field, Reader, Section, alternatives};
use super::path;

pub(in super::super) static REDIRECT: Section = Section {
    heading: "[service.route.redirect]",
    keys: &["status", "scheme", "host", "port", "path", "prefix", "keep_query"],
};

pub(in super::super) static ANSWER: Section =
    Section { heading: "[service.route.answer]", keys: &["status", "body", "content_type"] };

const KEYS: [&str; 4] = ["pool", "pools", "redirect", "answer"];

const MOST_BODY: usize = 65_536;

/// The default pool stands for what cannot be read.
pub(super) fn read(reader: &Reader<'_>, pools: &[ReadPool], by_prefix: bool) -> Action {
    let mut written = KEYS.iter().filter_map(|key| Some((key, reader.field(key)?)));
    let Some((first, _)) = written.next() else {
        let remedy = "add it, or one of pools, redirect and answer, e.g. pool = \"default\"";
        reader.refuse("pool", "is missing", remedy);
        return Action::Pools(vec![Share { pool: 0, weight: 1 }]);
    };
    for (_, field) in written {
        field.refuse(format!("stands beside {first}"), "write one of them");
    }
    let redirects = reader.table("redirect", &REDIRECT);
    let answers = reader.table("answer", &ANSWER);
    match (redirects, answers) {
        (Some(redirects), _) => Action::Redirect(redirect(&redirects, by_prefix)),
        (None, Some(answers)) => Action::Answer(answer(&answers)),
        (None, None) => Action::Pools(shares(reader, pools)),
    }
}

/// Of a route that can have pools alone.
pub(in super::super) fn pools(reader: &Reader<'_>, pools: &[ReadPool]) -> Vec<Share> {
    match (reader.field("pool"), reader.field("pools")) {
        (None, None) => {
            reader.refuse("pool", "is missing", "add it, or pools, e.g. pool = \"default\"");
        }
        (Some(_), Some(field)) => {
            field.refuse("stands beside pool", "write one of them");
        }
        _ => {}
    }
    shares(reader, pools)
}

fn shares(reader: &Reader<'_>, pools: &[ReadPool]) -> Vec<Share> {
    let only = |pool| vec![Share { pool, weight: 1 }];
    if let Some(field) = reader.field("pool") {
        let name = field.string(r#""canary""#);
        return only(name.and_then(|name| known(&field, name, pools)).unwrap_or(0));
    }
    let Some(field) = reader.field("pools") else { return only(0) };
    let pairs = field.pairs(65, "{ default = 95, canary = 5 }").unwrap_or_default();
    let shares = pairs.iter().filter_map(|(name, field)| {
        let weight = field.integer(&(0..=1_000), 5);
        Some(Share { pool: known(field, name, pools)?, weight: weight? })
    });
    let mut shares: Vec<Share> = shares.collect();
    if !pairs.is_empty() && shares.len() == pairs.len() && shares.iter().all(|it| it.weight == 0) {
        field.refuse("has only weights 0", "give at least one pool a weight");
    }
    // The same on every edge, in whatever order its file has them.
    shares.sort_by_key(|share| share.pool);
    shares
}

/// The number of a pool.
fn known(field: &Field<'_>, name: &str, pools: &[ReadPool]) -> Option<u16> {
    let names = || std::iter::once(DEFAULT_POOL).chain(pools.iter().map(|it| it.name.as_str()));
    let found = names().position(|known| known == name).and_then(|it| u16::try_from(it).ok());
    if found.is_none() {
        let names: Vec<&str> = names().filter(|name| !name.is_empty()).collect();
        let remedy = match nearest(name, &names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => {
                let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
                format!("write {}, or add a [[service.pool]]", alternatives(&quoted))
            }
        };
        field.refuse(format!("is not for a pool: the service has none named {name:?}"), remedy);
    }
    found
}

fn redirect(reader: &Reader<'_>, by_prefix: bool) -> Redirect {
    const STATUSES: [u32; 5] = [301, 302, 303, 307, 308];
    let status = reader.field("status").and_then(|field| {
        let status = field.integer(&(301..=308), 302)?;
        if !STATUSES.contains(&status) {
            field.refuse("is not the status of a redirect", "write 301, 302, 303, 307 or 308");
        }
        u16::try_from(status).ok()
    });
    let port = reader.field("port").and_then(|field| field.integer(&(1..=65_535), 443));
    let redirect = Redirect {
        status: status.unwrap_or(302),
        scheme: reader.field("scheme").and_then(|field| {
            field.choice(&[("https", "https"), ("http", "http")]).map(str::to_owned)
        }),
        host: reader.field("host").and_then(|field| host(&field)),
        port: port.and_then(|port| u16::try_from(port).ok()),
        path: reader.field("path").and_then(|field| path::written(&field, r#""/new""#)),
        prefix: reader.field("prefix").and_then(|field| path::prefix_for(&field, by_prefix)),
        keep_query: reader.flag("keep_query", true),
    };
    let target = ["scheme", "host", "port", "path", "prefix"];
    if target.iter().all(|key| reader.field(key).is_none()) {
        let remedy = "add it, or one of host, port, path and prefix, e.g. scheme = \"https\"";
        reader.refuse("scheme", "is missing", remedy);
    }
    if let (Some(_), Some(field)) = (reader.field("path"), reader.field("prefix")) {
        field.refuse("stands beside path", "write one of them");
    }
    redirect
}

fn host(field: &Field<'_>) -> Option<String> {
    const EXAMPLE: &str = r#""chat.example.com""#;
    let host = field.string(EXAMPLE)?.to_ascii_lowercase();
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    }
    if !address::is_dns_name(&host) {
        field.refuse("is not a host", format!("write e.g. {EXAMPLE}, and the port as port"));
        return None;
    }
    Some(host)
}

fn answer(reader: &Reader<'_>) -> Answer {
    const TYPE: &str = "text/plain; charset=utf-8";
    let status = reader.required("status", "404");
    let status = status.and_then(|field| field.integer(&(200..=599), 404)).unwrap_or(404);
    let body = reader.field("body").and_then(|field| {
        let body = field.string("\"not here\"")?;
        if body.len() > MOST_BODY {
            field.refuse("is longer than 65536 bytes", "let a backend answer");
        } else if matches!(status, 204 | 205 | 304) && !body.is_empty() {
            field.refuse(format!("is for a status that has none, {status}"), "remove it");
        }
        Some(body.to_owned())
    });
    let content_type = reader.field("content_type").and_then(|field| {
        let text = address::text(&field, 256, r#""text/html""#)?;
        if !text.contains('/') || !text.bytes().all(|it| it == b' ' || it.is_ascii_graphic()) {
            field.refuse("is not a media type", r#"write e.g. "text/html""#);
        }
        Some(text)
    });
    Answer {
        status: u16::try_from(status).unwrap_or(404),
        body: body.unwrap_or_default(),
        content_type: content_type.unwrap_or_else(|| TYPE.to_owned()),
    }
}
