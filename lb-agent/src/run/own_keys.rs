//! The keys that an agent without a file of ticket keys makes for itself, and changes while it runs.
//!
//! A key seals tickets for as long as a ticket is good, and opens them for as long again: so no session is refused
//! because of a change, and after two lifetimes nobody can open what a key has sealed, for it is nowhere any more.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lb_sidecar::{settings::TicketKey, tls::TICKET_LIFETIME};

/// Those of this process, whatever configuration it runs.
static OWN: Mutex<OwnKeys> = Mutex::new(OwnKeys::NONE);

/// The keys of this moment: the first one seals, all of them open.
pub fn now() -> Vec<TicketKey> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now())
}

/// Whether [`now`] has something new.
pub fn are_due() -> bool {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).are_due(Instant::now())
}

struct OwnKeys {
    current: Option<(TicketKey, Instant)>,
    /// The one before.
    last: Option<TicketKey>,
}

impl OwnKeys {
    const NONE: Self = Self { current: None, last: None };

    fn at(&mut self, now: Instant) -> Vec<TicketKey> {
        if self.current.is_none() || self.are_due(now) {
            self.last = self.current.replace((fresh(), now)).map(|(key, _)| key);
        }
        self.current.iter().map(|(key, _)| key).chain(&self.last).cloned().collect()
    }

    fn are_due(&self, now: Instant) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|(_, since)| now.saturating_duration_since(*since) >= TICKET_LIFETIME)
    }
}

fn fresh() -> TicketKey {
    TicketKey {
        id: format!("own-{:08x}", rand::random::<u32>()),
        secret: STANDARD.encode(rand::random::<[u8; 32]>()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MOMENT: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_seals_for_a_lifetime_and_opens_for_another() {
        let mut keys = OwnKeys::NONE;
        let begin = Instant::now();
        let [first] = keys.at(begin).try_into().unwrap();
        assert!(!keys.are_due(begin + TICKET_LIFETIME - MOMENT));
        assert_eq!(keys.at(begin + TICKET_LIFETIME - MOMENT), std::slice::from_ref(&first));

        let changed = begin + TICKET_LIFETIME;
        assert!(keys.are_due(changed));
        let [second, opens] = keys.at(changed).try_into().unwrap();
        assert_ne!(second, first);
        assert_eq!(opens, first);
        assert!(!keys.are_due(changed));

        let [third, opens] = keys.at(changed + TICKET_LIFETIME).try_into().unwrap();
        assert!(third != first && third != second);
        assert_eq!(opens, second, "the first key is nowhere any more");
    }
}
