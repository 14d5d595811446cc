//! A part of a whole.

/// 0 to 1, never NaN: hence `Eq`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(f64);

impl Eq for Share {}

impl Share {
    /// Everything.
    pub const ALL: Self = Self(1.0);

    /// `None` for what is not from 0 to 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}
