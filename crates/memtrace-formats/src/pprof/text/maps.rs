//! The memory map at the end of a text profile: lines of `/proc/PID/maps` or the
//! shorter form of tcmalloc.

/// One mapped binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) limit: u64,
    pub(super) offset: u64,
    pub(super) file: String,
    pub(super) build_id: String,
}

/// Whether the memory map starts after this line.
pub(super) fn is_start(line: &str) -> bool {
    line.contains("--- Memory map: ---") || line.contains("MAPPED_LIBRARIES:")
}

/// Mappings that are read: a kernel gives a process 65,530 by default, few of them code.
const MOST_ENTRIES: usize = 1 << 14;
/// Variables that are read, and the longest name of one, bytes: profilers write one or two.
const MOST_VARIABLES: usize = 32;
const LONGEST_NAME: usize = 64;
/// Text of all mappings, bytes: as many as a kernel gives come to a tenth of this.
const MOST_TEXT: usize = 4 << 20;

/// The executable mappings that `text` lists after its samples.
pub(super) fn entries(text: &str) -> Vec<Entry> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let (mut entries, mut text_left) = (Vec::new(), MOST_TEXT);
    for line in text.lines().skip_while(|l| !is_start(l)).skip(1) {
        if entries.len() >= MOST_ENTRIES {
            break;
        }
        let line = replaced(without_log_prefix(line), &variables);
        match entry(&line) {
            Some(Some(entry)) => {
                let length = entry.file.len() + entry.build_id.len();
                let Some(left) = text_left.checked_sub(length) else {
                    break;
                };
                text_left = left;
                entries.push(entry);
            }
            Some(None) => {}
            // name=value: later lines say $name.
            None => {
                if let Some((name, value)) = line.split_once('=')
                    && variables.len() < MOST_VARIABLES
                    && name.len() <= LONGEST_NAME
                {
                    variables.push((format!("${}", name.trim()), value.trim().to_owned()));
                }
            }
        }
    }
    entries
}

/// Bound on a line after replacement: variables that hold variables must not explode.
const MAX_LINE: usize = 8 << 10;

fn replaced(line: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match variables.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) if out.len() + value.len() < MAX_LINE => {
                out.push_str(value);
                rest = &rest[name.len()..];
            }
            _ => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// `I0102 15:04:05.000000 1 file.cc:12] 0040…`: what logging put in front.
