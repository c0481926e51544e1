//! Until when a client waits: the header `grpc-timeout`.

use std::time::Duration;

use http::HeaderMap;

/// The header's name.
const TIMEOUT: &str = "grpc-timeout";

/// How long the client waits, if it says so: at most eight digits and a unit. What cannot be read counts as nothing.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn every_unit_is_read_and_nonsense_is_not() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_static(text));
            of(&headers)
        };
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!((read("1S"), read("2M")), (Some(Duration::from_secs(1)), Some(Duration::from_secs(120))));
        assert_eq!((read("0u"), read("5n")), (Some(Duration::ZERO), Some(Duration::from_nanos(5))));
        for nonsense in ["", "S", "1", "-1S", "1s", "123456789S", "1.5S", "+1S"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }
}
