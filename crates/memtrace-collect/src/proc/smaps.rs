//! Whose pages a process's anonymous memory is: Go's heap, C's malloc, mappings of its
//! own. From `/proc/PID/smaps`, line by line.

use std::io::BufRead;

use memtrace_model::{Gauge, Gauges};

/// Go's arenas and those of glibc's threads begin at multiples of this.
const ARENA: u64 = 64 << 20;
/// The kernel places mappings within so much below the stack: 2^28 pages for
/// randomisation (amd64), and what the process itself maps.
const MAP_AREA: u64 = 3 << 39;
/// Top of user addresses where no stack is listed (amd64).
const TOP: u64 = 0x7fff_ffff_f000;
/// Longest line; a longer one is damage.
const MAX_LINE: u64 = 64 << 10;
/// The kernel's own limit is 65,530 mappings.
const MAX_MAPPINGS: usize = 1 << 20;

/// One private anonymous mapping.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mapping {
    start: u64,
    end: u64,
    /// It may be read or written.
    open: bool,
    /// Told by its name.
    class: Option<Gauge>,
    /// Resident bytes.
    rss: u64,
}

/// Resident bytes by owner. Files, thread-local and the kernel's own mappings are left
/// out; thread stacks of C count as mappings of the program ([`Gauge::RssAnon`]).
pub(super) fn classify(smaps: impl BufRead) -> Gauges {
    let (mappings, stack) = mappings(smaps);
    let mut gauges = Gauges::default();
    for gauge in [
        Gauge::RssGo,
        Gauge::RssBrk,
        Gauge::RssArenas,
        Gauge::RssAnon,
    ] {
        gauges.set(gauge, 0.0);
    }
    let map_area = stack.unwrap_or(TOP).saturating_sub(MAP_AREA);
    // Mappings that touch: an arena is one reservation, cut by what is in use.
    for group in mappings.chunk_by(|a, b| a.end == b.start && a.class == b.class) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let arenas = first.start.is_multiple_of(ARENA) && last.end.is_multiple_of(ARENA);
        for (i, mapping) in group.iter().enumerate() {
            let class = mapping.class.unwrap_or_else(|| {
                // Go asks for addresses far from where the kernel puts what has no wish.
                if arenas && last.end <= map_area {
                    return Gauge::RssGo;
                }
                let reserved = group.get(i + 1).is_some_and(|next| {
                    !next.open && next.end == mapping.start.saturating_add(ARENA)
                });
                let full = mapping.end == mapping.start.saturating_add(ARENA);
                if mapping.start.is_multiple_of(ARENA) && (reserved || full) {
                    Gauge::RssArenas
                } else {
                    Gauge::RssAnon
                }
            });
            let sum = gauges.get(class).unwrap_or_default() + mapping.rss as f64;
            gauges.set(class, sum);
        }
    }
    gauges
}

/// The anonymous mappings in the order of their addresses, and where the stack of the
/// first thread is.
fn mappings(mut smaps: impl BufRead) -> (Vec<Mapping>, Option<u64>) {
    let mut found: Vec<Mapping> = Vec::new();
    let mut stack = None;
    // Whether the fields that follow belong to the last one found.
    let mut counts = false;
    let mut line = Vec::new();
    while found.len() < MAX_MAPPINGS {
        line.clear();
        let mut limited = std::io::Read::take(&mut smaps, MAX_LINE);
        match limited.read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => break,
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some(kib) = text.strip_prefix("Rss:") {
            let kib = kib
                .strip_suffix("kB")
                .and_then(|v| v.trim().parse::<u64>().ok());
            if let Some(mapping) = found.last_mut().filter(|_| counts) {
                mapping.rss = kib.unwrap_or(0).saturating_mul(1024);
            }
        } else if let Some((start, end, permissions, inode, name)) = header(text) {
            if name == "[stack]" {
                stack = Some(start);
            }
            let class = class_of(inode, name);
            counts = class.is_some();
            if let Some(class) = class {
                found.push(Mapping {
                    start,
                    end,
                    open: !permissions.starts_with("---"),
                    class,
                    rss: 0,
                });
            }
        }
    }
    (found, stack)
}

/// `None`: not the program's own memory. `Some(None)`: it has no name to tell by.
fn class_of(inode: &str, name: &str) -> Option<Option<Gauge>> {
    match name {
        "" if inode == "0" => Some(None),
        "[heap]" => Some(Some(Gauge::RssBrk)),
        // Go 1.25 and newer name theirs, where the kernel was built to keep names.
        _ if name.starts_with("[anon: Go:") => Some(Some(Gauge::RssGo)),
        _ if name.starts_with("[anon:") => Some(Some(Gauge::RssAnon)),
        _ => None,
    }
}

