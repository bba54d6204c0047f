//! The one gate for text from outside.
//!
//! Names of functions, files, types and labels, what a server answers, how a process calls
//! itself: all of it may have been chosen to deceive whoever reads it. What a terminal obeys
//! (ESC, CR), what ends a line, what turns the direction of writing and what nobody sees is
//! shown as an escape, `\x1b` or `\u{202e}`. Letters of all scripts, accents and emoji stay.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Whether a character shows as itself and does nothing else.
///
/// That is what `Debug` of Rust leaves as it is, by the tables of the standard library: no
/// control (Cc), format (Cf), line or paragraph separator (Zl, Zp), no space but the plain
/// one, nothing private (Co) or unassigned (Cn). Of the rest, what has no shape is left out.
#[must_use]
pub fn is_visible(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // The space of Chinese and Japanese text, as wide as its letters.
        '\u{3000}' => true,
        // Fillers, marks without a shape, and the variation selectors that no emoji needs.
        '\u{34f}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{3164}'
        | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}' => false,
        c => {
            // A mark that belongs to the letter before it is escaped where it stands alone:
            // so it is asked behind a letter.
            let mut buffer = [b'a'; 5];
            let length = 1 + c.encode_utf8(&mut buffer[1..]).len();
            let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
            text.escape_debug().nth(1) == Some(c)
        }
    }
}

/// Text from outside as it may be shown. Text that was shown once stays as it is.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    let Some((at, _)) = text.char_indices().find(|(_, c)| !is_visible(*c)) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..at]);
    for c in text[at..].chars() {
        show(c, &mut out);
    }
    Cow::Owned(out)
}

/// The beginning of a text from outside, where it has more than `most` characters as shown:
/// with an ellipsis, and no escape cut in two.
#[must_use]
pub fn visible_start(text: &str, most: usize) -> Cow<'_, str> {
    let mut out = String::new();
    let mut count = 0;
    // Where to cut if more comes than there is room for.
    let mut cut = 0;
    let mut is_changed = false;
    for c in text.chars() {
        let before = out.len();
        show(c, &mut out);
        is_changed |= out.len() - before != c.len_utf8();
        // An escape is ASCII; what is not escaped is one character.
        count += if is_visible(c) { 1 } else { out.len() - before };
        if count > most {
            out.truncate(cut);
            out.push('…');
            return Cow::Owned(out);
        }
        if count < most {
            cut = out.len();
        }
    }
    if is_changed {
        Cow::Owned(out)
    } else {
        Cow::Borrowed(text)
    }
}

fn show(c: char, out: &mut String) {
    // Writing to a `String` does not fail.
    let _ = match c {
        c if is_visible(c) => out.write_char(c),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if c.is_ascii() => write!(out, "\\x{:02x}", u32::from(c)),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// A name as a frame of folded stacks (`main;run 5`): it can begin no other frame or line,
/// and its end is not taken for a value.
#[must_use]
pub fn folded_frame(name: &str) -> String {
    let mut words: Vec<&str> = name.split_whitespace().collect();
    // `f 3` before a value looks like the two values of a differential profile.
    let last = words.pop_if(|w| w.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let mut frame = words.join(" ");
    if let Some(last) = last {
        if !frame.is_empty() {
            frame.push('_');
        }
        frame.push_str(last);
    }
    if frame.is_empty() {
        return "[unknown]".to_owned();
    }
    visible(&frame.replace(';', ":")).into_owned()
}

/// A value as JSON in one line. Whatever is not visible is written as `\u202e`: the text
/// gives no orders to a terminal, and whoever parses it gets the same string.
///
/// # Errors
/// The value has a map whose keys are no strings, or its `Serialize` fails.
pub fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, Escaped))?;
    String::from_utf8(out).map_err(|e| serde_json::Error::io(io::Error::other(e)))
}

/// JSON in one line, escaped.
struct Escaped;

