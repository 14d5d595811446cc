//! The Maglev ring of a service, for what is kept on its backend by a value: the same on every edge with the same
//! `hash_seed` and backends.

use std::{cell::OnceCell, net::SocketAddr, rc::Rc};

use lb_common::{
    maglev::{self, Maglev, Member, Slots},
    ring::{NONE, SLOTS},
};
use ring::hmac;

use super::backend::Backend;

/// Further places of the ring where a value is looked up after its own backend failed.
const PROBES: u8 = 8;

/// A ring over some backends, made when it is first asked: that is milliseconds of work.
pub struct Ring {
    seed: u64,
    key: hmac::Key,
    members: Vec<(Rc<Backend>, bool)>,
    slots: OnceCell<Box<Slots>>,
}

impl Ring {
    /// Over backends with their weight, of which the live ones have slots: who goes down leaves the others' alone.
    pub fn new(seed: u64, members: Vec<(Rc<Backend>, bool)>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &seed.to_be_bytes());
        Self { seed, key, members, slots: OnceCell::new() }
    }

    /// The backend that a value belongs to, or the next that `good` allows; `None` after some tries.
    pub fn get(&self, value: &[u8], good: impl Fn(&Rc<Backend>) -> bool) -> Option<&Rc<Backend>> {
        let slots = self.slots.get_or_init(|| self.build());
        let backends = (0..=PROBES).map(|probe| slots[self.slot(probe, value)]);
        let members =
            backends.filter(|id| *id != NONE).map(|id| &self.members[usize::from(id) - 1].0);
        members.into_iter().find(|backend| good(backend))
    }

    /// Keyed: nobody who does not know the seed can aim at a backend.
    fn slot(&self, probe: u8, value: &[u8]) -> usize {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[probe]);
        context.update(value);
        let tag = context.sign();
        let hash = tag.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        (hash % SLOTS as u64) as usize
    }

    fn build(&self) -> Box<Slots> {
        let numbered = || (1_u16..).zip(&self.members);
        let members: Vec<Member> = numbered()
            .map(|(id, (backend, _))| Member {
                key: maglev::key(backend.address()),
                weight: backend.weight(),
                id,
            })
            .collect();
        let live: Vec<bool> = self.members.iter().map(|(_, live)| *live).collect();
        Maglev::build(self.seed, &members).ring(|id| live[usize::from(id) - 1])
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
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    }
}
