//! Strict framing of the requests that a client sends (RFC 9112): where each one ends must not be a matter of opinion,
//! or two servers in a row read different requests out of the same bytes.
//!
//! [`Framing`] sees every byte before hyper does. It keeps none of them and knows neither sockets nor what a request
//! means. It is stricter than the RFC in one place: chunk extensions are refused, although a recipient should ignore
//! them. No client of note sends any, and parsers disagree about where they end.

mod fields;
mod grammar;
mod guarded;
#[cfg(test)]
mod tests;
mod violation;

pub(crate) use self::grammar::forbidden_in_trailer;
pub use self::{guarded::Guarded, violation::Violation};

use self::{
    fields::{Field, Fields, Word},
    grammar::{TARGET, TOKEN, VALUE, span},
};

/// Most fields in a head or in a trailer; hyper's limit, too.
pub const MAX_FIELDS: u8 = 100;
/// Longest method: those of the registry have at most 17 characters.
const MAX_METHOD: u8 = 32;
/// Digits of a chunk's size: 15 of them cannot overflow.
const MAX_CHUNK_DIGITS: u8 = 15;

/// What a request may measure.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a head, request line included; and of a trailer.
    pub head_bytes: usize,
}

/// Strict HTTP/1.1 request framing, byte by byte, without buffering: fed with what was read, in order.
#[derive(Debug)]
pub struct Framing {
    state: State,
    limits: Limits,
    /// Bytes of this head or trailer so far.
    head: usize,
    field_count: u8,
    trailer: bool,
    http11: bool,
    connect: bool,
    /// The method or the name of a field.
    word: Word,
    fields: Fields,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a request; one empty line may come first (RFC 9112, section 2.2).
    Start {
        empty_line: bool,
    },
    StartLf,
    Method(u8),
    /// Whether it has a character already.
    Target(bool),
    /// How much of `HTTP/x.y` has come, and the major version.
    Version(u8, u8),
    VersionLf,
    LineStart,
    Name,
    Value(Field),
    ValueLf,
    HeadLf,
    Body(u64),
    /// Digits and value.
    ChunkSize(u8, u64),
    ChunkSizeLf(u64),
    ChunkData(u64),
    ChunkCr,
    ChunkLf,
    /// Whatever protocol comes after a request that wants another.
    Opaque,
    Failed(Violation),
}

impl Framing {
    pub fn new(limits: Limits) -> Self {
        Self {
            state: State::Start { empty_line: false },
            limits,
            head: 0,
            field_count: 0,
            trailer: false,
            http11: false,
            connect: false,
            word: Word::default(),
            fields: Fields::default(),
        }
    }

