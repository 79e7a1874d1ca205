use super::*;
use proptest::prelude::*;

#[test]
fn codes_and_statuses_mean_what_the_table_says() {
    let hint = Some(Duration::from_secs(2));
    let throttled = Effect::Throttled { retry_after: hint };
    for (code, status, attempt, effect, outcome) in [
        (Some("SlowDown"), 503, 1, throttled, Outcome::Neutral),
        (Some("ThrottlingException"), 400, 1, throttled, Outcome::Neutral),
        (None, 429, 1, throttled, Outcome::Neutral),
        (Some("InternalError"), 500, 1, Effect::Unknown, Outcome::Failure),
        (Some("InternalError"), 200, 1, Effect::Unknown, Outcome::Failure),
        (None, 502, 1, Effect::Unknown, Outcome::Failure),
        (Some("ServiceUnavailable"), 503, 1, throttled, Outcome::Failure),
        (Some("RequestTimeout"), 400, 1, Effect::Transient, Outcome::Neutral),
        (Some("BadDigest"), 400, 1, Effect::Transient, Outcome::Neutral),
        (Some("BadDigest"), 400, 2, Effect::Permanent, Outcome::Neutral),
        (Some("NoSuchKey"), 404, 1, Effect::Permanent, Outcome::Success),
        (Some("NoSuchUpload"), 404, 1, Effect::Permanent, Outcome::Success),
        (None, 403, 1, Effect::Permanent, Outcome::Success),
        (Some("InvalidObjectState"), 403, 1, Effect::Permanent, Outcome::Success),
        (Some("SignatureDoesNotMatch"), 403, 1, Effect::Permanent, Outcome::Failure),
        (Some("PermanentRedirect"), 301, 1, Effect::Permanent, Outcome::Success),
        (Some("EntityTooSmall"), 400, 1, Effect::Permanent, Outcome::Success),
    ] {
        let (_, verdict) = judge(code, status, hint, attempt);
        assert_eq!((verdict.effect, verdict.outcome), (effect, outcome), "{code:?} {status}");
    }
}

proptest! {
    #[test]
    fn any_answer_is_judged(code: Option<String>, status: u16, attempt: u32, wait: Option<Duration>) {
        let (_, verdict) = judge(code.as_deref(), status, wait, attempt);
        // Who was answered has sent it.
        prop_assert_ne!(verdict.effect, Effect::NeverSent);
    }

    #[test]
    fn a_code_nobody_knows_is_judged_by_its_status_and_repeated_only_if_that_says_so(
        code in "[A-Z][a-z]{1,20}Unheard", status in 100_u16..600, attempt in 1_u32..4,
    ) {
        let (_, verdict) = judge(Some(&code), status, None, attempt);
        let (_, bare) = judge(None, status, None, attempt);
        prop_assert_eq!(verdict, bare);
        let effect = match status {
            408 | 503 => Effect::Transient,
            429 => Effect::Throttled { retry_after: None },
            501 | 505 => Effect::Permanent,
            500.. => Effect::Unknown,
            _ => Effect::Permanent,
        };
        prop_assert_eq!(verdict.effect, effect);
    }
}

#[test]
fn a_wait_is_read_in_seconds_or_amazons_milliseconds() {
    assert_eq!(retry_after(Some("2"), None), Some(Duration::from_secs(2)));
    assert_eq!(retry_after(Some("2"), Some("150")), Some(Duration::from_millis(150)));
    assert_eq!(retry_after(Some("-1"), None), None);
}
