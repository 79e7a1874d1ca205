//! Retry-After, in both of its forms.

use http::{HeaderMap, header};
use std::time::{Duration, SystemTime};

/// RFC 9110 section 10.2.3: seconds, or a date that is compared with the server's own clock where
/// it tells it. A date that has passed is zero; anything else is ignored.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let value = text(header::RETRY_AFTER)?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let now = text(header::DATE).and_then(|d| httpdate::parse_http_date(d).ok());
    Some(then.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_seconds_a_date_is_the_distance_and_the_rest_is_nothing(
            seconds in any::<u64>(),
            (now, later) in (0_u64..200_000_000_000, 0_u64..50_000_000_000),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            prop_assert_eq!(wait(None, &seconds.to_string()), Some(Duration::from_secs(seconds)));
            let date = |s| httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
            let told = wait(Some(&date(now)), &date(now + later));
            prop_assert_eq!(told, Some(Duration::from_secs(later)));
            prop_assert_eq!(wait(Some(&date(now + later)), &date(now)), Some(Duration::ZERO));
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
                if let Some(wait) = retry_after(&headers) {
                    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                    prop_assert!(text.parse() == Ok(wait.as_secs()) || text.len() > 19, "{}", text);
                }
            }
        }
    }

    fn wait(date: Option<&str>, value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        if let Some(date) = date {
            headers.insert("date", date.parse().unwrap());
        }
        headers.insert("retry-after", value.parse().unwrap());
        retry_after(&headers)
    }

    #[test]
    fn vectors() {
        const S: Duration = Duration::from_secs(1);
        let now = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        for (value, expected) in [
            ("0", Some(Duration::ZERO)),
            ("120", Some(120 * S)),
            (" 7 ", Some(7 * S)),
            ("007", Some(7 * S)),
            ("99999999999999999999999", Some(Duration::from_secs(u64::MAX))),
            // The three forms that RFC 9110 section 5.6.7 wants read.
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10 * S)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10 * S)),
            ("Sun Nov  6 08:49:47 1994", Some(10 * S)),
            // It has passed.
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(Duration::ZERO)),
            ("-1", None),
            ("+3", None),
            ("1.5", None),
            ("1e3", None),
            ("0x10", None),
            ("10s", None),
            ("1, 2", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:47 CET", None),
        ] {
            assert_eq!(wait(now, value), expected, "{value}");
        }
    }

    #[test]
    fn without_a_date_of_the_server_ours_is_compared() {
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let waits = wait(None, &soon).unwrap();
        assert!((58..=60).contains(&waits.as_secs()), "{waits:?}");
        assert_eq!(wait(Some("yesterday"), "Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::ZERO));
    }
}
