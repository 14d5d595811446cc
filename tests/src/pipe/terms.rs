//! What a client wants of a pipe, as the query of its request.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::PATH;
use crate::chat::{Pattern, Side};

/// How an end leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN, and wait for the other one's.
    Fin,
    /// RST.
    Reset,
    /// FIN; the other end goes on for a while.
    Half,
}

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Sends back what it gets.
    Echo,
    /// Sends so many bytes of its own stream, in pieces with pauses between them, and checks what it gets.
    /// When it has sent all and the client has closed its direction, it tells how many bytes it got. If it is
    /// `awaited`, it does not begin before the client has.
    Stream { bytes: u64, piece: usize, pause: Duration, awaited: bool },
}

/// One pipe's agreement. A session's number is used once per seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub seed: u64,
    pub session: u64,
    pub mode: Mode,
    /// After so many bytes from the client the server leaves.
    pub end: Option<(u64, Ending)>,
}

impl Terms {
    #[must_use]
    pub const fn echo(seed: u64, session: u64) -> Self {
        Self { seed, session, mode: Mode::Echo, end: None }
    }

    /// As fast as it goes in both directions.
    #[must_use]
    pub const fn stream(seed: u64, session: u64, bytes: u64) -> Self {
        let pause = Duration::ZERO;
        let mode = Mode::Stream { bytes, piece: super::PIECE, pause, awaited: false };
        Self { seed, session, mode, end: None }
    }

    /// As fast as it goes, once the client begins: until then there is peace for a splice.
    #[must_use]
    pub const fn awaited(seed: u64, session: u64, bytes: u64) -> Self {
        let pause = Duration::ZERO;
        let mode = Mode::Stream { bytes, piece: super::PIECE, pause, awaited: true };
        Self { seed, session, mode, end: None }
    }

    /// The bytes of one side.
    #[must_use]
    pub fn pattern(&self, side: Side) -> Pattern {
        Pattern::new(self.seed, self.session, side)
    }

    /// None if it is not the query of a pipe.
    pub(super) fn parse(query: &str) -> Option<Self> {
        let pairs: BTreeMap<&str, &str> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let number = |name: &str| pairs.get(name)?.parse::<u64>().ok();
        let mode = match number("stream") {
            None => Mode::Echo,
            Some(bytes) => Mode::Stream {
                bytes,
                piece: usize::try_from(number("piece")?).ok()?,
                pause: Duration::from_micros(number("pause")?),
                awaited: pairs.contains_key("awaited"),
            },
        };
        let end = match (number("after"), pairs.get("end")) {
            (None, _) => None,
            (Some(after), Some(&"fin")) => Some((after, Ending::Fin)),
            (Some(after), Some(&"reset")) => Some((after, Ending::Reset)),
            (Some(after), Some(&"half")) => Some((after, Ending::Half)),
            _ => return None,
        };
        Some(Self { seed: number("seed")?, session: number("session")?, mode, end })
    }
}

/// The request's target.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PATH}?seed={}&session={}", self.seed, self.session)?;
        if let Mode::Stream { bytes, piece, pause, awaited } = self.mode {
            write!(f, "&stream={bytes}&piece={piece}&pause={}", pause.as_micros())?;
            if awaited {
                write!(f, "&awaited=yes")?;
            }
        }
        if let Some((after, ending)) = self.end {
            let ending = match ending {
                Ending::Fin => "fin",
                Ending::Reset => "reset",
                Ending::Half => "half",
            };
            write!(f, "&after={after}&end={ending}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reads_what_a_client_writes() {
        let pause = Duration::from_micros(500);
        let all = [
            Terms::echo(1, 2),
            Terms::stream(u64::MAX, 3, 1 << 30),
            Terms { end: Some((10, Ending::Reset)), ..Terms::echo(5, 6) },
            Terms {
                mode: Mode::Stream { bytes: 7, piece: 100, pause, awaited: true },
                end: Some((0, Ending::Half)),
                ..Terms::echo(5, 6)
            },
        ];
        for terms in all {
            let text = terms.to_string();
            let query = text.strip_prefix("/pipe?").unwrap();
            assert_eq!(Terms::parse(query), Some(terms), "{query}");
        }
        assert_eq!(Terms::parse("seed=1&session=2&after=4&end=soon"), None);
        assert_eq!(Terms::parse("seed=1"), None);
    }
}