fn without_log_prefix(line: &str) -> &str {
    let Some((prefix, rest)) = line.split_once(']') else {
        return line;
    };
    let numbered = prefix.rsplit_once(':').is_some_and(|(before, number)| {
        !before.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    let blank = rest.chars().next().is_some_and(char::is_whitespace);
    if numbered && blank && !prefix.contains('[') {
        &rest[1..]
    } else {
        line
    }
}

/// `None`: no mapping. `Some(None)`: a mapping without code.
fn entry(line: &str) -> Option<Option<Entry>> {
    let mut rest = line.trim_start();
    let start = hex(&mut rest)?;
    rest = rest.strip_prefix(['-', ' ', '\t']).unwrap_or(rest);
    rest = rest.trim_start();
    let limit = hex(&mut rest)?;
    rest = rest.strip_prefix(':').unwrap_or(rest);
    // What follows stands apart.
    if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
        rest = "";
    }
    let mut fields: Vec<&str> = rest.split_whitespace().collect();
    let mut found = Entry {
        start,
        limit,
        ..Entry::default()
    };
    let permissions = fields
        .first()
        .filter(|f| f.bytes().all(|b| b"-rwxp".contains(&b)))
        .map(|f| f.to_owned());
    if permissions.is_some() {
        fields.remove(0);
    }
    let bare = |text: &str| u64::from_str_radix(text, 16).ok();
    let device = |text: &str| {
        text.split_once(':')
            .is_some_and(|(a, b)| bare(a).is_some() && bare(b).is_some())
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    match fields[..] {
        // offset device inode [file]
        [offset, dev, inode, ref file @ ..]
            if bare(offset).is_some() && device(dev) && digits(inode) =>
        {
            found.offset = bare(offset)?;
            found.file = file.first().copied().unwrap_or_default().to_owned();
        }
        // device inode [file]
        [dev, inode, ref file @ ..] if device(dev) && digits(inode) => {
            found.file = file.first().copied().unwrap_or_default().to_owned();
        }
        // [file] [(@offset)] [build id]
        ref short => {
            let mut short = short.iter().copied().peekable();
            if let Some(file) = short.next_if(|f| !f.starts_with("(@")) {
                found.file = file.to_owned();
            }
            let at = |f: &str| bare(f.strip_prefix("(@")?.strip_suffix(')')?);
            if let Some(offset) = short.peek().and_then(|f| at(f)) {
                found.offset = offset;
                short.next();
            }
            found.build_id = short
                .next()
                .filter(|f| f.bytes().all(|b| b.is_ascii_hexdigit()))
                .unwrap_or_default()
                .to_owned();
        }
    }
    let code = permissions.is_none_or(|p| p.contains('x'));
    Some(code.then_some(found))
}

fn hex(text: &mut &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let end = digits
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    let number = u64::from_str_radix(&digits[..end], 16).ok()?;
    *text = &digits[end..];
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(u64, u64, u64, &str, &str)>) {
        let text = format!("--- Memory map: ---\nsource=/home\n{line}\n");
        let got = entries(&text);
        let got = got.first().map(|e| {
            (
                e.start,
                e.limit,
                e.offset,
                e.file.as_str(),
                e.build_id.as_str(),
            )
        });
        assert_eq!(got, expected, "{line}");
    }

    #[test]
    fn forms_of_a_mapping() {
        check(
            "00400000-00fcb000: $source/cppbench_server_main",
            Some((0x40_0000, 0xfc_b000, 0, "/home/cppbench_server_main", "")),
        );
        check(
            "  7f47a4351000-7f47a4352000: /lib/libc.so",
            Some((0x7f47_a435_1000, 0x7f47_a435_2000, 0, "/lib/libc.so", "")),
        );
        check(
            "00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/dbus-daemon",
            Some((0x40_0000, 0x45_2000, 0x1000, "/usr/bin/dbus-daemon", "")),
        );
        check(
            "00400000-00452000 rw-p 00001000 08:02 173521 /usr/bin/x",
            None,
        );
        check(
            "0x40000-0x80000 /path/to/binary (@FF00) abc123456",
            Some((0x4_0000, 0x8_0000, 0xff00, "/path/to/binary", "abc123456")),
        );
        check(
            "I0102 15:04:05 1 maps.cc:12] 40000-80000: /bin/x",
            Some((0x4_0000, 0x8_0000, 0, "/bin/x", "")),
        );
        check("40000-80000", Some((0x4_0000, 0x8_0000, 0, "", "")));
        check("build=/x/y", None);
        check("", None);
        check("zz-80000", None);
    }

    #[test]
    fn variables_do_not_explode() {
        let mut text = String::from("MAPPED_LIBRARIES:\na=xxxxxxxxxx\n");
        for i in 0..30 {
            let name = char::from(b'b' + (i % 20) as u8);
            let last = char::from(b'a' + (i % 20) as u8);
            text += &format!("{name}=${last}${last}${last}${last}${last}${last}\n");
        }
        text += "40000-80000: $b$c$d$e$f$g$h$i$j\n";
        assert!(entries(&text)[0].file.len() < 10 * MAX_LINE);

        let mut text = format!("MAPPED_LIBRARIES:\na={}\n", "y".repeat(MAX_LINE / 2));
        for i in 0..MOST_ENTRIES {
            text += &format!("{:x}-{:x}: $a\n", 2 * i + 1, 2 * i + 2);
        }
        let files = entries(&text).iter().map(|e| e.file.len()).sum::<usize>();
        assert!(files <= MOST_TEXT && files > MOST_TEXT / 2);
    }
}
