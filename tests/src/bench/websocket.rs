//! As much of WebSocket (RFC 6455) as the two ends need: the handshake, and short frames.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// A header and the mask of a client, in front of up to 65,535 bytes.
const MASKED_HEADER: usize = 8;
/// Final frame of a binary message.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
/// The payload's length follows as 16 bits.
const LENGTH_16: u8 = 126;
const MASKED: u8 = 0x80;

/// The request header of an upgrade, and what the answer to it must have.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

pub fn accept(key: &[u8]) -> String {
    derive_accept_key(key)
}

/// A binary message of a client.
pub fn masked(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = head(payload.len(), MASKED);
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A binary message of a server.
pub fn plain(payload: &[u8]) -> Vec<u8> {
    let mut frame = head(payload.len(), 0);
    frame.extend(payload);
    frame
}

/// Long form from 126 bytes on, as the RFC wants it.
fn head(len: usize, masked: u8) -> Vec<u8> {
    match u8::try_from(len) {
        Ok(len) if len < LENGTH_16 => vec![BINARY, masked | len],
        _ => {
            let [high, low] = u16::try_from(len).expect("a short message").to_be_bytes();
            vec![BINARY, masked | LENGTH_16, high, low]
        }
    }
}

/// What is at the start of a client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Not all of it has come.
    Partial,
    /// So many bytes were a message, and its echo has been added.
    Echoed(usize),
    Close,
    /// Nothing that a client of this benchmark sends.
    Wrong,
}

/// Adds the echo of the first message in `from` to `to`, unmasked.
pub fn echo(from: &[u8], to: &mut Vec<u8>) -> Frame {
    let [kind, short, high, low, ..] = *from else { return Frame::Partial };
    if kind == CLOSE {
        return Frame::Close;
    }
    if kind != BINARY || short & MASKED == 0 {
        return Frame::Wrong;
    }
    let (len, before) = match short & !MASKED {
        LENGTH_16 => (usize::from(u16::from_be_bytes([high, low])), MASKED_HEADER),
        127 => return Frame::Wrong,
        len => (usize::from(len), MASKED_HEADER - 2),
    };
    let Some(masked) = from.get(before..before + len) else { return Frame::Partial };
    let mask = [from[before - 4], from[before - 3], from[before - 2], from[before - 1]];
    to.extend([kind, short & !MASKED]);
    to.extend(&from[2..before - 4]);
    let start = to.len();
    to.extend(masked);
    for chunk in to[start..].chunks_mut(4) {
        for (byte, mask) in chunk.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
    Frame::Echoed(before + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_what_a_server_sends() {
        for len in [0, 3, 125, 126, 128, 1000] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let frame = masked(&payload, [1, 2, 3, 250]);
            let mut answer = Vec::new();
            assert_eq!(echo(&frame, &mut answer), Frame::Echoed(frame.len()));
            assert_eq!(answer, plain(&payload));
            for cut in 0..frame.len() {
                assert_eq!(echo(&frame[..cut], &mut Vec::new()), Frame::Partial, "{cut}");
            }
        }
    }

    #[test]
    fn a_frame_without_a_mask_is_wrong() {
        assert_eq!(echo(&plain(b"hello"), &mut Vec::new()), Frame::Wrong);
        assert_eq!(echo(&[CLOSE, 0x80, 0, 0, 0, 0], &mut Vec::new()), Frame::Close);
    }
}
