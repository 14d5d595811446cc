//! Why a probe failed, in words that name the thing and the value.
//!
//! A backend is not trusted: text that came from one is shortened and escaped before it gets here.

use std::{fmt, io, time::Duration};

use nix::errno::Errno;

use super::{source_ports::ConnectError, status_ranges::StatusRanges};

/// What a probe was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The TCP handshake.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The head of the HTTP response.
    Head,
    /// The body of the HTTP response.
    Body,
    /// The pong (RFC 6455, section 5.5.3).
    Pong,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connection",
            Self::Tls => "TLS handshake",
            Self::Head => "response",
            Self::Body => "response body",
            Self::Pong => "pong",
        })
    }
}

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No TCP connection.
    Connect(ConnectError),
    /// The time of the whole probe was over before this stage was.
    Timeout {
        /// What was missing.
        stage: Stage,
        /// The probe's timeout.
        after: Duration,
    },
    /// The backend closed the connection.
    Closed {
        /// What was missing.
        stage: Stage,
    },
    /// The connection broke.
    Broken {
        /// What was missing.
        stage: Stage,
        /// As the kernel reports it.
        errno: Errno,
    },
    /// The TLS handshake failed, or the certificate is not trusted.
    Tls(String),
    /// The answer is not HTTP/1.1.
    NotHttp(String),
    /// The head of the answer exceeds this many bytes, or a hundred fields.
    HeadTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The status code is not among those expected.
    Status {
        /// As received.
        got: u16,
        /// As configured; 101 for a WebSocket.
        expected: StatusRanges,
    },
    /// The body does not contain what is expected.
    Body {
        /// As configured.
        wanted: String,
        /// Bytes searched: the whole body, or 64 KiB of it.
        read: usize,
        /// How the body begins.
        begins: String,
    },
    /// A header field of the 101 is not as RFC 6455, section 4.1 demands.
    Upgrade {
        /// Name of the field.
        field: &'static str,
        /// As received, if at all.
        got: Option<String>,
        /// As it must be.
        expected: String,
    },
    /// The backend sent a close frame in place of the pong.
    CloseFrame {
        /// Its status code (RFC 6455, section 7.4), if it gave one.
        code: Option<u16>,
        /// Its reason, perhaps empty.
        reason: String,
    },
    /// The backend's frames break RFC 6455 or the limit of 64 KiB per message.
    WebSocket(String),
    /// None of so many messages was the pong.
    NoPongAmong {
        /// How many were read.
        messages: u32,
    },
    /// The check cannot be carried out as configured, by a CA file that cannot be read for example.
    Unusable(String),
}

impl Failure {
    /// Whether the edge itself is at fault, so that it says nothing about the backend.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_local(),
            Self::Unusable(_) => true,
            _ => false,
        }
    }

    /// An error of the connection while waiting for `stage`.
    pub(super) fn broken(stage: Stage, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Self::Broken { stage, errno: Errno::from_raw(code) },
            None => Self::Closed { stage },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Timeout { stage, after } => write!(f, "no {stage} within {after:?}"),
            Self::Closed { stage } => write!(f, "connection closed before the end of the {stage}"),
            Self::Broken { stage, errno } => {
                write!(f, "{} before the end of the {stage}", errno.desc())
            }
            Self::Tls(what) => write!(f, "TLS: {what}"),
            Self::NotHttp(what) => write!(f, "not an HTTP/1.1 response: {what}"),
            Self::HeadTooLarge { limit } => {
                write!(f, "response head over {limit} bytes or 100 fields")
            }
            Self::Status { got, expected } => write!(f, "status {got}, expected {expected}"),
            Self::Body { wanted, read, begins } => {
                write!(f, "body lacks {wanted:?} in {read} bytes, which begin with \"{begins}\"")
            }
            Self::Upgrade { field, got: Some(got), expected } => {
                write!(f, "{field} \"{got}\", expected {expected:?}")
            }
            Self::Upgrade { field, got: None, expected } => {
                write!(f, "no {field}, expected {expected:?}")
            }
            Self::CloseFrame { code, reason } => {
                f.write_str("closed before the pong")?;
                if let Some(code) = code {
                    write!(f, " with code {code}")?;
                }
                if !reason.is_empty() {
                    write!(f, " \"{reason}\"")?;
                }
                Ok(())
            }
            Self::WebSocket(what) => write!(f, "WebSocket: {what}"),
            Self::NoPongAmong { messages } => write!(f, "no pong among {messages} messages"),
            Self::Unusable(what) => write!(f, "edge: {what}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

/// The first 60 bytes of what a backend sent, escaped to printable ASCII.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 60;
    let mut text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    if bytes.len() > MOST {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_thing_and_the_value() {
        let second = Duration::from_secs(1);
        for (failure, message) in [
            (Failure::Timeout { stage: Stage::Pong, after: second }, "no pong within 1s"),
            (
                Failure::Timeout { stage: Stage::Connect, after: second / 4 },
                "no connection within 250ms",
            ),
            (
                Failure::Connect(ConnectError::Refused { errno: Errno::EHOSTUNREACH }),
                "connect: No route to host",
            ),
            (
                Failure::Closed { stage: Stage::Body },
                "connection closed before the end of the response body",
            ),
            (
                Failure::Broken { stage: Stage::Head, errno: Errno::ECONNRESET },
                "Connection reset by peer before the end of the response",
            ),
            (
                Failure::Status { got: 503, expected: StatusRanges::default() },
                "status 503, expected 200-299",
            ),
            (
                Failure::Body { wanted: "ready".into(), read: 4, begins: excerpt(b"no\"\n") },
                "body lacks \"ready\" in 4 bytes, which begin with \"no\\\"\\n\"",
            ),
            (
                Failure::Upgrade { field: "Upgrade", got: None, expected: "websocket".into() },
                "no Upgrade, expected \"websocket\"",
            ),
            (
                Failure::CloseFrame { code: Some(1013), reason: "try later".into() },
                "closed before the pong with code 1013 \"try later\"",
            ),
            (Failure::CloseFrame { code: None, reason: String::new() }, "closed before the pong"),
        ] {
            assert_eq!(failure.to_string(), message);
        }
    }

    #[test]
    fn excerpts_are_short_and_printable() {
        let text = excerpt(&[0xff; 100_000]);
        assert!(text.is_ascii() && text.len() <= 4 * 60 + 3, "{text}");
    }
}
