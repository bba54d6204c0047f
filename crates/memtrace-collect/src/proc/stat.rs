//! The text files of `/proc/PID`, as pure functions.

use memtrace_model::Time;

/// Ticks of `/proc/PID/stat` per second: fixed by the kernel's ABI (USER_HZ) on
/// every architecture memtrace runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What is kept of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    state: char,
    /// Field 22: start after boot, in ticks.
    pub(super) start_ticks: u64,
}

impl Stat {
    /// A zombie has no memory any more.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    pub(super) fn started(&self, boot_seconds: u64) -> Time {
        let ms = boot_seconds
            .saturating_mul(1000)
            .saturating_add(self.start_ticks.saturating_mul(1000 / TICKS_PER_SECOND));
        Time(i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

/// The name may hold anything, brackets and line ends included: it ends at the
/// last bracket.
pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let name = text.get(open + 1..close)?.to_owned();
    let mut rest = text.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    // Field 3 is the state; field 22 is 18 further.
    let start_ticks = rest.nth(18)?.parse().ok()?;
    Some(Stat {
        name,
        state,
        start_ticks,
    })
}

/// `btime` of `/proc/stat`: the boot in Unix seconds.
pub(super) fn boot_seconds(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

/// What is kept of `/proc/PID/status`; bytes, count.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) rss: Option<u64>,
    pub(super) swap: Option<u64>,
    pub(super) threads: Option<u64>,
}

pub(super) fn parse_status(text: &str) -> Status {
    Status {
        rss: kib_field(text, "VmRSS"),
        swap: kib_field(text, "VmSwap"),
        threads: field(text, "Threads").and_then(|v| v.parse().ok()),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// A field `Name:  123 kB` in bytes.
pub(crate) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let value = field(text, name)?.strip_suffix("kB")?.trim();
    value.parse::<u64>().ok()?.checked_mul(1024)
}

/// Address and file offset of the first executable mapping of `path` in
/// `/proc/PID/maps`; the kernel marks a file that was removed.
pub(super) fn exe_mapping(maps: &str, path: &str) -> Option<(u64, u64)> {
    maps.lines().find_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let (start, _) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let name = fields.nth(2)?.trim_start();
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        (permissions.contains('x') && name == path)
            .then_some((u64::from_str_radix(start, 16).ok()?, offset))
    })
}

/// GOMEMLIMIT in `/proc/PID/environ`, bytes. Nothing else is looked at.
pub(super) fn go_memory_limit(environ: &[u8]) -> Option<u64> {
    let value = environ
        .split(|b| *b == 0)
        .find_map(|v| v.strip_prefix(b"GOMEMLIMIT="))?;
    parse_go_bytes(std::str::from_utf8(value).ok()?)
}

