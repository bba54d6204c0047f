//! What came: a profile, or something else that has to be named.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Form;

/// How many characters of a stranger's answer an error repeats.
pub(super) const WORDS: usize = 80;

/// What a body is instead of a profile; None when it may be one. Binary and
/// the text forms of heap and goroutine profiles pass; the reader of the format
/// has the last word.
pub(super) fn not_a_profile(content_type: &str, body: &[u8], wanted: Form) -> Option<&'static str> {
    if body.starts_with(&[0x1f, 0x8b]) {
        return None;
    }
    let start = body.trim_ascii_start();
    if start.is_empty() {
        return Some("nothing");
    }
    let kind = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if kind == "text/html" || kind == "application/xhtml+xml" || start.starts_with(b"<") {
        return Some("HTML");
    }
    if kind == "application/json" || kind.ends_with("+json") || looks_like_json(start) {
        return (wanted != Form::Json).then_some("JSON");
    }
    if wanted == Form::Json {
        return Some("text");
    }
    if starts_like_text_profile(start) {
        return None;
    }
    let head = &body[..body.len().min(512)];
    let printable = head
        .iter()
        .filter(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e))
        .count();
    if wanted == Form::Text || kind == "text/plain" || printable == head.len() {
        return Some("text");
    }
    None
}

fn looks_like_json(start: &[u8]) -> bool {
    // A bare protobuf starts with a field tag, 0x0a for a profile; `{` and `[`
    // followed by a quote or a bracket are JSON.
    let rest = start.get(1..).unwrap_or_default().trim_ascii_start();
    match start.first() {
        Some(b'{') => rest.first().is_none_or(|b| matches!(b, b'"' | b'}')),
        Some(b'[') => rest
            .first()
            .is_none_or(|b| matches!(b, b'{' | b'"' | b'[' | b']')),
        _ => false,
    }
}

fn starts_like_text_profile(start: &[u8]) -> bool {
    const HEADS: &[&[u8]] = &[
        b"heap profile:",
        b"heap_v2/",
        b"goroutine profile:",
        b"goroutine ",
        b"threadcreate profile:",
        b"--- heap",
        b"num_symbols:",
    ];
    HEADS.iter().any(|h| start.starts_with(h))
}

/// The value of a Retry-After header: seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX / 2)));
    }
    let at = UNIX_EPOCH + Duration::from_secs(http_date(value)?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since the epoch.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut parts = text.strip_suffix(" GMT")?.split(' ').skip(1);
    let day: u64 = parts
        .next()?
        .parse()
        .ok()
        .filter(|d| (1..=31).contains(d))?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let year: u64 = parts
        .next()?
        .parse()
        .ok()
        .filter(|y| (1970..=9999).contains(y))?;
    let mut clock = parts
        .next()?
        .split(':')
        .map(|n| n.parse::<u64>().ok().filter(|n| *n <= 60));
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since the epoch, counting years from March so that the leap day is last.
    let y = if month <= 2 { year - 1 } else { year };
    let m_from_march = (month + 9) % 12;
    let day_of_year = (153 * m_from_march + 2) / 5 + day - 1;
    let days = 365 * y + y / 4 - y / 100 + y / 400 + day_of_year;
    Some(days.checked_sub(719_468)? * 86_400 + h * 3600 + m * 60 + s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_answers() {
        for (kind, body, want) in [
            ("application/octet-stream", &b"\x1f\x8b\x08rest"[..], None),
            ("text/html", b"\x1f\x8b\x08rest", None),
            (
                "application/octet-stream",
                b"\x0a\x04\x08\x01\x10\x02",
                None,
            ),
            ("", b"heap profile: 1: 2 [3: 4] @ heap/524288", None),
            ("text/plain", b"heap_v2/524288\n", None),
            ("text/html; charset=utf-8", b"hello", Some("HTML")),
            ("", b"  <!DOCTYPE html>", Some("HTML")),
            ("application/json", b"null", Some("JSON")),
            ("", b"{\"error\":1}", Some("JSON")),
            ("text/plain", b"ok", Some("text")),
            ("application/octet-stream", b"hello there", Some("text")),
            ("", b"", Some("nothing")),
            ("", b" \n", Some("nothing")),
        ] {
            assert_eq!(
                not_a_profile(kind, body, Form::Profile),
                want,
                "{kind} {body:?}"
            );
        }
    }

    #[test]
    fn waits_in_seconds_and_dates() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (value, want) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("-1", None),
            ("", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(
                retry_after(value, now).map(|d| d.as_secs()),
                want,
                "{value}"
            );
        }
        assert!(retry_after("99999999999999999999999", now).is_some());
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            http_date("Tue, 29 Feb 2000 00:00:00 GMT"),
            Some(951_782_400)
        );
    }
}
