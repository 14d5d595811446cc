//! From the results of probes to a state. Pure: no clock, no I/O.

use std::fmt;

use super::failure::Failure;

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not judged yet: the first success brings it up, `fall` failures in a row bring it down.
    Unknown,
    /// Healthy.
    Up,
    /// Failed.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// State before.
    pub from: State,
    /// State from now on; never [`State::Unknown`], never equal to `from`.
    pub to: State,
    /// The failure that tipped the scale; `None` when the backend came up.
    pub reason: Option<Failure>,
}

/// Counts results in a row and decides when they amount to a change of state.
#[derive(Clone, Debug)]
pub struct Judge {
    rise: u32,
    fall: u32,
    state: State,
    /// Results in a row that speak against `state`; for `Unknown`, failures.
    streak: u32,
}

impl Judge {
    /// A judge that starts in `initial`. `rise` and `fall` of 0 count as 1.
    #[must_use]
    pub fn new(rise: u32, fall: u32, initial: State) -> Self {
        Self { rise: rise.max(1), fall: fall.max(1), state: initial, streak: 0 }
    }

    /// The state as judged so far.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes the result of one probe, in the order in which probes end.
    ///
    /// A failure of the edge itself ([`Failure::is_local`]) says nothing about the backend: it neither counts nor
    /// breaks a row.
    pub fn observe(&mut self, result: Result<(), Failure>) -> Option<Transition> {
        if result.as_ref().is_err_and(Failure::is_local) {
            return None;
        }
        let (to, needed) = match (self.state, &result) {
            (State::Unknown, Ok(())) => (State::Up, 1),
            (State::Down, Ok(())) => (State::Up, self.rise),
            (State::Unknown | State::Up, Err(_)) => (State::Down, self.fall),
            (State::Up, Ok(())) | (State::Down, Err(_)) => {
                self.streak = 0;
                return None;
            }
        };
        self.streak += 1;
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        let from = std::mem::replace(&mut self.state, to);
        Some(Transition { from, to, reason: result.err() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::{ConnectError, Stage};

    fn failure() -> Failure {
        Failure::Closed { stage: Stage::Head }
    }

    fn local() -> Failure {
        Failure::Connect(ConnectError::Socket { errno: nix::errno::Errno::EMFILE })
    }

    /// Runs a word of `+` (success), `-` (failure) and `.` (the edge's own failure); yields the states after each.
    fn run(rise: u32, fall: u32, initial: State, word: &str) -> String {
        let mut judge = Judge::new(rise, fall, initial);
        word.chars()
            .map(|c| {
                judge.observe(match c {
                    '+' => Ok(()),
                    '.' => Err(local()),
                    _ => Err(failure()),
                });
                match judge.state() {
                    State::Unknown => '?',
                    State::Up => 'U',
                    State::Down => 'D',
                }
            })
            .collect()
    }

    #[test]
    fn states_follow_results() {
        use State::{Down, Unknown, Up};
        for (what, initial, word, states) in [
            ("the first success is enough to begin with", Unknown, "+", "U"),
            ("a success after failures too", Unknown, "--+", "??U"),
            ("fall failures to begin with", Unknown, "---", "??D"),
            ("fall failures in a row", Up, "--+---", "UUUUUD"),
            ("rise successes in a row", Down, "+-++", "DDDU"),
            ("the edge's own failures do not count", Up, "......", "UUUUUU"),
            ("nor do they break a row", Up, "-.-.-", "UUUUD"),
            ("nor a row of successes", Down, "+.+", "DDU"),
            ("once more from the beginning after a change", Up, "---++--", "UUDDUUU"),
        ] {
            assert_eq!(run(2, 3, initial, word), states, "{what}");
        }
    }

    #[test]
    fn a_transition_carries_the_failure_that_tipped_it() {
        let mut judge = Judge::new(1, 1, State::Up);
        let down = judge.observe(Err(failure())).unwrap();
        assert_eq!(down, Transition { from: State::Up, to: State::Down, reason: Some(failure()) });
        let up = judge.observe(Ok(())).unwrap();
        assert_eq!(up, Transition { from: State::Down, to: State::Up, reason: None });
    }

    proptest! {
        /// The definition, checked against all results so far: down after `fall` failures in a row, up after `rise`
        /// successes in a row, no change otherwise, and a transition is reported exactly when the state changes.
        #[test]
        fn agrees_with_the_definition(rise in 1u32..6, fall in 1u32..6, results in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut judge = Judge::new(rise, fall, State::Unknown);
            let mut before = State::Unknown;
            for end in 1..=results.len() {
                let seen = &results[..end];
                let last = seen[end - 1];
                let row = seen.iter().rev().take_while(|&&r| r == last).count();
                let expected = match (before, last) {
                    (State::Unknown, true) => State::Up,
                    (State::Down, true) if row >= rise as usize => State::Up,
                    (State::Unknown | State::Up, false) if row >= fall as usize => State::Down,
                    _ => before,
                };
                let transition = judge.observe(if last { Ok(()) } else { Err(failure()) });
                prop_assert_eq!(judge.state(), expected);
                prop_assert_eq!(transition.map(|t| (t.from, t.to)), (before != expected).then_some((before, expected)));
                before = expected;
            }
        }

        /// From any state, `fall` failures lead to down and `rise` successes to up: no backend is stuck.
        #[test]
        fn nothing_is_stuck(rise in 0u32..9, fall in 0u32..9, results in prop::collection::vec(any::<bool>(), 0..50)) {
            let mut judge = Judge::new(rise, fall, State::Unknown);
            for result in results {
                judge.observe(if result { Ok(()) } else { Err(failure()) });
            }
            for _ in 0..fall.max(1) {
                judge.observe(Err(failure()));
            }
            prop_assert_eq!(judge.state(), State::Down);
            for _ in 0..rise.max(1) {
                judge.observe(Ok(()));
            }
            prop_assert_eq!(judge.state(), State::Up);
        }
    }
}
