//! Everything that can come of a connection or a request, under a stable name: index of the counters, label of the
//! reports, and the answer where there is one.

use std::{cell::Cell, collections::BTreeMap};

use hyper::StatusCode;

use crate::{framing::Violation, pool::Sticky, splice::Refusal};

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident $label:literal $(=> $status:ident $text:literal)?,)*) => {
        /// See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome { $($(#[$doc])* $name,)* }

        impl Outcome {
            pub const ALL: &[Outcome] = &[$(Outcome::$name,)*];

            /// The name in reports and metrics; it never changes.
            pub const fn label(self) -> &'static str {
                match self { $(Outcome::$name => $label,)* }
            }

            /// What the client is told, for those that are the end of a request.
            pub const fn answer(self) -> Option<(StatusCode, &'static str)> {
                match self { $(Outcome::$name => answer!($($status $text)?),)* }
            }
        }
    };
}

macro_rules! answer {
    () => {
        None
    };
    ($status:ident $text:literal) => {
        Some((StatusCode::$status, $text))
    };
}

outcomes! {
    /// A client connection was accepted.
    Connection "connection",
    /// A request head came in whole.
    Request "request",
    /// A 101 was passed on, and the connection is relayed.
    Upgraded "upgraded",
    /// XDP took a relayed connection over.
    Spliced "spliced",
    /// A relayed connection was not offered to be spliced yet: data was under way, or the broker was away or busy.
    SpliceWaits "splice_waits",
    /// The agent ended before it answered an offer, and had changed nothing.
    SpliceLost "splice_lost",
    /// An upgraded connection is relayed for good: the flow table could not be asked whether its source port is free.
    SpliceUncheckedPort "splice_unchecked_port",
    Status1xx "status_1xx",
    Status2xx "status_2xx",
    Status3xx "status_3xx",
    Status4xx "status_4xx",
    Status5xx "status_5xx",

    /// A TLS handshake with a client was completed.
    TlsHandshake "tls_handshake",
    /// One of those took up an earlier session.
    TlsResumed "tls_resumed",
    /// Nothing came of a TLS handshake: the client ended it half-way.
    TlsCut "tls_cut",
    /// Likewise: it took too long.
    TlsTimeout "tls_timeout",
    /// The client did not like the certificate, or something else, and said so.
    TlsRefused "tls_refused",
    /// No version, cipher suite or protocol in common.
    TlsIncompatible "tls_incompatible",
    /// The client asked for a name that no certificate or route has, or for none, and was served by default.
    TlsDefaultName "tls_default_name",
    /// The client asked for a name that no certificate has, or for none, and that is refused.
    TlsUnknownName "tls_unknown_name",
    /// The client has no certificate, or not one of those that are asked for.
    TlsUntrusted "tls_untrusted",
    /// The subject of a client's certificate is too long, or cannot be read: the request goes without its header.
    TlsSubjectLeftOut "tls_subject_left_out",
    /// What came was not TLS, or broke its rules.
    TlsFailed "tls_failed",
    /// A TLS handshake came where clients come in plain.
    TlsOnPlain "tls_on_plain",
    /// A request was sent on to `https`.
    RedirectedToHttps "redirected_to_https",
    /// An upgraded connection is relayed for good: there is TLS on it.
    SpliceTls "splice_tls",

    /// Another backend was asked after a connect had failed.
    RetryConnect "retry_connect",
    /// Another backend was asked after an upgrade had been refused.
    RetryHandshake "retry_handshake",
    /// A kept connection turned out to be closed, and the request went over another one.
    RetryReused "retry_reused",
    /// A kept connection carried another request.
    Reused "reused",

    /// The kernel had no descriptor or memory for a connection.
    AcceptFailed "accept_failed",
    /// The client went away before its answer was complete.
    ClientGone "client_gone",
    /// Nothing came on a kept connection for its keep-alive time.
    KeepAliveExpired "keep_alive_expired",
    /// The client did not take its answer.
    WriteTimeout "write_timeout",
    /// The backend ended in the middle of a body, and so did the client's connection.
    BackendCut "backend_cut",
    /// A route sent the client elsewhere.
    Redirected "redirected",
    /// A route had the answer.
    Answered "answered",

    PlainOnTls "plain_on_tls" => BAD_REQUEST "this port speaks TLS: ask for https://",
    HeadTimeout "head_timeout" => REQUEST_TIMEOUT "the request's head took too long",
    BodyTimeout "body_timeout" => REQUEST_TIMEOUT "the request's body took too long",
    HeadTooLarge "head_too_large" => REQUEST_HEADER_FIELDS_TOO_LARGE "the request's head is too large",
    TargetTooLong "target_too_long" => URI_TOO_LONG "the request's target is too long",
    BadHead "bad_head" => BAD_REQUEST "the request's head is malformed",
    BadBody "bad_body" => BAD_REQUEST "the request's body is malformed",
    BodyCut "body_cut" => BAD_REQUEST "the request's body ended early",
    HostMissing "host_missing" => BAD_REQUEST "the request has no Host",
    HostRepeated "host_repeated" => BAD_REQUEST "the request has more than one Host",
    HostInvalid "host_invalid" => BAD_REQUEST "the request's Host is not an authority",
    TargetInvalid "target_invalid" => BAD_REQUEST "the request's target is not in a form that its method allows",
    AmbiguousPath "ambiguous_path" => BAD_REQUEST "the request's path can be read in more than one way",
    ConnectMethod "connect_method" => NOT_IMPLEMENTED "CONNECT is not served here",
    UpgradeWithBody "upgrade_with_body" => BAD_REQUEST "an upgrade cannot have a body",
    UnknownExpectation "unknown_expectation" => EXPECTATION_FAILED "the only expectation known here is 100-continue",

    NoBackend "no_backend" => SERVICE_UNAVAILABLE "no backend is available",
    ConnectFailed "connect_failed" => BAD_GATEWAY "the backend could not be reached",
    ConnectTimeout "connect_timeout" => GATEWAY_TIMEOUT "the backend did not accept the connection in time",
    BackendTlsFailed "backend_tls_failed" => BAD_GATEWAY "the TLS handshake with the backend failed",
    BackendTlsUntrusted "backend_tls_untrusted" => BAD_GATEWAY "the backend's certificate is not the one that is expected",
    ResponseTimeout "response_timeout" => GATEWAY_TIMEOUT "the backend did not answer in time",
    BackendClosed "backend_closed" => BAD_GATEWAY "the backend closed the connection before its answer",
    BackendGarbage "backend_garbage" => BAD_GATEWAY "the backend's answer is not HTTP",
    /// A connection began with a PROXY header, and its source is no proxy that is trusted.
    ProxyHeaderUntrusted "proxy_header_untrusted",
    /// A trusted proxy's connection did not begin with a PROXY header.
    ProxyHeaderMissing "proxy_header_missing",
    /// A PROXY header contradicts the protocol, or is too long.
    ProxyHeaderMalformed "proxy_header_malformed",
    /// A PROXY header did not come in time.
    ProxyHeaderTimeout "proxy_header_timeout",
    /// A connection was closed at once: the service has as many as it may.
    TooManyConnections "too_many_connections",
    /// A connection waited in the backlog: so many of the service came in that second.
    ConnectionDelayed "connection_delayed",
    /// A connection was closed at once: its source has as many as it may.
    SourceConnections "source_connections",
    /// A connection was closed at once: its source comes too fast.
    SourceHandshakes "source_handshakes",
    /// A connection was not counted for its source: too many sources are remembered.
    SourceTableFull "source_table_full",
    /// A request waited until its backend had room.
    Queued "queued",
    /// An upgraded connection is relayed for good: the service has a limit of bytes in a second.
    SpliceLimited "splice_limited",

    BodyTooLarge "body_too_large" => PAYLOAD_TOO_LARGE "the request's body is too large",
    BackendFull "backend_full" => SERVICE_UNAVAILABLE "the backend has no room",
    QueueTimeout "queue_timeout" => SERVICE_UNAVAILABLE "the backend had no room in time",

    UnaskedSwitch "unasked_switch" => BAD_GATEWAY "the backend switched to a protocol that was not asked for",

    HostDiffers "host_differs" => BAD_REQUEST "the request's Host is not its :authority",
    UnlistedProtocol "unlisted_protocol" => NOT_IMPLEMENTED "the :protocol is not served here",
    UpgradeIgnored "upgrade_ignored" => BAD_GATEWAY "the backend answered an upgrade as a plain request",
    WrongAccept "wrong_accept" => BAD_GATEWAY "the backend's Sec-WebSocket-Accept does not answer the key",

    /// A client connection speaks HTTP/2.
    Http2Connection "http2_connection",
    /// An upgraded connection is relayed for good: it is a stream of HTTP/2.
    SpliceHttp2 "splice_http2",
    /// A stream was reset (PROTOCOL_ERROR): pseudo-header fields missing, twice or misplaced, fields that HTTP/2
    /// does not have, or a body of another length.
    Http2Malformed "http2_malformed",
    /// A stream was reset (REFUSED_STREAM): more than `max_streams`.
    Http2TooManyStreams "http2_too_many_streams",
    /// A connection was ended (GOAWAY): what came is not HTTP/2, or breaks its rules.
    Http2ProtocolError "http2_protocol_error",
    /// A connection was ended (ENHANCE_YOUR_CALM): streams reset as soon as they are opened.
    Http2RapidReset "http2_rapid_reset",
    /// Likewise: SETTINGS without end.
    Http2SettingsFlood "http2_settings_flood",
    /// Likewise: PINGs.
    Http2PingFlood "http2_ping_flood",
    /// Likewise: WINDOW_UPDATEs.
    Http2WindowFlood "http2_window_flood",
    /// Likewise: DATA with nothing in it.
    Http2EmptyDataFlood "http2_empty_data_flood",
    /// Likewise: PRIORITY and frames without a meaning.
    Http2PriorityFlood "http2_priority_flood",
    /// Likewise: a head in ever more CONTINUATIONs.
    Http2ContinuationFlood "http2_continuation_flood",
    /// Likewise: another excess (heads far beyond `head_bytes`, very small DATA, malformed heads without end).
    Http2Excess "http2_excess",

    /// A TLS connection is passed on to a backend, unread but for its ClientHello.
    PassedThrough "passed_through",
    /// A ClientHello did not come to its end within 16 KiB, or 64 records.
    TlsHelloTooLarge "tls_hello_too_large",
}

