//! How a moment looks to a client: RFC 3339 in UTC, to the millisecond.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::Millis;

/// A moment that serialises as `2026-11-22T21:00:28.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub Millis);

impl Timestamp {
    /// Whether it can be written at all: up to the last days of 9999.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.moment().is_some()
    }

    fn moment(self) -> Option<jiff::Timestamp> {
        i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond year 9999 no client could read it; such a time is a bug elsewhere and shows as the epoch.
        write!(f, "{:.3}", self.moment().unwrap_or_default())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Any RFC 3339 text, cut to the millisecond. A time before 1970 is none of ours.
impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as in RFC 3339: 2026-11-22T21:00:00Z")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let moment = text.parse::<jiff::Timestamp>().ok();
                let ms = moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok());
                ms.map(Timestamp).ok_or_else(|| E::custom("expected a time as in RFC 3339: 2026-11-22T21:00:00Z"))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_always_show() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(1_795_381_228_120).to_string(), "2026-11-22T21:00:28.120Z");
        let read = |text: &str| serde_json::from_value::<Timestamp>(text.into()).ok().map(|time| time.0);
        assert_eq!(read("2026-11-22T21:00:28.120Z"), Some(1_795_381_228_120));
        assert_eq!(read("2026-11-22T22:00:28+01:00"), Some(1_795_381_228_000));
        assert_eq!((read("2026-11-22"), read("1969-01-01T00:00:00Z"), read("soon")), (None, None, None));
        assert_eq!(Timestamp(u64::MAX).to_string(), "1970-01-01T00:00:00.000Z");
        // The last day of 9999 is not reached in every zone.
        let last = 253_402_207_200_000;
        assert_eq!((Timestamp(last - 1).is_writable(), Timestamp(last + 86_400_000).is_writable()), (true, false));
    }

    #[test]
    fn moments_are_read_from_any_zone() {
        let read = |text: &str| serde_json::from_value::<Timestamp>(text.into()).map(|moment| moment.0);
        assert_eq!(read("2026-11-22T21:00:28.120Z").unwrap(), 1_795_381_228_120);
        assert_eq!(read("2026-11-22T22:00:28+01:00").unwrap(), 1_795_381_228_000);
        for text in ["", "tomorrow", "2026-11-22", "2026-11-22T21:00:28", "1969-12-31T23:59:59Z", "1795381228120"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
