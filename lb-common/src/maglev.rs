//! The ring of a service: which backend a client's hash falls on.
//!
//! The ring has the form that Maglev hashing gave it (Eisenbud et al., NSDI 2016, section 3.4): a
//! prime number of slots, one look-up per pick. It is filled in another way, because the paper's
//! turn-taking couples all backends: whoever leaves shifts the turns of all others. Here every slot
//! ranks the backends by weighted rendezvous hashing, which couples nobody, and only what rendezvous
//! hashing leaves uneven is evened out:
//!
//! 1. A slot goes to the backend that it ranks first. Shares are right on average only.
//! 2. A backend that got more than its share keeps the slots which rank it best; the others go to
//!    the backend ranked next among those which still lack slots, until every share is exact.
//!
//! A share is the weight's part of the ring rounded up or down, so it is less than one slot off. Of 100
//! backends with equal weights step 2 touches 1.5 % of the slots, and those mostly go the same
//! way again when the pool changes.
//!
//! While a backend is down, [`Maglev::ring`] gives its slots to the others and moves no other slot.
//! Every slot has a fixed order of backends: its own, a second one, and then all of them as it ranks
//! them; it goes to the first that is live. So a ring depends on the members and on who is live, never
//! on the order of events, and two edges that see the same see the same ring. The second ones of a
//! backend's slots are evened out as in step 2: with one backend down no share is two slots off. With
//! more of them down the slots which lost both are spread at random (half of 100 down: 3 % at worst).
//!
//! Only integers and IEEE 754 additions, multiplications and divisions are used, which are exact to
//! the bit everywhere; `ln` of a C library is not.
//!
//! This module knows nothing of services, health or maps.

use std::net::{IpAddr, SocketAddr};

use crate::ring::{NONE, SLOTS};

/// The slots of a ring: the memory of [`crate::ring::Ring`].
pub type Slots = [u16; SLOTS];

/// A backend that wants its share of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Stands for the backend on every edge alike: see [`key`].
    pub key: u64,
    /// Its share in proportion to the sum of all weights; 0: no slot.
    pub weight: u32,
    /// What the slots hold; not [`NONE`].
    pub id: u16,
}

/// The key of a backend: a hash of its address and port, which unlike its id and its place in the
/// config are the same on every edge.
pub fn key(addr: SocketAddr) -> u64 {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    // The IP version keeps ::10.0.0.1 apart from 10.0.0.1.
    let state = mix(u64::from(addr.is_ipv6()) << 16 | u64::from(addr.port()));
    mix(mix(state ^ (ip >> 64) as u64) ^ ip as u64)
}

/// The slots of a pool with all members live, and what is needed to go on without some.
#[derive(Clone, Debug)]
pub struct Maglev {
    seed: u64,
    members: Vec<Candidate>,
    /// Index into `members` for each slot; empty without members.
    owners: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Key and seed, mixed: what its ranks are hashed from.
    hash: u64,
    weight: u32,
    /// Average weight / weight: its handicap in the ranking.
    handicap: f64,
    id: u16,
}

impl Maglev {
    /// Shares the ring out among the members, whatever their order and their ids.
    ///
    /// The seed is the edge's: nobody who does not know it can aim at a backend.
    pub fn build(seed: u64, members: &[Member]) -> Self {
        let seed = mix(seed);
        let mut members: Vec<Candidate> = members
            .iter()
            .filter(|member| member.weight > 0)
            .map(|member| Candidate {
                hash: mix(member.key ^ seed),
                weight: member.weight,
                handicap: 1.0 / f64::from(member.weight),
                id: member.id,
            })
            .collect();
        members.sort_unstable_by_key(|member| (member.hash, member.weight, member.id));

        let mut owners = Vec::new();
        if !members.is_empty() {
            owners.resize(SLOTS, 0);
            let everyone = (0..members.len()).collect();
            deal(&members, everyone, (0..SLOTS).collect(), seed, |slot, owner| {
                owners[slot] = owner as u16;
            });
        }
        Self { seed, members, owners }
    }

    /// The ring for those members for whose id `live` holds; all [`NONE`] if there are none.
    pub fn ring(&self, live: impl Fn(u16) -> bool) -> Box<Slots> {
        let mut ring: Box<Slots> =
            vec![NONE; SLOTS].try_into().expect("the vector has SLOTS elements");
        let is_live: Vec<bool> = self.members.iter().map(|member| live(member.id)).collect();
        let survivors: Vec<usize> = (0..self.members.len()).filter(|&n| is_live[n]).collect();
        if survivors.is_empty() {
            return ring;
        }
        let mut survivors = Ranking::new(&self.members, &survivors);

        let mut orphans = vec![Vec::new(); self.members.len()];
        for (slot, &owner) in self.owners.iter().enumerate() {
            match is_live[usize::from(owner)] {
                true => ring[slot] = self.members[usize::from(owner)].id,
                false => orphans[usize::from(owner)].push(slot),
            }
        }
        for (down, slots) in orphans.into_iter().enumerate() {
            let others = (0..self.members.len()).filter(|&other| other != down).collect();
            let salt = mix(self.seed ^ self.members[down].hash);
            deal(&self.members, others, slots, salt, |slot, second| {
                let owner = match is_live[second] {
                    true => second,
                    false => survivors.first(slot).0,
                };
                ring[slot] = self.members[owner].id;
            });
        }
        ring
    }
}

