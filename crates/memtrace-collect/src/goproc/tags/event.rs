//! What the kernel is to fetch at each hit, and what it fetched.
//!
//! The labels are fetched by the kernel while the goroutine stands at the probe: nothing is
//! read too late, when another goroutine has the memory. Of a fetch that fails (a pointer
//! that is nil) the kernel leaves what an older event had in its place: so the pointers on
//! the way are fetched as well, and nothing counts behind one that is nil.

use std::collections::HashMap;
use std::fmt::Write as _;

use memtrace_formats::goheap::{LabelForm, LabelSites};

/// Labels that are fetched of a set.
const LABELS: usize = 3;
/// Bytes that are fetched of keys and values.
const KEY: usize = 32;
const VALUE: usize = 64;
/// More labels in a set, or a longer text, are taken for damage.
const MOST_LABELS: u64 = 1 << 10;
const LONGEST: u64 = 1 << 20;
/// Marks in a map's bucket below this one say that the place is free.
const FIRST_MARK: u8 = 5;

/// The labels of a goroutine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    /// Keys and values; one that was longer than what is fetched (32 and 64 bytes) ends in
    /// `…`.
    pub pairs: Vec<(String, String)>,
    /// Whether there are no others: at most three are fetched.
    pub is_whole: bool,
}

impl Labels {
    /// Whether a label has this value.
    #[must_use]
    pub fn has_value(&self, value: &str) -> bool {
        self.pairs.iter().any(|(_, v)| v == value)
    }
}

/// Fetches at the binding of a sampled object.
pub(super) fn sampled(sites: &LabelSites) -> String {
    let goroutine = format!("+{}(+{}(%r14))", sites.current, sites.m);
    let mut text = format!("obj=%ax size=+{}(%bx) g={goroutine}", sites.bucket_size);
    labels(
        &mut text,
        sites.form,
        'n',
        &format!("+{}({goroutine})", sites.labels),
    );
    text
}

/// Fetches where a goroutine gets other labels.
pub(super) fn changed(sites: &LabelSites) -> String {
    let mut text = format!("id=+{}(%r14)", sites.goid);
    labels(
        &mut text,
        sites.form,
        'o',
        &format!("+{}(%r14)", sites.labels),
    );
    labels(&mut text, sites.form, 'n', "%ax");
    text
}

fn labels(text: &mut String, form: LabelForm, set: char, word: &str) {
    // Writing to a string cannot fail.
    let mut add = |name: String, what: String| {
        let _ = write!(text, " {set}{name}={what}");
    };
    add("l".to_owned(), word.to_owned());
    let (list, strings): (String, [u64; 3]) = match form {
        // In a map's bucket: eight marks, eight keys, eight values.
        LabelForm::Map => {
            let map = format!("+0({word})");
            add("h".to_owned(), map.clone());
            add("c".to_owned(), format!("+0({map})"));
            add("b".to_owned(), format!("+9({map}):u8"));
            let bucket = format!("+16({map})");
            add("m".to_owned(), format!("+0({bucket})"));
            (bucket, [8, 136, 16])
        }
        LabelForm::List => {
            add("c".to_owned(), format!("+8({word})"));
            (format!("+0({word})"), [0, 16, 32])
        }
    };
    add("p".to_owned(), list.clone());
    let [key, value, step] = strings;
    for i in 0..LABELS {
        for (what, first, bytes) in [('k', key, KEY), ('v', value, VALUE)] {
            let at = first + step * i as u64;
            add(format!("{what}p{i}"), format!("+{at}({list})"));
            add(format!("{what}l{i}"), format!("+{}({list})", at + 8));
            add(
                format!("{what}{i}"),
                format!("+0(+{at}({list})):x64[{}]", bytes / 8),
            );
        }
    }
}

/// Where in an event's bytes each field is.
#[derive(Debug, Default)]
pub(super) struct Format {
    fields: HashMap<String, (usize, usize)>,
}

impl Format {
    /// From the event's `format` file.
    pub(super) fn parse(text: &str) -> Self {
        let field = |line: &str| {
            let mut parts = line.trim().split(';').map(str::trim);
            let name = parts.next()?.strip_prefix("field:")?;
            let name = name.split_whitespace().next_back()?;
            let number =
                |part: Option<&str>, key: &str| part?.strip_prefix(key)?.parse::<usize>().ok();
            let offset = number(parts.next(), "offset:")?;
            let size = number(parts.next(), "size:")?;
            let name = name.split('[').next().unwrap_or(name);
            Some((name.to_owned(), (offset, size)))
        };
        Self {
            fields: text.lines().filter_map(field).collect(),
        }
    }