impl Outcome {
    /// The class of a final status.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() / 100 {
            1 => Outcome::Status1xx,
            2 => Outcome::Status2xx,
            3 => Outcome::Status3xx,
            4 => Outcome::Status4xx,
            _ => Outcome::Status5xx,
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Outcome(Outcome),
    Violation(Violation),
}

impl From<Outcome> for Reason {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl From<Violation> for Reason {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl Reason {
    pub fn label(self) -> &'static str {
        match self {
            Reason::Outcome(outcome) => outcome.label(),
            Reason::Violation(violation) => violation.label(),
        }
    }

    /// Whether the same request may fare better a little later.
    pub fn is_passing(self) -> bool {
        matches!(self, Reason::Outcome(Outcome::BackendFull | Outcome::QueueTimeout))
    }

    /// What the client is told.
    pub fn answer(self) -> Option<(StatusCode, &'static str)> {
        match self {
            Reason::Outcome(outcome) => outcome.answer(),
            Reason::Violation(violation) => {
                Some((StatusCode::from_u16(violation.status()).ok()?, violation.text()))
            }
        }
    }
}

/// How often each has happened to a service.
pub struct Outcomes {
    outcomes: [Cell<u64>; Outcome::ALL.len()],
    violations: [Cell<u64>; Violation::ALL.len()],
    sticky: [Cell<u64>; Sticky::ALL.len()],
    refusals: [Cell<u64>; Refusal::ALL.len()],
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            outcomes: [const { Cell::new(0) }; Outcome::ALL.len()],
            violations: [const { Cell::new(0) }; Violation::ALL.len()],
            sticky: [const { Cell::new(0) }; Sticky::ALL.len()],
            refusals: [const { Cell::new(0) }; Refusal::ALL.len()],
        }
    }
}