/// Deals slots out to some of the members, each getting its weight's part rounded up or down.
fn deal(
    members: &[Candidate],
    mut takers: Vec<usize>,
    mut slots: Vec<usize>,
    salt: u64,
    mut give: impl FnMut(usize, usize),
) {
    let mut wanted = vec![0; members.len()];
    let parts = parts(slots.len(), takers.iter().map(|&taker| members[taker].weight), salt);
    for (&taker, part) in takers.iter().zip(parts) {
        wanted[taker] = part;
    }

    let mut claims = vec![Vec::new(); members.len()];
    while !slots.is_empty() {
        // Each round places a slot at least, since the parts add up to the number of slots.
        takers.retain(|&taker| wanted[taker] > 0);
        let mut ranking = Ranking::new(members, &takers);
        for slot in slots.drain(..) {
            let (taker, rank) = ranking.first(slot);
            claims[taker].push((rank, slot));
        }
        for &taker in &takers {
            let claims = &mut claims[taker];
            let kept = claims.len().min(wanted[taker]);
            if kept < claims.len() {
                claims.select_nth_unstable_by(kept, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                slots.extend(claims.drain(kept..).map(|(_, slot)| slot));
            }
            wanted[taker] -= kept;
            claims.drain(..).for_each(|(_, slot)| give(slot, taker));
        }
    }
}

/// The parts of `total` in proportion to the weights, each rounded up or down, adding up to `total`.
///
/// The salt decides who is rounded up, each with the probability of his fraction (systematic
/// sampling): the largest remainders would always favour the same members, and the errors of many
/// small parts would add up.
fn parts(total: usize, weights: impl Iterator<Item = u32> + Clone, salt: u64) -> Vec<usize> {
    let sum: u128 = weights.clone().map(u128::from).sum();
    let offset = (sum * u128::from(mix(salt))) >> 64;
    let mut upto = 0;
    let mut given = 0;
    weights
        .map(|weight| {
            upto += u128::from(weight);
            let before = given;
            given = (upto * total as u128 + offset) / sum;
            (given - before) as usize
        })
        .collect()
}

/// Finds which of some members a slot ranks first.
///
/// Weighted rendezvous hashing: an exponentially distributed number for each member, divided by its
/// weight; the least of them belongs to each member with the probability of its weight's share.
struct Ranking<'a> {
    takers: &'a [usize],
    /// Hash and handicap of each taker, side by side.
    odds: Vec<(u64, f64)>,
    /// A lower bound for each taker's rank; kept for its memory only.
    bounds: Vec<f64>,
}

impl<'a> Ranking<'a> {
    fn new(members: &[Candidate], takers: &'a [usize]) -> Self {
        let odds = takers.iter().map(|&n| (members[n].hash, members[n].handicap)).collect();
        Self { takers, odds, bounds: vec![0.0; takers.len()] }
    }

    /// The taker that the slot ranks first, and the rank: the lower, the better.
    fn first(&mut self, slot: usize) -> (usize, f64) {
        let place = mix(slot as u64);
        // x <= -ln(1 - x), and nearly equal where it matters: a taker whose bound is above the rank
        // of the one with the least bound is out without a logarithm, and that is nearly everyone.
        let mut least = f64::INFINITY;
        let mut first = 0;
        for (n, (&(hash, handicap), bound)) in self.odds.iter().zip(&mut self.bounds).enumerate() {
            *bound = uniform(hash, place) * handicap;
            if *bound < least {
                (first, least) = (n, *bound);
            }
        }
        let rank = |(hash, handicap)| exponential(uniform(hash, place)) * handicap;
        let mut best = (first, rank(self.odds[first]));
        for (n, &bound) in self.bounds.iter().enumerate() {
            if bound < best.1 {
                let rank = rank(self.odds[n]);
                if rank < best.1 {
                    best = (n, rank);
                }
            }
        }
        (self.takers[best.0], best.1)
    }
}

/// 2^64 / golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of MurmurHash3 (public domain): every input bit reaches every output bit.
fn mix(mut state: u64) -> u64 {
    state = (state ^ GOLDEN).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ state >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ state >> 33
}

/// A number of [0, 1), evenly distributed, for a slot and a member which are mixed already: so one
/// multiplication with both halves of its product folded (as in wyhash, public domain) does.
#[inline]
fn uniform(hash: u64, place: u64) -> f64 {
    let product = u128::from(hash ^ place) * 0xe703_7ed1_a0b4_28db;
    let folded = (product >> 64) as u64 ^ product as u64;
    (folded >> 32) as f64 * (1.0 / (1u64 << 32) as f64)
}

/// `-ln(1 - x)` for `x` of [0, 1), the same to the last bit on every machine.
fn exponential(x: f64) -> f64 {
    let y = 1.0 - x;
    // y = mantissa * 2^exponent with the mantissa in [1, 2).
    let exponent = (y.to_bits() >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(y.to_bits() & ((1 << 52) - 1) | 1023 << 52);
    // ln m = 2 artanh z; z <= 1/3, so what is cut off of the series is below 1e-9.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let zz = z * z;
    let series = (0..9).rev().fold(0.0, |sum, n| sum * zz + 1.0 / f64::from(2 * n + 1));
    -f64::from(exponent) * std::f64::consts::LN_2 - 2.0 * z * series
}

#[cfg(test)]
mod tests;
