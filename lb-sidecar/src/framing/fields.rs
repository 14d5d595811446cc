//! The few fields that decide how a request is framed: read byte by byte, kept as conclusions.

use super::Violation;

/// Longest name or coding that is looked at: `proxy-authorization`, `gzip, chunked`.
const WORD: usize = 24;

/// A short word in lower case; a longer one is only known to be longer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Word {
    bytes: [u8; WORD],
    len: u8,
}

impl Word {
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(usize::from(self.len)) {
            *place = byte.to_ascii_lowercase();
            self.len += 1;
        } else {
            self.len = WORD as u8 + 1;
        }
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().take(WORD + 1).for_each(|&byte| self.push(byte));
    }

    /// What was pushed, if it was short enough to be known.
    pub fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..usize::from(self.len))
    }

    /// The first bytes of what was pushed.
    pub fn start(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len).min(WORD)]
    }

    fn is(&self, other: &[u8]) -> bool {
        self.get().is_some_and(|word| word.trim_ascii_end() == other)
    }
}

/// Which field a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    /// Any other.
    Other,
}

impl Field {
    pub fn named(name: &Word) -> Self {
        match name.get() {
            Some(b"content-length") => Field::ContentLength,
            Some(b"transfer-encoding") => Field::TransferEncoding,
            Some(b"connection") => Field::Connection,
            Some(b"upgrade") => Field::Upgrade,
            _ => Field::Other,
        }
    }
}

/// What the fields of one head have said so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields {
    pub length: Option<u64>,
    pub chunked: bool,
    /// An `Upgrade` with something in it.
    pub upgrade: bool,
    /// `upgrade` among the options of `Connection`.
    pub connection_upgrade: bool,
    word: Word,
    /// White space has followed the digits of Content-Length.
    ended: bool,
}

/// The largest length: more overflows the arithmetic of those behind.
const LENGTH_MAX: u64 = i64::MAX as u64;

impl Fields {
    /// The next field's value begins.
    pub fn begin(&mut self, field: Field) -> Result<(), Violation> {
        self.word.clear();
        self.ended = false;
        match field {
            Field::ContentLength if self.length.is_some() => Err(Violation::RepeatedContentLength),
            Field::TransferEncoding if self.chunked => Err(Violation::BadEncoding),
            _ => Ok(()),
        }
    }

    /// One byte of it; white space in front included.
    pub fn push(&mut self, field: Field, byte: u8) -> Result<(), Violation> {
        let space = matches!(byte, b' ' | b'\t');
        match field {
            Field::ContentLength => return self.push_length(byte, space),
            Field::Connection if byte == b',' => self.end_option(),
            _ if space && self.word.len == 0 => {}
            _ => self.word.push(byte),
        }
        Ok(())
    }

    fn push_length(&mut self, byte: u8, space: bool) -> Result<(), Violation> {
        match byte {
            _ if space => self.ended = self.length.is_some(),
            b'0'..=b'9' if !self.ended => {
                let sum = self.length.unwrap_or(0).checked_mul(10);
                let sum = sum.and_then(|sum| sum.checked_add(u64::from(byte - b'0')));
                let sum = sum.filter(|&sum| sum <= LENGTH_MAX);
                self.length = Some(sum.ok_or(Violation::BadContentLength)?);
            }
            b',' => return Err(Violation::RepeatedContentLength),
            _ => return Err(Violation::BadContentLength),
        }
        Ok(())
    }

    fn end_option(&mut self) {
        self.connection_upgrade |= self.word.is(b"upgrade");
        self.word.clear();
    }

    /// The value is at its end.
    pub fn end(&mut self, field: Field) -> Result<(), Violation> {
        match field {
            Field::ContentLength if self.length.is_none() => Err(Violation::BadContentLength),
            Field::TransferEncoding if self.word.is(b"chunked") => {
                self.chunked = true;
                Ok(())
            }
            // Known, but not alone; or too long to tell.
            Field::TransferEncoding => {
                let known = self.word.get().is_none_or(|word| {
                    word.is_empty() || word.windows(7).any(|part| part == b"chunked")
                });
                Err(if known { Violation::BadEncoding } else { Violation::UnknownEncoding })
            }
            Field::Connection => {
                self.end_option();
                Ok(())
            }
            Field::Upgrade => {
                self.upgrade |= self.word.len > 0;
                Ok(())
            }
            Field::ContentLength | Field::Other => Ok(()),
        }
    }
}