impl Formatter for Escaped {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| !is_visible(*c)) {
            CompactFormatter.write_string_fragment(out, &rest[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(out, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that may never be shown as it is; told apart from how the gate tells it.
    fn is_forbidden(c: char) -> bool {
        c.is_control()
            || matches!(c,
                '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
                | '\u{e000}'..='\u{f8ff}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
    }

    #[test]
    fn orders_to_a_terminal_are_shown() {
        for (text, shown) in [
            ("\x1b[2J\x1b]0;t\x07", r"\x1b[2J\x1b]0;t\x07"),
            ("a\r\nb\tc\0\x7f", r"a\r\nb\tc\x00\x7f"),
            (
                "\u{9b}31m\u{85}\u{2028}\u{2029}",
                r"\u{9b}31m\u{85}\u{2028}\u{2029}",
            ),
            ("x\u{202e}y\u{2066}\u{61c}", r"x\u{202e}y\u{2066}\u{61c}"),
            (
                "a\u{200b}b\u{feff}\u{ad}\u{e0041}",
                r"a\u{200b}b\u{feff}\u{ad}\u{e0041}",
            ),
            (
                "\u{3164}\u{115f}\u{34f}\u{e000}\u{fffe}",
                r"\u{3164}\u{115f}\u{34f}\u{e000}\u{fffe}",
            ),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn ordinary_text_stays() {
        for text in [
            "",
            "cnc/internal/gcode.(*Cache[go.shape.string]).Lookup",
            r#"C:\x1b "quoted" 'c' → × … ±"#,
            "订单　处理 café cafe\u{301} été Ω עברית हिन्दी ไทย 👍🏽 ❤\u{fe0f} \u{fffd}",
        ] {
            assert!(
                matches!(visible(text), Cow::Borrowed(same) if same == text),
                "{text}"
            );
            assert!(matches!(visible_start(text, 80), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        for (text, most, shown) in [
            ("abcd", 4, "abcd"),
            ("abcde", 4, "abc…"),
            ("a\x1bb", 6, r"a\x1bb"),
            ("a\x1bb", 5, "a…"),
            ("中文中文", 3, "中文…"),
            ("abc", 0, "…"),
            ("", 0, ""),
        ] {
            assert_eq!(visible_start(text, most), shown, "{text:?} {most}");
        }
    }

    #[test]
    fn frames_of_folded_stacks() {
        for (name, frame) in [
            ("main.f", "main.f"),
            ("a;b\n c", "a:b c"),
            ("f 3", "f_3"),
            (" f 3.5 \t", "f_3.5"),
            ("3", "3"),
            ("f 3x", "f 3x"),
            (" \r\n", "[unknown]"),
            ("x\u{202e}\x1b[m", r"x\u{202e}\x1b[m"),
            ("a\u{2028}b\u{a0}c", "a b c"),
        ] {
            assert_eq!(folded_frame(name), frame, "{name:?}");
        }
    }

    #[test]
    fn json_is_the_same_and_gives_no_orders() {
        let text = "\x1b\u{9b}\u{7f}\u{202e}\u{2028}\u{e0041}\u{10ffff}é\"\\中\n";
        let json = to_json(&std::collections::BTreeMap::from([(text, text)])).unwrap();
        let escaped = r#""\u001b\u009b\u007f\u202e\u2028\udb40\udc41\udbff\udfffé\"\\中\n""#;
        assert_eq!(json, format!("{{{escaped}:{escaped}}}"));
    }

    #[test]
    fn every_character() {
        for c in '\0'..=char::MAX {
            assert!(!(is_forbidden(c) && is_visible(c)), "{c:?}");
            // The fillers of Hangul count as letters, and have no shape.
            let is_filler = matches!(c, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
            assert!(!c.is_alphanumeric() || is_visible(c) || is_filler, "{c:?}");
        }
    }

    /// `any::<String>()` has no control characters.
    fn text() -> impl Strategy<Value = String> {
        let odd = "\0\x07\t\n\r\x1b\x7f\u{85}\u{9b}\u{200d}\u{202e}\u{2028}\u{2069}\u{feff}\u{e0041}; .…\\\"3";
        let odd: Vec<char> = odd.chars().collect();
        let one = prop_oneof![any::<char>(), proptest::sample::select(odd)];
        proptest::collection::vec(one, 0..40).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn nothing_forbidden_comes_out(text in text(), most in 0usize..60) {
            let shown = visible(&text);
            prop_assert!(!shown.contains(is_forbidden), "{shown:?}");
            prop_assert_eq!(visible(&shown), &*shown);
            let start = visible_start(&text, most);
            prop_assert!(start.chars().count() <= most.max(1));
            match start.strip_suffix('…') {
                Some(start) if shown.chars().count() > most => prop_assert!(shown.starts_with(start)),
                _ => prop_assert_eq!(&start, &shown),
            }
            let frame = folded_frame(&text);
            prop_assert!(!frame.contains(is_forbidden) && !frame.contains(';') && !frame.is_empty());
            prop_assert_eq!(folded_frame(&frame), frame);
        }

        #[test]
        fn json_is_the_same_string(text in text()) {
            let json = to_json(&text).unwrap();
            prop_assert!(!json.contains(is_forbidden), "{json:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
