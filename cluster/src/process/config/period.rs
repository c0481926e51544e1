//! A span of time, with its unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time, written `500ms`, `10s`, `1m30s`, `12h` or `30d`. Whole microseconds.
///
/// A bare number is refused, because nobody can tell seconds from milliseconds by looking at it; only `0` needs no
/// unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

/// Largest first, in microseconds.
const UNITS: &[(&str, u64)] =
    &[("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl Period {
    /// No time.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// So many milliseconds.
    pub const fn ms(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    /// So many seconds.
    pub const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    /// So many minutes.
    pub const fn minutes(count: u64) -> Self {
        Self(Duration::from_secs(count * 60))
    }

    /// So many hours.
    pub const fn hours(count: u64) -> Self {
        Self(Duration::from_secs(count * 3600))
    }

    /// So many days of 24 hours.
    pub const fn days(count: u64) -> Self {
        Self(Duration::from_secs(count * 86_400))
    }

    /// For everything that takes a [`Duration`].
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_ms(self) -> u64 {
        // A period that was typed is below 2^64 microseconds, so its milliseconds fit.
        self.0.as_millis() as u64
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.0
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        let unit = UNITS.iter().find(|(_, size)| us >= *size && us.is_multiple_of(*size));
        match unit {
            Some((name, size)) => write!(f, "{}{name}", us / size),
            None => f.write_str("0s"),
        }
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("not a duration: {text:?}; write it like \"500ms\", \"10s\" or \"5m\"");
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        let mut total = 0u64;
        // Units must fall from left to right, so that `5s1m` and `1s1s` are the typing errors they look like.
        let mut units = UNITS;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            let after = rest[digits..].trim_start();
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let at = units.iter().position(|(name, _)| *name == &after[..letters]).ok_or_else(wrong)?;
            let part = number.checked_mul(units[at].1);
            total = part.and_then(|part| total.checked_add(part)).ok_or_else(|| format!("too long: {text:?}"))?;
            units = &units[at + 1..];
            rest = after[letters..].trim_start();
        }
        if text.trim().is_empty() {
            return Err(wrong());
        }
        Ok(Self(Duration::from_micros(total)))
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, like \"500ms\" or \"10s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Period, E> {
                match number {
                    0 => Ok(Period::ZERO),
                    _ => Err(E::invalid_type(de::Unexpected::Signed(number), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Period, E> {
                match number {
                    0 => Ok(Period::ZERO),
                    _ => Err(E::invalid_type(de::Unexpected::Unsigned(number), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn periods_are_read_and_shown_with_units() {
        let check = |text: &str, period: Period, shown: &str| {
            let read: Period = text.parse().unwrap();
            assert_eq!((read, read.to_string().as_str()), (period, shown), "{text}");
            assert_eq!(shown.parse::<Period>().unwrap(), period, "{text} does not survive being shown");
        };
        check("500ms", Period::ms(500), "500ms");
        check("10 s", Period::secs(10), "10s");
        check("5m", Period::minutes(5), "5m");
        check("1m30s", Period::secs(90), "90s");
        check("1m 30s", Period::secs(90), "90s");
        check("48h", Period::days(2), "2d");
        check("1500ms", Period::ms(1500), "1500ms");
        check("250us", Period(Duration::from_micros(250)), "250us");
        check("0", Period::ZERO, "0s");
        check("0s", Period::ZERO, "0s");
    }

    #[test]
    fn what_is_not_a_period_is_refused() {
        for text in ["", "10", "s", "-1s", "1.5s", "5s1m", "1s1s", "10 parsecs", "999999999999999d"] {
            assert!(text.parse::<Period>().is_err(), "{text:?} was accepted");
        }
    }
}
