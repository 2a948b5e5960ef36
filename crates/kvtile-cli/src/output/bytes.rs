//! Formats sizes and counts for people.

/// `1.5 MiB (1,572,864 bytes)`, or `96 bytes`.
pub fn bytes(count: u64) -> String {
    let exact = match count {
        1 => "1 byte".to_owned(),
        _ => format!("{} bytes", thousands(count)),
    };
    match binary(count) {
        Some(short) => format!("{short} ({exact})"),
        None => exact,
    }
}

/// `1.5 MiB`, `96 B`.
pub fn count(count: u64) -> String {
    binary(count).unwrap_or_else(|| format!("{count} B"))
}

fn binary(count: u64) -> Option<String> {
    const UNITS: [(&str, u32); 5] = [
        ("PiB", 50),
        ("TiB", 40),
        ("GiB", 30),
        ("MiB", 20),
        ("KiB", 10),
    ];
    let (unit, shift) = UNITS.iter().find(|(_, shift)| count >> shift > 0)?;
    let whole = count >> shift;
    let rest = count - (whole << shift);
    if rest == 0 {
        return Some(format!("{whole} {unit}"));
    }
    // Three digits are enough to compare; the exact number follows where it matters.
    let hundredths = (u128::from(rest) * 100) >> shift;
    Some(match whole {
        0..10 => format!("{whole}.{hundredths:02} {unit}"),
        10..100 => format!("{whole}.{} {unit}", hundredths / 10),
        _ => format!("{whole} {unit}"),
    })
}

/// `1,572,864`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_exact() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(1024), "1 KiB (1,024 bytes)");
        assert_eq!(bytes(1_572_864), "1.50 MiB (1,572,864 bytes)");
        assert_eq!(count(656), "656 B");
        assert_eq!(count(u64::MAX), "16383 PiB");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(999_999), "999,999");
    }
}
