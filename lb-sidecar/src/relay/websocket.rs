//! Where WebSocket frames end (RFC 6455, section 5.2): the only places where one of our own may be put between them.
//! Knows nothing of messages, masks or payloads.

/// Follows one direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    /// Payload of the frame at hand that is still to come.
    payload: u64,
    /// What has come of the header, if it is not complete: at most 2 + 8 + 4 bytes.
    header: [u8; 10],
    have: u8,
    close: bool,
    closed: bool,
}

impl Frames {
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = &rest[self.step(rest)..];
        }
    }

    /// Follows up to the next end of a frame, and says where it is.
    pub fn to_boundary(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while !self.at_boundary() {
            if at == bytes.len() {
                return None;
            }
            at += self.step(&bytes[at..]);
        }
        Some(at)
    }

    pub fn at_boundary(&self) -> bool {
        self.payload == 0 && self.have == 0
    }

    /// A whole Close frame has passed.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Takes some bytes, at least one, of one frame.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.payload > 0 {
            let taken = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= taken as u64;
            self.closed |= self.close && self.payload == 0;
            return taken;
        }
        // The mask's key is of no interest: it only counts.
        if let Some(place) = self.header.get_mut(usize::from(self.have)) {
            *place = bytes[0];
        }
        self.have += 1;
        if self.have >= 2 && self.have == self.header_len() {
            self.close = self.header[0] & 0x0f == 8;
            self.payload = self.payload_len();
            self.have = 0;
            self.closed |= self.close && self.payload == 0;
        }
        1
    }

    fn header_len(&self) -> u8 {
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.header[1] & 0x80 == 0 { 0 } else { 4 }
    }

    fn payload_len(&self) -> u64 {
        let h = &self.header;
        match h[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([h[2], h[3]])),
            127 => u64::from_be_bytes([h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9]]),
            short => u64::from(short),
        }
    }
}

/// A Close frame of a server (section 5.5.1).
pub fn close_frame(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [0x88, 2, high, low]
}
