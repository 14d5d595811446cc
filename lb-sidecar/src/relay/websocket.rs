//! Where WebSocket frames end (RFC 6455, section 5.2): the only places where one of our own may be put between them.
//! Knows nothing of messages, masks or payloads.

/// The edge goes away (RFC 6455, section 7.4.1).
pub const GOING_AWAY: u16 = 1001;

/// The backend restarts: come back (IANA's registry of WebSocket close codes).
pub const SERVICE_RESTART: u16 = 1012;

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
    pub fn up_to_boundary(&mut self, bytes: &[u8]) -> Option<usize> {
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

/// A Close frame of a server (section 5.5.1): 1001, the edge goes away, or 1012, come back at once.
pub fn close_frame(code: u16) -> &'static [u8] {
    match code {
        GOING_AWAY => &[0x88, 2, 0x03, 0xe9],
        _ => &[0x88, 2, 0x03, 0xf4],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + 4 * usize::from(masked) + length, 0xff);
        bytes
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_bytes_arrive(
            frames in prop::collection::vec((0_u8..3, prop_oneof![0_usize..300, 65_500_usize..65_600], any::<bool>()), 1..6),
            cut in 0_usize..70_000,
        ) {
            let frames: Vec<Vec<u8>> = frames.into_iter().map(|(op, len, mask)| frame(op, len, mask)).collect();
            let all = frames.concat();
            let (head, tail) = all.split_at(cut.min(all.len()));
            let mut follower = Frames::default();
            follower.feed(head);
            let mut end = 0;
            let boundary = frames.iter().map(|it| { end += it.len(); end }).find(|end| *end >= head.len()).unwrap();
            let expected = if head.is_empty() { 0 } else { boundary - head.len() };
            prop_assert_eq!(follower.up_to_boundary(tail), Some(expected));
            prop_assert!(!follower.closed());
        }
    }

    #[test]
    fn a_close_frame_is_seen_when_it_is_whole() {
        let mut frames = Frames::default();
        frames.feed(&close_frame(GOING_AWAY)[..3]);
        assert!(!frames.closed() && !frames.at_boundary());
        frames.feed(&close_frame(GOING_AWAY)[3..]);
        assert!(frames.closed() && frames.at_boundary());
        let mut empty = Frames::default();
        empty.feed(&[0x88, 0]);
        assert!(empty.closed());
    }
}
