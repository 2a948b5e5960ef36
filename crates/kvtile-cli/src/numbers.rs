//! Parses numbers and sizes in bytes.

use std::{fmt::Display, str::FromStr};

/// Units of bytes: decimal ones with two letters, binary ones with one or three. Case does not
/// count.
const UNITS: [(&str, u64); 17] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

/// Bytes: `1048576`, `512K` and `512KiB` (of 1024), `1MB` (of 1000), `1.5GiB`.
///
/// # Errors
/// A text that is no size, no whole number of bytes, or zero; the error suggests a correction.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem =
        || "give bytes such as 1048576, 512K, 64MiB (of 1024) or 1GB (of 1000)".to_owned();
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text
        .split_at_checked(end.unwrap_or(text.len()))
        .ok_or_else(problem)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, unit) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(problem)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| problem())?;
    let bytes = whole.checked_mul(*unit).ok_or_else(problem)?;
    // Twelve digits after the point are enough for the largest unit.
    let digits = u32::try_from(part.len())
        .ok()
        .filter(|digits| *digits <= 12);
    let tens = digits
        .and_then(|digits| 10_u128.checked_pow(digits))
        .ok_or_else(problem)?;
    let part: u64 = part.parse().map_err(|_| problem())?;
    let part = u128::from(part) * u128::from(*unit);
    if !part.is_multiple_of(tens) {
        return Err(format!("{text} is not a whole number of bytes"));
    }
    let part = u64::try_from(part / tens).map_err(|_| problem())?;
    match bytes.checked_add(part) {
        None => Err(problem()),
        Some(0) => Err("0 bytes are too few; give 1 or more".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

/// Parses `least` to `most` bytes.
pub fn bytes_within(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| match parse_bytes(text)? {
        bytes if (least..=most).contains(&bytes) => Ok(bytes),
        _ => Err(format!("give {least} to {most} bytes")),
    }
}

/// Parses a whole number of `least` to `most`.
pub fn within<T>(
    least: T,
    most: T,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.trim().parse::<T>().ok();
        let number = number.filter(|number| *number >= least && *number <= most);
        number.ok_or_else(|| format!("give a whole number of {least} to {most}"))
    }
}

/// Parses a count of at least one.
///
/// # Errors
/// A text that is no such number; the error suggests a correction.
pub fn count(text: &str) -> Result<u64, String> {
    let number = text.trim().parse::<u64>().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "give a whole number of 1 or more".to_owned())
}

/// Parses an index, counted from 0.
///
/// # Errors
/// A text that is no such number; the error suggests a correction.
pub fn index(text: &str) -> Result<u64, String> {
    let number = text.trim().parse::<u64>();
    number.map_err(|_| "give a whole number of 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_with_any_unit() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1B", 1),
            ("512K", 512 << 10),
            ("512k", 512 << 10),
            ("512KiB", 512 << 10),
            ("512KB", 512_000),
            ("1MB", 1_000_000),
            ("1MiB", 1 << 20),
            ("64 MiB", 64 << 20),
            ("1G", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("0.5kb", 500),
            ("1TiB", 1 << 40),
            ("2T", 2 << 40),
            ("1PB", 1_000_000_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "0",
            "0MiB",
            "MiB",
            "-1",
            "1.5",
            "0.3K",
            "1..5G",
            ".5G",
            "1.G",
            "99999999999GiB",
            "1XB",
            "1e9",
            "1,000",
            "18446744073709551616",
            "1.0000000000001P",
        ] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
        assert_eq!(bytes_within(2, 4)("3"), Ok(3));
        assert_eq!(bytes_within(2, 4)("5"), Err("give 2 to 4 bytes".to_owned()));
    }

    #[test]
    fn numbers_say_their_limits() {
        assert_eq!(count("7"), Ok(7));
        for text in ["0", "-1", "1.5", "x", ""] {
            assert_eq!(count(text).unwrap_err(), "give a whole number of 1 or more");
        }
        assert_eq!(index("0"), Ok(0));
        assert_eq!(index("-1").unwrap_err(), "give a whole number of 0 or more");
        assert_eq!(within(1_u32, 9)("9"), Ok(9));
        assert_eq!(
            within(1_u32, 9)("10").unwrap_err(),
            "give a whole number of 1 to 9"
        );
    }
}
