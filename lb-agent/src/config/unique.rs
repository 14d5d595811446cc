//! Refuses the second of two equal values.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::error::{Place, Problems};

/// The values seen so far, with where each was first.
pub(super) struct Unique<'a, T> {
    problems: &'a Problems<'a>,
    seen: HashMap<T, Place>,
}

impl<'a, T: Hash + Eq> Unique<'a, T> {
    pub fn new(problems: &'a Problems<'a>) -> Self {
        Self { problems, seen: HashMap::new() }
    }

    /// Whether the value is new. If it is not, that is reported, with the line of the first.
    pub fn insert(&mut self, value: T, place: &Place, remedy: &str) -> bool {
        let first = match self.seen.entry(value) {
            Entry::Vacant(vacant) => {
                vacant.insert(place.clone());
                return true;
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let taken = if first.thing == place.thing {
            format!("is already on line {}", first.line)
        } else {
            format!("is already taken by {} on line {}", first.thing, first.line)
        };
        self.problems.error(place, taken, remedy);
        false
    }
}
