//! How one setting is written in a file or in the environment.

use crate::{backoff::Jitter, hedge::Hedge, policy::BreakGrowth, policy::Mode};
use figment::value::{Num, Value};
use std::time::Duration;

/// A type of setting: what is allowed, and how it is read.
pub(crate) trait Setting: Sized {
    const ALLOWED: &'static str;

    fn read(value: &Value) -> Option<Self>;
}

/// What is text in the environment, where it is written in a file without quotes. Not a fraction, whose
/// last zeros are gone by then.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, on) => Some(on.to_string()),
        Value::Num(_, number) => {
            let signed = number.to_i128().map(|n| n.to_string());
            signed.or_else(|| number.to_u128().map(|n| n.to_string()))
        }
        _ => None,
    }
}

/// Something counted, from 0: what 0 means is for its reader.
pub(super) struct Count(pub(super) u32);

impl Setting for Count {
    const ALLOWED: &'static str = "a whole number";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Num(_, number) => whole(*number),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        }
        .map(Self)
    }
}

/// Something counted, at least 1.
impl Setting for u32 {
    const ALLOWED: &'static str = "a whole number from 1";

    fn read(value: &Value) -> Option<Self> {
        Count::read(value).map(|Count(n)| n).filter(|n| *n > 0)
    }
}

impl Setting for Duration {
    const ALLOWED: &'static str = "seconds, such as 1.5, or \"250ms\", \"2s\", \"1m\"";

    fn read(value: &Value) -> Option<Self> {
        let seconds = match value {
            Value::Num(_, number) => float(*number)?,
            Value::String(_, text) => seconds(text)?,
            _ => return None,
        };
        Self::try_from_secs_f64(seconds).ok()
    }
}

impl Setting for f64 {
    const ALLOWED: &'static str = "a number from 1";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Num(_, number) => float(*number),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        }
        .filter(|n: &f64| n.is_finite() && *n >= 1.0)
    }
}

impl Setting for bool {
    const ALLOWED: &'static str = "true or false";

    fn read(value: &Value) -> Option<Self> {
        value.to_bool_lossy()
    }
}

/// A share in `0.0..=1.0`, or none at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate(pub(crate) Option<f64>);

impl Setting for Rate {
    const ALLOWED: &'static str = "a share over 0 and up to 1, such as 0.5, or \"off\"";

    fn read(value: &Value) -> Option<Self> {
        let share = match value {
            Value::String(_, text) if text.trim() == "off" => return Some(Self(None)),
            Value::Bool(_, false) => return Some(Self(None)),
            Value::Num(_, number) => float(*number),
            Value::String(_, text) => text.trim().parse().ok(),
            _ => None,
        };
        share.filter(|share| *share > 0.0 && *share <= 1.0).map(|share| Self(Some(share)))
    }
}

impl Setting for Jitter {
    const ALLOWED: &'static str = "full, equal, decorrelated, none, true or false";

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(_, true) => Some(Self::Full),
            Value::Bool(_, false) => Some(Self::None),
            Value::String(_, text) => one_of(&Self::NAMES, text),
            _ => None,
        }
    }
}

impl Setting for Mode {
    const ALLOWED: &'static str = "enforce or observe";

    fn read(value: &Value) -> Option<Self> {
        one_of(&[("enforce", Self::Enforce), ("observe", Self::Observe)], value.as_str()?)
    }
}

impl Setting for BreakGrowth {
    const ALLOWED: &'static str = "exponential or fixed";

    fn read(value: &Value) -> Option<Self> {
        one_of(&[("exponential", Self::Exponential), ("fixed", Self::Fixed)], value.as_str()?)
    }
}

/// `None` is "off".
impl Setting for Option<u32> {
    const ALLOWED: &'static str = "a whole number from 1, or \"off\"";

    fn read(value: &Value) -> Option<Self> {
        match value.as_str().map(str::trim) {
            Some("off") => Some(None),
            _ => u32::read(value).map(Some),
        }
    }
}

/// `None` is "off".
impl Setting for Option<Hedge> {
    const ALLOWED: &'static str = "p95, a duration over 0 such as \"50ms\", or \"off\"";

    fn read(value: &Value) -> Option<Self> {
        match value.as_str().map(str::trim) {
            Some("off") => Some(None),
            Some("p95") => Some(Some(Hedge::P95)),
            _ => {
                let after = Duration::read(value).filter(|after| !after.is_zero());
                after.map(|after| Some(Hedge::After(after)))
            }
        }
    }
}

fn one_of<T: Copy>(all: &[(&'static str, T)], text: &str) -> Option<T> {
    all.iter().find(|(name, _)| text.trim().eq_ignore_ascii_case(name)).map(|(_, value)| *value)
}

fn float(number: Num) -> Option<f64> {
    number.to_f64().or_else(|| whole(number).map(f64::from))
}

/// Files give signed numbers, the environment unsigned ones.
fn whole(number: Num) -> Option<u32> {
    let unsigned = number.to_u128().and_then(|n| u32::try_from(n).ok());
    unsigned.or_else(|| number.to_i128().and_then(|n| u32::try_from(n).ok()))
}

fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    let (number, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))?;
    number.trim().parse::<f64>().ok().map(|n| n * scale)
}