/// `start-end permissions offset device inode  name`
fn header(line: &str) -> Option<(u64, u64, &str, &str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let mut fields = rest.splitn(5, ' ');
    let permissions = fields.next()?;
    let (_, _, inode) = (fields.next()?, fields.next()?, fields.next()?);
    let name = fields.next().unwrap_or_default().trim();
    (start <= end).then_some((start, end, permissions, inode, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    fn smaps(lines: &[(&str, u64)]) -> String {
        lines
            .iter()
            .map(|(header, mib)| {
                format!(
                    "{header}\nSize: 4 kB\nRss:   {} kB\nPss: 1 kB\nVmFlags: rd\n",
                    mib * 1024
                )
            })
            .collect()
    }

    fn mib(lines: &[(&str, u64)]) -> [f64; 4] {
        let gauges = classify(smaps(lines).as_bytes());
        [
            Gauge::RssGo,
            Gauge::RssBrk,
            Gauge::RssArenas,
            Gauge::RssAnon,
        ]
        .map(|g| gauges.get(g).unwrap() / MIB)
    }

    const STACK: (&str, u64) = (
        "7ffd0e3f2000-7ffd0e413000 rw-p 00000000 00:00 0                          [stack]",
        1,
    );

    #[test]
    fn arenas_of_go_and_of_libc() {
        // Go 1.26: a random base, the first part left out; a kernel that keeps no names.
        let random = [
            (
                "00400000-0071a000 r-xp 00000000 fe:00 10657909                           /srv/cnc",
                3,
            ),
            ("00b99000-02bdc000 rw-p 00000000 00:00 0 ", 1),
            (
                "0dc73000-0dc94000 rw-p 00000000 00:00 0                                  [heap]",
                5,
            ),
            ("5afc000000-5afd800000 ---p 00000000 00:00 0 ", 0),
            ("5afd800000-5b20c00000 rw-p 00000000 00:00 0 ", 100),
            ("5b20c00000-5b24000000 ---p 00000000 00:00 0 ", 0),
            ("7f8724000000-7f8724021000 rw-p 00000000 00:00 0 ", 7),
            ("7f8724021000-7f8728000000 ---p 00000000 00:00 0 ", 0),
            ("7f872c000000-7f872c021000 rw-p 00000000 00:00 0 ", 8),
            ("7f872c021000-7f8730000000 ---p 00000000 00:00 0 ", 0),
            ("7f8736d32000-7f8736ffe000 rw-p 00000000 00:00 0 ", 20),
            (
                "7f8748000000-7f874bc00000 r--p 00000000 fe:00 77   /usr/lib/x.so (deleted)",
                9,
            ),
            STACK,
        ];
        assert_eq!(mib(&random), [100.0, 5.0, 15.0, 21.0]);
        // Before: a fixed base.
        let fixed = [
            ("c000000000-c004400000 rw-p 00000000 00:00 0 ", 60),
            ("c004400000-c008000000 ---p 00000000 00:00 0 ", 0),
            ("7f0010000000-7f0014000000 rw-p 00000000 00:00 0 ", 64),
            STACK,
        ];
        assert_eq!(mib(&fixed), [60.0, 0.0, 64.0, 0.0]);
        // With names, and no stack to be seen.
        let named = [
            (
                "c000000000-c000400000 rw-p 00000000 00:00 0                              [anon: Go: heap]",
                4,
            ),
            (
                "c000400000-c004000000 ---p 00000000 00:00 0                              [anon: Go: heap reservation]",
                0,
            ),
            (
                "7f8730000000-7f8731000000 rw-p 00000000 00:00 0                          [anon: Go: gc bits]",
                2,
            ),
            (
                "7f8731000000-7f8732000000 rw-p 00000000 00:00 0                          [anon:mine]",
                3,
            ),
        ];
        assert_eq!(mib(&named), [6.0, 0.0, 0.0, 3.0]);
    }

    #[test]
    fn a_large_mapping_of_the_program_is_not_gos() {
        // Aligned by chance, or for huge pages.
        let mapped = [
            ("7f0010000000-7f0018000000 rw-p 00000000 00:00 0 ", 128),
            ("7f0020000000-7f0020400000 rw-p 00000000 00:00 0 ", 4),
            STACK,
        ];
        assert_eq!(mib(&mapped), [0.0, 0.0, 0.0, 132.0]);
    }

    #[test]
    fn this_process_has_anonymous_memory() {
        let file = std::fs::File::open("/proc/self/smaps").unwrap();
        let gauges = classify(std::io::BufReader::new(file));
        let sum: f64 = gauges.iter().map(|(_, v)| v).sum();
        assert!(sum > 0.05 * MIB, "{gauges:?}");
        assert_eq!(gauges.get(Gauge::RssGo), Some(0.0), "{gauges:?}");
    }

    #[test]
    fn damaged_files_do_not_panic() {
        let text = smaps(&[
            (
                "ffffffffffffff00-ffffffffffffffff rw-p 00000000 00:00 0 ",
                u64::MAX / 1024,
            ),
            ("c000000000-c004400000 rw-p 00000000 00:00 0 ", 60),
            STACK,
        ]);
        for text in crate::damaged(&text) {
            classify(text.as_bytes());
        }
    }
}
