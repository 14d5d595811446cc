//! The Maglev ring of a service, for what is kept on its backend by a value: the same on every edge with the same
//! `hash_seed` and backends.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use lb_common::{
    maglev::{self, Maglev, Member, Slots},
    ring::{NONE, SLOTS},
};
use ring::hmac;

use super::backend::Backend;

/// Further places of the ring where a value is looked up after its own backend failed.
const PROBES: u8 = 8;

/// Stands where the number of a probe does, for [`Ring::point`].
const POINT: u8 = u8::MAX;

/// A ring over some backends, made when it is first asked: that is milliseconds of work. So it is kept for as long as
/// nothing changes that it depends on.
pub struct Ring {
    seed: u64,
    key: hmac::Key,
    backends: Vec<Rc<Backend>>,
    /// Of the same places; the id is the place, counted from 1.
    members: Vec<Member>,
    live: Vec<bool>,
    whole: OnceCell<Rc<Maglev>>,
    slots: OnceCell<Rc<Slots>>,
}

impl Ring {
    /// Over backends with their weight, of which the live ones have slots: who goes down leaves the others' alone.
    pub fn new(seed: u64, backends: Vec<(Rc<Backend>, bool)>, before: Option<&Self>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &seed.to_be_bytes());
        let (backends, live): (Vec<Rc<Backend>>, Vec<bool>) = backends.into_iter().unzip();
        let members = (1..).zip(&backends).map(|(id, backend)| {
            // By its name, as in cookies: one that moves to another address keeps its values.
            let named = backend.cookie.map(u64::from_be_bytes);
            let key = named.unwrap_or_else(|| maglev::key(backend.address()));
            Member { key, weight: backend.weight(), id }
        });
        let members = members.collect();
        let (mut whole, mut slots) = (OnceCell::new(), OnceCell::new());
        if let Some(before) = before.filter(|it| it.seed == seed && it.members == members) {
            whole = before.whole.clone();
            if before.live == live {
                slots = before.slots.clone();
            }
        }
        Self { seed, key, backends, members, live, whole, slots }
    }

    /// The backend that a value belongs to, or the next that `good` allows; `None` after some tries.
    pub fn get(&self, value: &[u8], good: impl Fn(&Rc<Backend>) -> bool) -> Option<&Rc<Backend>> {
        let slots = self.slots.get_or_init(|| self.build());
        let backends = (0..=PROBES).map(|probe| slots[self.slot(probe, value)]);
        let mut backends =
            backends.filter(|id| *id != NONE).map(|id| &self.backends[usize::from(id) - 1]);
        backends.find(|backend| good(backend))
    }

    /// Keyed: nobody who does not know the seed can aim at a backend.
    fn slot(&self, probe: u8, value: &[u8]) -> usize {
        (self.hash(probe, value) % SLOTS as u64) as usize
    }

    /// Where a value lies in the whole, which does not depend on backends.
    pub fn point(&self, value: &[u8]) -> u32 {
        (self.hash(POINT, value) >> 32) as u32
    }

    fn hash(&self, probe: u8, value: &[u8]) -> u64 {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[probe]);
        context.update(value);
        let tag = context.sign();
        tag.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }

    /// What was made so far.
    #[cfg(test)]
    pub fn made(&self) -> (Option<Rc<Maglev>>, Option<Rc<Slots>>) {
        (self.whole.get().cloned(), self.slots.get().cloned())
    }

    fn build(&self) -> Rc<Slots> {
        let whole = self.whole.get_or_init(|| Rc::new(Maglev::build(self.seed, &self.members)));
        whole.ring(|id| self.live[usize::from(id) - 1]).into()
    }
}

/// A client's address and port as a value of the ring.
pub fn bytes_of(client: SocketAddr) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&source_bytes(client));
    bytes[16..].copy_from_slice(&client.port().to_be_bytes());
    bytes
}

/// A client's address as a value of the ring.
pub fn source_bytes(client: SocketAddr) -> [u8; 16] {
    match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}