impl Outcomes {
    pub fn count(&self, reason: impl Into<Reason>) {
        let cell = match reason.into() {
            Reason::Outcome(outcome) => &self.outcomes[outcome as usize],
            Reason::Violation(violation) => &self.violations[violation as usize],
        };
        cell.set(cell.get() + 1);
    }

    /// Why a client got its backend.
    pub fn stuck(&self, sticky: Sticky) {
        let cell = &self.sticky[sticky as usize];
        cell.set(cell.get() + 1);
    }

    /// An offer was refused.
    pub fn not_spliced(&self, refusal: Refusal) {
        // Their numbers begin with 1, and are all there.
        let cell = &self.refusals[refusal as usize - 1];
        cell.set(cell.get() + 1);
    }

    pub fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].get()
    }

    /// Those that have happened at all. What two parts of the sidecar may notice, as a head that is too large, has one
    /// label.
    pub fn report(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let mut sums = BTreeMap::<String, u64>::new();
        let outcomes = Outcome::ALL.iter().map(|o| o.label().to_owned()).zip(&self.outcomes);
        let violations = Violation::ALL.iter().map(|v| v.label().to_owned()).zip(&self.violations);
        let sticky = Sticky::ALL.iter().map(|s| format!("sticky_{}", s.label())).zip(&self.sticky);
        let refusals = Refusal::ALL.iter().map(|r| format!("splice_{}", r.label()));
        let refusals = refusals.zip(&self.refusals);
        for (label, cell) in outcomes.chain(violations).chain(sticky).chain(refusals) {
            if cell.get() > 0 {
                *sums.entry(label).or_default() += cell.get();
            }
        }
        sums.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = Outcome::ALL.iter().map(|o| o.label()).collect();
        assert_eq!(labels.len(), Outcome::ALL.len());
        assert!(
            labels.iter().all(|l| l
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
    }

    #[test]
    fn every_outcome_has_its_own_counter() {
        let outcomes = Outcomes::default();
        for (i, &outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(outcome as usize, i);
            for _ in 0..=i {
                outcomes.count(outcome);
            }
        }
        for &violation in Violation::ALL {
            outcomes.count(violation);
        }
        for &sticky in &Sticky::ALL {
            outcomes.stuck(sticky);
        }
        for &refusal in Refusal::ALL {
            outcomes.not_spliced(refusal);
        }
        let report: BTreeMap<_, _> = outcomes.report().collect();
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            let shared = Violation::ALL.iter().any(|v| v.label() == outcome.label()) as u64;
            assert_eq!(report[outcome.label()], i as u64 + 1 + shared);
        }
        assert!(Violation::ALL.iter().all(|v| report.contains_key(v.label())));
        assert!(Refusal::ALL.iter().all(|r| report[&format!("splice_{}", r.label())] == 1));
        assert!(Sticky::ALL.iter().all(|s| report[&format!("sticky_{}", s.label())] == 1));
    }
}
