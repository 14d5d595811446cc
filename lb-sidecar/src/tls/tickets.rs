//! Session tickets (RFC 8446, section 4.6.1; RFC 5077), which any worker of any edge with the same keys can read.
//!
//! ```text
//! key's name (8 bytes) | salt (16) | nonce (12) | AES-256-GCM of: issued (4, seconds of Unix time) | session | tag (16)
//! ```
//!
//! Each ticket is sealed with a key of its own, derived from the file's key, the service and the salt: no nonce can come
//! twice, and a ticket of one service, or of one with other rules for client certificates, means nothing to another.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{aead, hmac};
use rustls::server::ProducesTickets;

use crate::settings::{TicketKey, Tls};

/// How long a session may be taken up again: half a day.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(LIFETIME as u64);

/// The same in seconds.
const LIFETIME: u32 = 12 * 3_600;

/// How far apart the clocks of edges may be.
const SKEW: u32 = 300;

/// Longer ones are none: two chains of certificates would fit.
const MOST_BYTES: usize = 32 << 10;

const NAME: usize = 8;
const SALT: usize = 16;
const HEAD: usize = NAME + SALT + aead::NONCE_LEN;

/// Makes and reads the tickets of a service.
pub struct Tickets {
    /// The first one seals.
    keys: Vec<Key>,
    now: fn() -> u32,
}

struct Key {
    name: [u8; NAME],
    secret: hmac::Key,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    /// Keys that cannot be read are left out: whoever sends the settings has checked them.
    pub fn new(service: &str, tls: &Tls, keys: &[TicketKey]) -> Self {
        let auth = tls.client_auth.as_ref();
        let rules = auth.map_or(String::new(), |auth| format!("{} {}", auth.required, auth.ca));
        let keys = keys.iter().filter_map(|key| {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(&key.secret).ok()?);
            let derived = |what: &str| {
                let mut context = hmac::Context::with_key(&secret);
                for part in ["sluice ticket 1", what, service, &key.id, &rules] {
                    context.update(&(part.len() as u64).to_be_bytes());
                    context.update(part.as_bytes());
                }
                context.sign()
            };
            let mut name = [0; NAME];
            name.copy_from_slice(&derived("name").as_ref()[..NAME]);
            let secret = hmac::Key::new(hmac::HMAC_SHA256, derived("key").as_ref());
            Some(Key { name, secret })
        });
        Self { keys: keys.collect(), now: unix }
    }
}

impl Key {
    fn of_ticket(&self, salt: &[u8]) -> Option<aead::LessSafeKey> {
        let bytes = hmac::sign(&self.secret, salt);
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, bytes.as_ref()).ok()?;
        Some(aead::LessSafeKey::new(key))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let random: [u8; SALT + aead::NONCE_LEN] = rand::random();
        let mut ticket = Vec::with_capacity(HEAD + 4 + session.len() + aead::AES_256_GCM.tag_len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&random);
        ticket.extend_from_slice(&(self.now)().to_be_bytes());
        ticket.extend_from_slice(session);
        let (head, body) = ticket.split_at_mut(HEAD);
        let nonce = aead::Nonce::try_assume_unique_for_key(&head[NAME + SALT..]).ok()?;
        let sealer = key.of_ticket(&head[NAME..NAME + SALT])?;
        let tag = sealer.seal_in_place_separate_tag(nonce, aead::Aad::from(&*head), body).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MOST_BYTES {
            return None;
        }
        let (head, body) = ticket.split_at_checked(HEAD)?;
        let key = self.keys.iter().find(|key| key.name == head[..NAME])?;
        let nonce = aead::Nonce::try_assume_unique_for_key(&head[NAME + SALT..]).ok()?;
        let opener = key.of_ticket(&head[NAME..NAME + SALT])?;
        let mut body = body.to_vec();
        let plain = opener.open_in_place(nonce, aead::Aad::from(head), &mut body).ok()?;
        let (issued, session) = plain.split_first_chunk()?;
        let (issued, now) = (u32::from_be_bytes(*issued), (self.now)());
        let is_timely =
            issued <= now.saturating_add(SKEW) && now.saturating_sub(issued) <= LIFETIME;
        is_timely.then(|| session.to_vec())
    }
}

/// Unix time, which fits until 2106.
fn unix() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn key(id: &str, byte: u8) -> TicketKey {
        TicketKey { id: id.to_owned(), secret: STANDARD.encode([byte; 32]) }
    }

    fn tickets(service: &str, keys: &[TicketKey]) -> Tickets {
        Tickets::new(service, &Tls::default(), keys)
    }

    #[test]
    fn any_edge_with_the_key_reads_them_until_it_is_gone() {
        let (old, new) = (key("k1", 1), key("k2", 2));
        let ticket = tickets("chat", slice::from_ref(&old)).encrypt(b"session").unwrap();
        let read = |service, keys: &[TicketKey]| tickets(service, keys).decrypt(&ticket);
        assert_eq!(read("chat", slice::from_ref(&old)).unwrap(), b"session");
        assert_eq!(read("chat", &[new.clone(), old.clone()]).unwrap(), b"session");
        assert_eq!(read("chat", &[new]), None);
        assert_eq!(read("other", slice::from_ref(&old)), None, "another service's");
        assert_eq!(read("chat", &[key("k1", 3)]), None, "another secret of that name");
        let again = tickets("chat", &[old]).encrypt(b"session").unwrap();
        assert_ne!(ticket, again);
    }

    #[test]
    fn other_rules_for_client_certificates_make_other_tickets() {
        use crate::settings::ClientAuth;
        let auth = ClientAuth { ca: "ca".into(), required: true, header: None };
        let strict = Tls { client_auth: Some(auth), ..Tls::default() };
        let keys = [key("k1", 1)];
        let ticket = tickets("chat", &keys).encrypt(b"session").unwrap();
        assert_eq!(Tickets::new("chat", &strict, &keys).decrypt(&ticket), None);
    }

    #[test]
    fn what_is_changed_cut_or_too_old_is_none() {
        let mut tickets = tickets("chat", &[key("k1", 1)]);
        tickets.now = || 1_000_000;
        let ticket = tickets.encrypt(b"session").unwrap();
        assert!(tickets.decrypt(&ticket).is_some());
        for n in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[n] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "byte {n}");
            assert_eq!(tickets.decrypt(&ticket[..n]), None, "the first {n}");
        }
        assert_eq!(tickets.decrypt(&vec![0; MOST_BYTES + 1]), None);
        tickets.now = || 1_000_000 + LIFETIME;
        assert!(tickets.decrypt(&ticket).is_some());
        tickets.now = || 1_000_001 + LIFETIME;
        assert_eq!(tickets.decrypt(&ticket), None);
        tickets.now = || 1_000_000 - SKEW - 1;
        assert_eq!(tickets.decrypt(&ticket), None, "from the future");
    }

    #[test]
    fn without_a_key_there_are_none() {
        let tickets = tickets("chat", &[]);
        assert!(!tickets.enabled());
        assert_eq!((tickets.encrypt(b"x"), tickets.decrypt(b"x")), (None, None));
    }
}
