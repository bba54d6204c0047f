//! Sizes and durations as people write and read them.

use std::time::Duration;

/// `2GiB`, `512MB`, `64K`, `1048576` as bytes. Decimal and binary units; a bare
/// letter (`64K`) is binary, as in cgroups and GOMEMLIMIT's kin.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size; try 2GiB or 512MB"))?;
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("`{other}` is not a unit of size; try KiB, MB, GiB")),
    };
    Ok((number * factor) as u64)
}

/// `0xc000123450`, `c000123450`: an address, always in hexadecimal.
pub(crate) fn parse_address(text: &str) -> Result<u64, String> {
    let digits = text.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("`{text}` is not an address; try 0xc000123450"))
}

/// `30s`, `500ms`, `10m`, `1h30m`, `2d`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; try 30s, 10m or 1h30m");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        seconds += number
            * match unit.trim() {
                "ms" => 1e-3,
                "" | "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(wrong()),
            };
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Bytes in binary units with three digits: `48.3 MiB`.
pub(crate) fn bytes(n: f64) -> String {
    let mut value = n;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value.abs() < 1000.0 {
            return match unit {
                "B" => format!("{value:.0} B"),
                _ if value.abs() < 10.0 => format!("{value:.2} {unit}"),
                _ if value.abs() < 100.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

/// A count with its thousands apart: `1,204,337`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span in its two largest units: `3 h 20 min`; a second one of zero is left out.
pub(crate) fn span(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    let (large, unit, small, rest) = match s {
        0..60 => (s, "s", 0, ""),
        60..3600 => (s / 60, "min", s % 60, "s"),
        3600..86400 => (s / 3600, "h", s % 3600 / 60, "min"),
        _ => (s / 86400, "d", s % 86400 / 3600, "h"),
    };
    if small == 0 {
        format!("{large} {unit}")
    } else {
        format!("{large} {unit} {small} {rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("2GiB", Ok(2 << 30)),
            ("1.5 mib", Ok(3 << 19)),
            ("64K", Ok(65536)),
            ("10MB", Ok(10_000_000)),
            ("7", Ok(7)),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        for wrong in ["", "GiB", "1.2.3M", "5 parsecs", "-1"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2", 2_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for wrong in ["", "s", "3 fortnights", "1h-3m"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_address("0xc000123450"), Ok(0x00c0_0012_3450));
        assert_eq!(parse_address("c0"), Ok(0xc0));
        for wrong in ["", "0x", "main.T", "-1", "0x10000000000000000"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_204_337), "1,204,337");
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(50_600_000.0), "48.3 MiB");
        assert_eq!(bytes(-2048.0), "-2.00 KiB");
        assert_eq!(bytes(5e12), "4.55 TiB");
        assert_eq!(span(12_000.0), "3 h 20 min");
        assert_eq!(span(1_800.0), "30 min");
    }
}
