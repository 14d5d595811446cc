//! Why a client got its backend.

/// What became of a client's claim to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sticky {
    /// The service keeps nobody on a backend.
    Off,
    /// The cookie's backend.
    Hit,
    /// The backend on which the ring has the header, parameter, application's cookie or address.
    Keyed,
    /// No cookie, header or parameter of the name.
    Missing,
    /// A cookie that is none of ours: another form, or a signature that does not hold.
    Tampered,
    /// A cookie signed by a key that is not in the file.
    UnknownKey,
    /// A cookie beyond its time.
    Expired,
    /// A cookie that was issued in the future, further off than clocks of edges may be.
    Future,
    /// A cookie of a backend that was removed or renamed.
    UnknownBackend,
    /// Its backend is down.
    Down,
    /// Its backend drains, and the deadline is over.
    Drained,
    /// Its backend was tried for this request, and failed.
    Failed,
}

impl Sticky {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Off,
        Self::Hit,
        Self::Keyed,
        Self::Missing,
        Self::Tampered,
        Self::UnknownKey,
        Self::Expired,
        Self::Future,
        Self::UnknownBackend,
        Self::Down,
        Self::Drained,
        Self::Failed,
    ];

    /// In logs and counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Hit => "hit",
            Self::Keyed => "keyed",
            Self::Missing => "missing",
            Self::Tampered => "tampered",
            Self::UnknownKey => "unknown_key",
            Self::Expired => "expired",
            Self::Future => "future",
            Self::UnknownBackend => "unknown_backend",
            Self::Down => "down",
            Self::Drained => "drained",
            Self::Failed => "failed",
        }
    }
}