    fn bytes<'r>(&self, raw: &'r [u8], name: &str) -> Option<&'r [u8]> {
        let (offset, size) = *self.fields.get(name)?;
        raw.get(offset..offset.checked_add(size)?)
    }

    pub(super) fn number(&self, raw: &[u8], name: &str) -> Option<u64> {
        let bytes = self.bytes(raw, name)?;
        let mut word = [0; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    }

    /// The labels of a set; `None` where they are not as expected.
    pub(super) fn labels(&self, raw: &[u8], form: LabelForm, set: char) -> Option<Labels> {
        let none = Some(Labels {
            pairs: Vec::new(),
            is_whole: true,
        });
        let field = |name: &str| self.number(raw, &format!("{set}{name}"));
        if field("l")? == 0 || form == LabelForm::Map && field("h")? == 0 {
            return none;
        }
        let count = field("c")?;
        if count == 0 {
            return none;
        }
        // A map of more than one bucket has its labels anywhere.
        let is_single = form == LabelForm::List || field("b")? == 0;
        if count > MOST_LABELS || !is_single || field("p")? == 0 {
            return None;
        }
        let marks = match form {
            LabelForm::Map => field("m")?.to_le_bytes(),
            LabelForm::List => [u8::MAX; 8],
        };
        let fetched = usize::try_from(count).ok()?.min(LABELS);
        let mut labels = Labels {
            pairs: Vec::with_capacity(fetched),
            is_whole: fetched as u64 == count,
        };
        for (i, mark) in marks.iter().enumerate().take(fetched) {
            if *mark < FIRST_MARK {
                return None;
            }
            let text = |what: char| {
                let length = field(&format!("{what}l{i}"))?;
                let is_there = field(&format!("{what}p{i}"))? != 0;
                if length > LONGEST || length > 0 && !is_there {
                    return None;
                }
                let bytes = self.bytes(raw, &format!("{set}{what}{i}"))?;
                Some(shown(bytes, usize::try_from(length).ok()?))
            };
            labels.pairs.push((text('k')?, text('v')?));
        }
        Some(labels)
    }
}

