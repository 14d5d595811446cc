//! The signed cookie: which backend a client belongs to, and since when.
//!
//! ```text
//! 1.KEY.PAYLOAD   KEY: id of the signing key
//!                 PAYLOAD: base64url of  backend id (8 bytes) | issued (4) | expires (4) | HMAC-SHA256 (32)
//! ```
//!
//! Times are seconds of Unix time, big-endian; `expires` 0 is a cookie for the browser's session. The HMAC (RFC 2104)
//! is made with a key of the service's own, derived from the file's key and the names of service, cookie and key: a cookie
//! of one service means nothing to another.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::header::HeaderValue;
use ring::hmac;

use super::sticky::Sticky;
use crate::settings::{self, CookieKey, SameSite};

/// How far apart the clocks of edges may be.
const SKEW: u32 = 300;

const BACKEND: usize = 8;
const SIGNED: usize = BACKEND + 4 + 4;
const WHOLE: usize = SIGNED + 32;

/// A backend as cookies name it.
pub type Id = [u8; BACKEND];

/// [`settings::Backend::id`], read; `None` if it is none.
pub fn id(text: &str) -> Option<Id> {
    let digits = text.len() == 2 * BACKEND && text.bytes().all(|it| it.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits).map(u64::to_be_bytes)
}

/// What a cookie says whose signature holds and whose time is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub backend: Id,
    /// Whether it should be replaced by a fresh one.
    pub stale: bool,
}

/// Makes and reads the cookies of a service.
pub struct Signer {
    /// Ids and the keys derived for this service.
    keys: Vec<(String, hmac::Key)>,
    name: String,
    ttl: Option<u32>,
    attributes: String,
}

impl Signer {
    /// Keys that cannot be read are left out: whoever sends the settings has checked them.
    pub fn new(service: &str, cookie: &settings::Cookie, keys: &[CookieKey]) -> Self {
        let keys = keys.iter().filter_map(|key| {
            let secret = STANDARD.decode(&key.secret).ok()?;
            Some((key.id.clone(), derived(&secret, [service, &cookie.name, &key.id])))
        });
        Self {
            keys: keys.collect(),
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(seconds),
            attributes: attributes(cookie),
        }
    }

    /// The name of the cookie.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Set-Cookie header that gives a client to a backend. `None` without a key.
    pub fn set_cookie(&self, backend: Id, now: SystemTime) -> Option<HeaderValue> {
        let (id, key) = self.keys.first()?;
        let issued = unix(now);
        let expires = self.ttl.map_or(0, |ttl| issued.saturating_add(ttl));
        let mut whole = [0; WHOLE];
        whole[..BACKEND].copy_from_slice(&backend);
        whole[BACKEND..BACKEND + 4].copy_from_slice(&issued.to_be_bytes());
        whole[BACKEND + 4..SIGNED].copy_from_slice(&expires.to_be_bytes());
        let tag = hmac::sign(key, &whole[..SIGNED]);
        whole[SIGNED..].copy_from_slice(tag.as_ref());
        let payload = URL_SAFE_NO_PAD.encode(whole);
        HeaderValue::try_from(format!("{}=1.{id}.{payload}{}", self.name, self.attributes)).ok()
    }

    /// Reads the value of a cookie.
    pub fn read(&self, value: &[u8], now: SystemTime) -> Result<Read, Sticky> {
        let (id, whole) = parts(value).ok_or(Sticky::Tampered)?;
        let place = self.keys.iter().position(|(known, _)| known.as_bytes() == id);
        let place = place.ok_or(Sticky::UnknownKey)?;
        let key = &self.keys[place].1;
        let (payload, tag) = whole.split_at(SIGNED);
        hmac::verify(key, payload, tag).map_err(|_| Sticky::Tampered)?;

        let (backend, times) = payload.split_first_chunk().ok_or(Sticky::Tampered)?;
        let (issued, expires) = times.split_first_chunk().ok_or(Sticky::Tampered)?;
        let issued = u32::from_be_bytes(*issued);
        let expires = u32::from_be_bytes(*expires.first_chunk().ok_or(Sticky::Tampered)?);
        let now = unix(now);
        if issued > now.saturating_add(SKEW) {
            return Err(Sticky::Future);
        }
        if expires != 0 && expires <= now {
            return Err(Sticky::Expired);
        }
        let wanted = self.ttl.map_or(0, |ttl| issued.saturating_add(ttl));
        let half_over = self.ttl.is_some_and(|ttl| now.saturating_sub(issued) > ttl / 2);
        let stale = place > 0 || expires != wanted || half_over;
        Ok(Read { backend: *backend, stale })
    }
}

/// The key that signs for some names only.
fn derived(secret: &[u8], names: [&str; 3]) -> hmac::Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(b"sluice cookie 1");
    for name in names {
        // No name has a NUL.
        context.update(b"\0");
        context.update(name.as_bytes());
    }
    hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
}

/// Key id and payload of a cookie that has the form of one.
fn parts(value: &[u8]) -> Option<(&[u8], [u8; WHOLE])> {
    let rest = value.strip_prefix(b"1.")?;
    let dot = rest.iter().position(|byte| *byte == b'.')?;
    let (id, payload) = (&rest[..dot], &rest[dot + 1..]);
    let mut whole = [0; WHOLE];
    // A longer payload does not fit, and a shorter one does not fill.
    let length = URL_SAFE_NO_PAD.decode_slice(payload, &mut whole).ok()?;
    (length == WHOLE).then_some((id, whole))
}

/// Everything of the header after the value (RFC 6265, section 4.1.1; SameSite: RFC 6265bis).
fn attributes(cookie: &settings::Cookie) -> String {
    let mut text = format!("; Path={}", cookie.path);
    if let Some(domain) = &cookie.domain {
        _ = write!(text, "; Domain={domain}");
    }
    if let Some(ttl) = cookie.ttl {
        _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if cookie.secure {
        text.push_str("; Secure");
    }
    if cookie.http_only {
        text.push_str("; HttpOnly");
    }
    text.push_str(match cookie.same_site {
        Some(SameSite::Strict) => "; SameSite=Strict",
        Some(SameSite::Lax) => "; SameSite=Lax",
        Some(SameSite::None) => "; SameSite=None",
        None => "",
    });
    text
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Unix time, which fits until 2106.
fn unix(time: SystemTime) -> u32 {
    time.duration_since(UNIX_EPOCH).map_or(0, seconds)
}

#[cfg(test)]
mod tests;
