//! W3C trace context: one header that ties what servers log to who asked.

use crate::multipart::random_hex;

/// `00-{trace}-{span}-{flags}` in lower-case hex, the first two not all zero. A later version may be
/// longer, and is passed on as it is.
pub(crate) fn is_valid(value: &str) -> bool {
    let mut fields = value.split('-');
    let mut hex = |length: usize| {
        fields.next().filter(|field| {
            field.len() == length
                && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let zero = |field: &str| field.bytes().all(|b| b == b'0');
    let (version, trace, span, flags) = (hex(2), hex(32), hex(16), hex(2));
    let whole = fields.next().is_none() || version != Some("00");
    whole
        && version.is_some_and(|version| version != "ff")
        && trace.is_some_and(|trace| !zero(trace))
        && span.is_some_and(|span| !zero(span))
        && flags.is_some()
}

/// The beginning of a trace, sampled.
pub(crate) fn new_traceparent() -> String {
    let (trace, span) = (random_hex(), random_hex());
    format!("00-{trace}-{}-01", span.get(..16).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_apart_as_the_recommendation_says() {
        assert!(is_valid(&new_traceparent()));
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_valid(valid));
        assert!(is_valid(&format!("{}-more", valid.replacen("00", "cc", 1))));
        for bad in [
            "",
            "00",
            &format!("{valid}-more"),
            &valid.to_uppercase(),
            &valid.replacen("00", "ff", 1),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "x\r\ny: z",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