/// A text of which the beginning was fetched, without what a terminal could take for its
/// own.
fn shown(fetched: &[u8], length: usize) -> String {
    let bytes = &fetched[..length.min(fetched.len())];
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        // Cut within a character.
        Err(error) if error.error_len().is_none() && length > fetched.len() => {
            String::from_utf8_lossy(&bytes[..error.valid_up_to()])
        }
        Err(_) => String::from_utf8_lossy(bytes),
    };
    let shown = |c: char| if c.is_control() { '?' } else { c };
    let mut text: String = text.chars().map(shown).collect();
    if length > fetched.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(form: LabelForm) -> LabelSites {
        LabelSites {
            sampled: Some(0x1000),
            is_sampling_off: false,
            set_labels: Some(0x2000),
            m: 48,
            current: 184,
            labels: 352,
            goid: 152,
            bucket_size: 32,
            form,
        }
    }

    /// The kernel refuses more than 128 arguments, or one of more than 63 characters.
    #[test]
    fn arguments_are_within_what_the_kernel_takes() {
        for form in [LabelForm::Map, LabelForm::List] {
            for text in [sampled(&sites(form)), changed(&sites(form))] {
                let arguments: Vec<&str> = text.split(' ').collect();
                assert!(arguments.len() <= 128);
                for argument in arguments {
                    let (name, what) = argument.split_once('=').unwrap();
                    assert!(name.len() < 32 && what.len() <= 63, "{argument}");
                }
                assert!(text.len() < 3800, "{}", text.len());
            }
        }
        let text = sampled(&sites(LabelForm::List));
        assert!(text.starts_with("obj=%ax size=+32(%bx) g=+184(+48(%r14)) "));
        assert!(text.contains(" nl=+352(+184(+48(%r14))) nc=+8(+352(+184(+48(%r14)))) "));
        assert!(text.contains(" nv1=+0(+48(+0(+352(+184(+48(%r14)))))):x64[8]"));
        let text = changed(&sites(LabelForm::Map));
        assert!(text.contains(" ov0=+0(+136(+16(+0(+352(%r14))))):x64[8]"));
    }

    /// An event with these fields, in the kernel's form.
    struct Event {
        format: String,
        raw: Vec<u8>,
    }

    impl Event {
        fn new() -> Self {
            Self {
                format:
                    "name: s\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n"
                        .to_owned(),
                raw: vec![0; 16],
            }
        }

        fn with(mut self, name: &str, bytes: &[u8]) -> Self {
            let (offset, size) = (self.raw.len(), bytes.len());
            let _ = writeln!(
                self.format,
                "\tfield:u64 {name}[];\toffset:{offset};\tsize:{size};\tsigned:0;"
            );
            self.raw.extend(bytes);
            self
        }

        fn word(self, name: &str, value: u64) -> Self {
            self.with(name, &value.to_le_bytes())
        }

        fn text(self, name: &str, i: usize, text: &str, fetched: usize) -> Self {
            // What lies behind a string is fetched as well.
            let mut bytes = vec![b'#'; fetched];
            let length = text.len().min(fetched);
            bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
            self.word(&format!("n{name}p{i}"), 0xc0_0000)
                .word(&format!("n{name}l{i}"), text.len() as u64)
                .with(&format!("n{name}{i}"), &bytes)
        }

        fn label(self, i: usize, key: &str, value: &str) -> Self {
            self.text("k", i, key, KEY).text("v", i, value, VALUE)
        }

        fn read(&self, form: LabelForm) -> Option<Labels> {
            Format::parse(&self.format).labels(&self.raw, form, 'n')
        }
    }

    fn labels(pairs: &[(&str, &str)], is_whole: bool) -> Option<Labels> {
        Some(Labels {
            pairs: pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            is_whole,
        })
    }

    fn list(count: u64) -> Event {
        Event::new()
            .word("nl", 0xc0_0010)
            .word("nc", count)
            .word("np", 0xc0_0020)
    }

    fn map(count: u64, marks: [u8; 8]) -> Event {
        list(count)
            .word("nh", 0xc0_0030)
            .with("nb", &[0])
            .with("nm", &marks)
    }

    #[test]
    fn labels_of_a_slice() {
        let event = list(2).label(0, "block", "G001-M17").label(1, "line", "");
        let read = event.read(LabelForm::List);
        assert_eq!(read, labels(&[("block", "G001-M17"), ("line", "")], true));
        assert!(read.unwrap().has_value("G001-M17"));
    }

    #[test]
    fn more_than_is_fetched() {
        let long = "ü".repeat(40);
        let event = list(9)
            .label(0, &long, &long)
            .label(1, "b", "2")
            .label(2, "c", "3\u{1b}[0m");
        let cut = |n: usize| "ü".repeat(n) + "…";
        let read = event.read(LabelForm::List).unwrap();
        assert!(!read.is_whole);
        assert_eq!(read.pairs[0], (cut(16), cut(32)));
        assert_eq!(read.pairs[2].1, "3?[0m");
        // Cut within a character.
        assert_eq!(shown("aü".as_bytes().get(..2).unwrap(), 3), "a…");
    }

    #[test]
    fn labels_of_a_map() {
        let two = |marks| map(2, marks).label(0, "a", "1").label(1, "b", "2");
        let read = two([9, 200, 0, 0, 0, 0, 0, 0]).read(LabelForm::Map);
        assert_eq!(read, labels(&[("a", "1"), ("b", "2")], true));
        // A free place where there should be none.
        assert_eq!(two([9, 1, 0, 0, 0, 0, 0, 0]).read(LabelForm::Map), None);
        let mut grown = two([9; 8]);
        let at = Format::parse(&grown.format).fields["nb"].0;
        grown.raw[at] = 1;
        assert_eq!(grown.read(LabelForm::Map), None);
    }

    /// Behind a pointer that is nil there are bytes of an older event.
    #[test]
    fn nothing_counts_behind_nil() {
        let stale = |event: Event| event.label(0, "block", "of another");
        let none = labels(&[], true);
        let without = Event::new().word("nl", 0).word("nc", 1).word("np", 1);
        assert_eq!(stale(without).read(LabelForm::List), none);
        assert_eq!(stale(list(0)).read(LabelForm::List), none);
        let nil = Event::new().word("nl", 1).word("nc", 1).word("np", 0);
        assert_eq!(stale(nil).read(LabelForm::List), None);
        assert_eq!(stale(list(1 << 40)).read(LabelForm::List), None);
        let nil = list(1)
            .word("nkp0", 0)
            .word("nkl0", 5)
            .with("nk0", b"stale")
            .text("v", 0, "x", VALUE);
        assert_eq!(nil.read(LabelForm::List), None);
    }

    #[test]
    fn damaged_events() {
        let event = list(1).label(0, "block", "G001-M17");
        for cut in 0..event.raw.len() {
            let format = Format::parse(&event.format);
            assert_eq!(format.labels(&event.raw[..cut], LabelForm::List, 'n'), None);
        }
        for text in [
            "",
            "field:",
            "\tfield:u64 a;\toffset:x;\tsize:8;",
            "field:;;;",
        ] {
            assert!(Format::parse(text).fields.is_empty(), "{text}");
        }
        let far = "\tfield:u64 a;\toffset:18446744073709551615;\tsize:8;";
        assert_eq!(Format::parse(far).number(&[0; 64], "a"), None);
    }
}
