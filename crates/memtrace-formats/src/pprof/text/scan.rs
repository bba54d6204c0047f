//! Small pieces of text.

/// A place in a line that moves forward.
pub(super) struct Scan<'a> {
    rest: &'a str,
}

impl<'a> Scan<'a> {
    pub(super) fn new(rest: &'a str) -> Self {
        Self { rest }
    }

    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    pub(super) fn spaces(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    pub(super) fn expect(&mut self, c: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(c)?;
        Some(())
    }

    pub(super) fn while_(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    pub(super) fn integer(&mut self) -> Option<i64> {
        let negative = self.expect('-').is_some();
        let digits = self.while_(|c| c.is_ascii_digit());
        let n: i64 = digits.parse().ok()?;
        Some(if negative { -n } else { n })
    }

    /// `13: 1595680 [47130736: 2584596557304]`
    pub(super) fn quadruple(&mut self) -> Option<(i64, i64, i64, i64)> {
        let (a, b) = self.pair()?;
        self.spaces();
        self.expect('[')?;
        let (c, d) = self.pair()?;
        self.spaces();
        self.expect(']')?;
        (c >= 0 && d >= 0).then_some((a, b, c, d))
    }

    fn pair(&mut self) -> Option<(i64, i64)> {
        self.spaces();
        let a = self.integer()?;
        self.expect(':')?;
        self.spaces();
        Some((a, self.integer()?))
    }
}

/// All numbers of the form `0x1f`; `None` when one does not fit 64 bits.
pub(super) fn hex_numbers(text: &str) -> Option<Vec<u64>> {
    let digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    text.match_indices("0x")
        .filter_map(|(at, _)| {
            let rest = &text[at + 2..];
            let end = rest.find(|c| !digit(c)).unwrap_or(rest.len());
            (end > 0).then(|| u64::from_str_radix(&rest[..end], 16).ok())
        })
        .take(super::MOST_FRAMES)
        .collect()
}

/// Labels of one sample that are read.
const MOST_LABELS: usize = 1024;

/// `{"key":"value", "other":"value"}` with the quoting of Go.
pub(super) fn go_labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = go_string(rest).filter(|_| labels.len() < MOST_LABELS) {
        let Some(after) = after.trim_start().strip_prefix(':') else {
            break;
        };
        let Some((value, after)) = go_string(after) else {
            break;
        };
        labels.push((key, value));
        rest = after;
    }
    labels
}

/// The first quoted string, and what follows it.
fn go_string(text: &str) -> Option<(String, &str)> {
    let start = text.find('"')? + 1;
    let mut bytes = Vec::new();
    let mut chars = text[start..].char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => {
                let string = String::from_utf8_lossy(&bytes).into_owned();
                return Some((string, &text[start + i + 1..]));
            }
            '\\' => {
                let (_, kind) = chars.next()?;
                let mut hex = |digits: usize| {
                    let mut n = 0u32;
                    for _ in 0..digits {
                        n = n << 4 | chars.next()?.1.to_digit(16)?;
                    }
                    Some(n)
                };
                let code = match kind {
                    'x' => {
                        bytes.push(hex(2)? as u8);
                        continue;
                    }
                    'u' => hex(4)?,
                    'U' => hex(8)?,
                    'n' => 10,
                    't' => 9,
                    'r' => 13,
                    'a' => 7,
                    'b' => 8,
                    'f' => 12,
                    'v' => 11,
                    other => u32::from(other),
                };
                let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_heap_line() {
        let mut scan = Scan::new("  -1:  2 [ 3: 4] @");
        assert_eq!(scan.quadruple(), Some((-1, 2, 3, 4)));
        assert_eq!(scan.rest(), " @");
        for bad in [
            "",
            "1",
            "1:",
            "1: 2",
            "1: 2 [3: 4",
            "1: 2 [-3: 4]",
            "x: 2 [3: 4]",
        ] {
            assert_eq!(Scan::new(bad).quadruple(), None, "{bad}");
        }
        assert_eq!(Scan::new("99999999999999999999").integer(), None);
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(hex_numbers(" 0x1f 0x0 zz 0xg"), Some(vec![0x1f, 0]));
        assert_eq!(hex_numbers("0xffffffffffffffff"), Some(vec![u64::MAX]));
        assert_eq!(hex_numbers("0x1ffffffffffffffff"), None);
        assert_eq!(hex_numbers(""), Some(vec![]));
    }

    #[test]
    fn labels_of_go() {
        let labels = go_labels(r#"{"block":"G001-\"M17\"", "é":"\x00\u00e9\n"}"#);
        assert_eq!(
            labels,
            [
                ("block".into(), "G001-\"M17\"".into()),
                ("é".to_owned(), "\0é\n".to_owned())
            ]
        );
        for bad in [
            "",
            "{}",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":\"\\",
            "{\"a\":\"\\x0",
        ] {
            assert_eq!(go_labels(bad), [], "{bad}");
        }
    }
}
