//! How a moment looks to a client: RFC 3339 in UTC, to the millisecond.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::id::Millis;

/// A moment that serialises as `2026-11-22T21:00:28.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub Millis);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond year 9999 no client could read it; such a time is a bug elsewhere and shows as the epoch.
        let moment = i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        write!(f, "{:.3}", moment.unwrap_or_default())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_always_show() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(1_795_381_228_120).to_string(), "2026-11-22T21:00:28.120Z");
        assert_eq!(Timestamp(u64::MAX).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