/// A byte count as Go's runtime reads it: a whole number with B, KiB, MiB, GiB,
/// TiB or nothing behind it. None for `off`, for no limit, and for what the
/// runtime refuses.
fn parse_go_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)]
        .into_iter()
        .find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, shift)))
        .unwrap_or((text, 0));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // The greatest int64 is Go's way to say that there is no limit.
    (value < i64::MAX as u64).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn stat_lines() {
        let tail = "S 1 42 42 0 -1 4194560 100 0 0 0 10 5 0 0 20 0 12 0 8812345 1 2";
        for (name, want) in [
            ("(cnc)", "cnc"),
            ("(a) S 1 (b)", "a) S 1 (b"),
            ("()", ""),
            ("(x\ny)", "x\ny"),
        ] {
            let stat = parse_stat(&format!("42 {name} {tail}")).unwrap();
            assert_eq!((stat.name.as_str(), stat.start_ticks), (want, 8_812_345));
            assert!(!stat.is_dead());
        }
        let zombie = parse_stat(&format!("42 (x) {}", tail.replacen('S', "Z", 1))).unwrap();
        assert!(zombie.is_dead());
        for bad in [
            "",
            "42",
            "42 (x",
            ")(",
            "42 (x) S 1 2",
            "42 (x) S 1 42 42 0 -1 4194560 100 0 0 0 10 5 0 0 20 0 12 0 -3",
        ] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
        let far = Stat {
            name: String::new(),
            state: 'S',
            start_ticks: u64::MAX,
        };
        assert_eq!(far.started(u64::MAX), Time(i64::MAX));
    }

    #[test]
    fn boot_time() {
        assert_eq!(
            boot_seconds("cpu  1 2 3\nctxt 5\nbtime 1700000000\nprocesses 9\n"),
            Some(1_700_000_000)
        );
        assert_eq!(boot_seconds("cpu 1\n"), None);
    }

    #[test]
    fn status_and_memory_files() {
        let text =
            "Name:\tcnc\nVmPeak:\t 9 kB\nVmRSS:\t   10240 kB\nVmSwap:\t       8 kB\nThreads:\t12\n";
        assert_eq!(
            parse_status(text),
            Status {
                rss: Some(10 * MIB),
                swap: Some(8192),
                threads: Some(12)
            }
        );
        assert_eq!(
            parse_status("Name:\tkthreadd\nThreads:\t1\n"),
            Status {
                threads: Some(1),
                ..Status::default()
            }
        );
        assert_eq!(
            parse_status("VmRSS: -1 kB\nVmSwap: 99999999999999999999 kB\nThreads: x"),
            Status::default()
        );
        let rollup = "55a5-7ffc ---p 00000000 00:00 0    [rollup]\nRss:  1780 kB\nPss:   300 kB\nPss_Anon: 7 kB\n";
        assert_eq!(kib_field(rollup, "Pss"), Some(300 * 1024));
        assert_eq!(kib_field("MemTotal: 1 MB", "MemTotal"), None);
        assert_eq!(
            kib_field(&format!("MemTotal: {} kB", u64::MAX), "MemTotal"),
            None
        );
    }

    #[test]
    fn go_memory_limits() {
        for (text, want) in [
            ("0", Some(0)),
            ("1048576", Some(MIB)),
            ("7B", Some(7)),
            ("4KiB", Some(4096)),
            ("512MiB", Some(512 * MIB)),
            ("2GiB", Some(2048 * MIB)),
            ("1TiB", Some(1 << 40)),
            ("off", None),
            ("", None),
            ("B", None),
            ("2GB", None),
            ("2 GiB", None),
            ("-1", None),
            ("+1", None),
            ("1.5GiB", None),
            ("2gib", None),
            ("9223372036854775807", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_go_bytes(text), want, "{text}");
        }
        assert_eq!(
            go_memory_limit(b"A=1\0GOMEMLIMIT=1GiB\0B=2\0"),
            Some(1 << 30)
        );
        assert_eq!(go_memory_limit(b"XGOMEMLIMIT=1GiB\0GOMEMLIMIT=\xff"), None);
        assert_eq!(go_memory_limit(b""), None);
    }

    #[test]
    fn executable_mappings() {
        let maps = "55d0-55d4 r--p 00000000 08:01 99                         /srv/a b\n\
                    55d4-55f0 r-xp 00001000 08:01 99                         /srv/a b (deleted)\n\
                    7f00-7f10 r-xp 00000000 08:01 98                         /lib/libc.so\n";
        assert_eq!(exe_mapping(maps, "/srv/a b"), Some((0x55d4, 0x1000)));
        assert_eq!(exe_mapping(maps, "/lib/libc.so"), Some((0x7f00, 0)));
        assert_eq!(exe_mapping(maps, "/srv"), None);
        for text in crate::damaged(maps) {
            let _ = exe_mapping(&text, "/srv/a b");
        }
    }

    #[test]
    fn damaged_files_do_not_panic() {
        for text in crate::damaged(
            "42 (a b) S 1 42 42 0 -1 4194560 100 0 0 0 10 5 0 0 20 0 12 0 8812345 1 2",
        ) {
            let _ = parse_stat(&text).map(|s| s.started(1));
        }
        for text in
            crate::damaged("VmRSS:\t   10240 kB\nVmSwap:\t 8 kB\nThreads:\t12\nbtime 1700000000\n")
        {
            let _ = (parse_status(&text), boot_seconds(&text));
        }
        for text in crate::damaged("A=1\0GOMEMLIMIT=1024MiB\0") {
            let _ = go_memory_limit(text.as_bytes());
        }
    }
}