    /// Whether a request asked for another protocol, so that nothing is checked any more. Whoever answers it with
    /// something else than that protocol must close the connection then.
    pub fn is_opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Checks what comes next. After a violation there is nothing but this violation.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.check(bytes).map_err(|(_, violation)| violation)
    }

    /// The same; with a violation goes how many of the bytes belong to requests that ended before.
    fn check(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut whole = 0;
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(n) => at += n,
                Err(violation) => {
                    self.state = State::Failed(violation);
                    return Err((whole, violation));
                }
            }
            if matches!(self.state, State::Start { empty_line: false }) {
                whole = at;
            }
        }
        Ok(())
    }

    /// Takes some of the bytes, at least one.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        match self.state {
            State::Opaque => Ok(bytes.len()),
            State::Failed(violation) => Err(violation),
            State::Body(left) => {
                let taken = take(bytes, left);
                let left = left - taken as u64;
                if left == 0 {
                    self.message_end()
                } else {
                    self.state = State::Body(left)
                }
                Ok(taken)
            }
            State::ChunkData(left) => {
                let taken = take(bytes, left);
                let left = left - taken as u64;
                self.state = if left == 0 { State::ChunkCr } else { State::ChunkData(left) };
                Ok(taken)
            }
            State::ChunkSize(..) | State::ChunkSizeLf(_) | State::ChunkCr | State::ChunkLf => {
                self.chunk(bytes[0]).map(|()| 1)
            }
            _ => {
                let room = self.limits.head_bytes - self.head;
                if room == 0 {
                    return Err(self.too_large());
                }
                let taken = self.head(&bytes[..room.min(bytes.len())])?;
                // The end of a head has set it to zero, and this sum is of no interest there.
                self.head += taken;
                if !self.in_head() {
                    self.head = 0;
                }
                Ok(taken)
            }
        }
    }

    fn in_head(&self) -> bool {
        !matches!(
            self.state,
            State::Start { .. } | State::Opaque | State::Body(_) | State::ChunkSize(..)
        )
    }

    fn too_large(&self) -> Violation {
        match self.state {
            State::Method(_) | State::Target(_) | State::Version(..) | State::VersionLf => {
                Violation::TargetTooLong
            }
            _ if self.trailer => Violation::TrailerTooLarge,
            _ => Violation::HeadTooLarge,
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let byte = bytes[0];
        self.state = match self.state {
            State::Start { empty_line } => match byte {
                b'\r' if !empty_line => State::StartLf,
                b'\n' => return Err(Violation::BareLf),
                b' ' | b'\t' | b'\r' => return Err(Violation::LeadingSpace),
                _ if !TOKEN[usize::from(byte)] => return Err(Violation::NotHttp),
                _ => {
                    self.request_start();
                    self.word.push(byte);
                    State::Method(1)
                }
            },
            State::StartLf => lf(byte, State::Start { empty_line: true })?,
            State::Method(len) => match byte {
                b' ' => State::Target(false),
                _ if TOKEN[usize::from(byte)] && len < MAX_METHOD => {
                    self.word.push(byte);
                    State::Method(len + 1)
                }
                // A line of another protocol.
                b'\r' => return Err(Violation::BadVersion),
                _ => return Err(or_bare_lf(byte, Violation::BadMethod)),
            },
            State::Target(any) => match span(bytes, &TARGET) {
                0 if any && byte == b' ' => State::Version(0, 0),
                // HTTP/0.9.
                0 if any && byte == b'\r' => return Err(Violation::BadVersion),
                0 => return Err(or_bare_lf(byte, Violation::BadTarget)),
                taken => {
                    self.state = State::Target(true);
                    return Ok(taken);
                }
            },
            State::Version(at, major) => self.version(at, major, byte)?,
            State::VersionLf => lf(byte, State::LineStart)?,
            State::LineStart => match byte {
                b'\r' => State::HeadLf,
                b' ' | b'\t' => return Err(Violation::ObsFold),
                b':' => return Err(Violation::EmptyName),
                _ if !TOKEN[usize::from(byte)] => {
                    return Err(or_bare_lf(byte, Violation::BadName));
                }
                _ if self.field_count == MAX_FIELDS => return Err(Violation::TooManyFields),
                _ => {
                    self.field_count += 1;
                    self.word.clear();
                    self.word.push(byte);
                    State::Name
                }
            },
            State::Name => match span(bytes, &TOKEN) {
                0 => self.name_end(byte)?,
                taken => {
                    self.word.extend(&bytes[..taken]);
                    return Ok(taken);
                }
            },
            State::Value(field) => match span(bytes, &VALUE) {
                0 if byte == b'\r' => {
                    self.fields.end(field)?;
                    State::ValueLf
                }
                0 => return Err(or_bare_lf(byte, Violation::BadValue)),
                taken => {
                    if field != Field::Other {
                        bytes[..taken].iter().try_for_each(|&b| self.fields.push(field, b))?;
                    }
                    return Ok(taken);
                }
            },
            State::ValueLf => lf(byte, State::LineStart)?,
            State::HeadLf => {
                lf(byte, State::HeadLf)?;
                self.head_end()?;
                return Ok(1);
            }
            _ => unreachable!("no state of a head"),
        };
        Ok(1)
    }

    fn request_start(&mut self) {
        self.word.clear();
        self.fields = Fields::default();
        self.field_count = 0;
        self.trailer = false;
        self.http11 = false;
    }

    fn version(&mut self, at: u8, major: u8, byte: u8) -> Result<State, Violation> {
        const NAME: &[u8] = b"HTTP/";
        Ok(match at {
            0..5 if byte == NAME[usize::from(at)] => State::Version(at + 1, 0),
            5 if byte.is_ascii_digit() => State::Version(6, byte),
            6 if byte == b'.' => State::Version(7, major),
            7 if byte.is_ascii_digit() => {
                if major != b'1' || byte > b'1' {
                    return Err(Violation::UnknownVersion);
                }
                self.http11 = byte == b'1';
                self.connect = self.word.get() == Some(b"connect");
                State::Version(8, major)
            }
            8 if byte == b'\r' => State::VersionLf,
            _ => return Err(or_bare_lf(byte, Violation::BadVersion)),
        })
    }

    fn name_end(&mut self, byte: u8) -> Result<State, Violation> {
        match byte {
            b':' if self.trailer => {
                if forbidden_in_trailer(self.word.start()) {
                    return Err(Violation::ForbiddenTrailer);
                }
                Ok(State::Value(Field::Other))
            }
            b':' => {
                let field = Field::named(&self.word);
                self.fields.begin(field)?;
                Ok(State::Value(field))
            }
            b' ' | b'\t' => Err(Violation::SpaceBeforeColon),
            _ => Err(or_bare_lf(byte, Violation::BadName)),
        }
    }

    fn head_end(&mut self) -> Result<(), Violation> {
        if self.trailer {
            self.message_end();
            return Ok(());
        }
        let fields = &self.fields;
        match fields.length {
            Some(_) if fields.chunked => return Err(Violation::LengthAndEncoding),
            _ if fields.chunked && !self.http11 => return Err(Violation::EncodingInHttp10),
            _ if fields.chunked => self.state = State::ChunkSize(0, 0),
            None | Some(0) => self.message_end(),
            Some(length) => self.state = State::Body(length),
        }
        Ok(())
    }

    fn message_end(&mut self) {
        // HTTP/1.0 has no Upgrade (RFC 9110, section 7.8), but it has tunnels.
        let upgrade = self.http11 && self.fields.upgrade && self.fields.connection_upgrade;
        self.state = if upgrade || self.connect {
            State::Opaque
        } else {
            State::Start { empty_line: false }
        };
    }

    fn chunk(&mut self, byte: u8) -> Result<(), Violation> {
        self.state = match self.state {
            State::ChunkSize(digits, size) => match (byte as char).to_digit(16) {
                Some(digit) if digits < MAX_CHUNK_DIGITS => {
                    State::ChunkSize(digits + 1, size << 4 | u64::from(digit))
                }
                None if digits > 0 && byte == b'\r' => State::ChunkSizeLf(size),
                None if digits > 0 && byte == b';' => return Err(Violation::ChunkExtension),
                _ => return Err(or_bare_lf(byte, Violation::BadChunkSize)),
            },
            State::ChunkSizeLf(0) => {
                self.trailer = true;
                self.field_count = 0;
                lf(byte, State::LineStart)?
            }
            State::ChunkSizeLf(size) => lf(byte, State::ChunkData(size))?,
            State::ChunkCr if byte == b'\r' => State::ChunkLf,
            State::ChunkLf if byte == b'\n' => State::ChunkSize(0, 0),
            _ => return Err(Violation::BadChunkEnd),
        };
        Ok(())
    }
}

fn take(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

fn lf(byte: u8, then: State) -> Result<State, Violation> {
    if byte == b'\n' { Ok(then) } else { Err(Violation::BareCr) }
}

fn or_bare_lf(byte: u8, otherwise: Violation) -> Violation {
    if byte == b'\n' { Violation::BareLf } else { otherwise }
}
