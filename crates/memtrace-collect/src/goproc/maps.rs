//! `/proc/PID/maps`, and the two pieces of the target's own code that an injected
//! system call runs through.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use memtrace_formats::goheap::Region;

use super::sys;

/// The kernel allows 65,530 mappings by default; a line has some 100 bytes.
pub(super) const MAX_MAPS: u64 = 64 << 20;

/// The mappings, ascending. Lines of another form are left out.
pub(super) fn parse(text: &str) -> Vec<Region> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Region> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?.as_bytes();
    let offset = fields.next()?;
    // Device and inode, then the name after blanks.
    let name = fields.nth(2).unwrap_or_default().trim_start();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let region = Region {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        file: name.to_owned(),
        rwx: [
            access.first() == Some(&b'r'),
            access.get(1) == Some(&b'w'),
            access.get(2) == Some(&b'x'),
        ],
    };
    (region.start < region.end).then_some(region)
}

/// Private writable mappings, ascending, and whether each is one of a file.
pub(super) fn private(text: &str) -> impl Iterator<Item = (std::ops::Range<u64>, bool)> + '_ {
    let private = |l: &&str| {
        l.split(' ')
            .nth(1)
            .is_some_and(|access| access.ends_with('p'))
    };
    let regions = text.lines().filter(private).filter_map(line);
    let writable = regions.filter(|r| r.rwx[0] && r.rwx[1]);
    writable.map(|r| (r.start..r.end, r.file.starts_with('/')))
}

/// Runs of pages that are in memory or swapped out, by `/proc/PID/pagemap`: start and end. `None`
/// where it does not tell by then: a mapping may be as large as it likes.
pub(super) fn present(
    pagemap: &File,
    start: u64,
    end: u64,
    until: Option<Instant>,
) -> Option<Vec<(u64, u64)>> {
    const PAGE: u64 = 4096;
    const STEP: u64 = 1 << 16;
    const THERE: u64 = 3 << 62;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut entries = Vec::new();
    let (mut page, end) = (start / PAGE, end / PAGE);
    while page < end {
        if until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let count = (end - page).min(STEP);
        entries.resize(count as usize * 8, 0);
        pagemap.read_exact_at(&mut entries, page * 8).ok()?;
        for entry in entries.as_chunks::<8>().0 {
            if u64::from_le_bytes(*entry) & THERE != 0 {
                let start = page * PAGE;
                match runs.last_mut() {
                    Some(last) if last.1 == start => last.1 += PAGE,
                    _ => runs.push((start, start + PAGE)),
                }
            }
            page += 1;
        }
    }
    Some(runs)
}

/// Addresses of instructions in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gadgets {
    /// `syscall; ret`
    pub(super) call: u64,
    /// `mov $15, %rax; syscall`: how a signal handler returns.
    pub(super) sigreturn: u64,
}

const CALL: &[u8] = &[0x0f, 0x05, 0xc3];
const SIGRETURN: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Looks for them in the code of a process that may be running: code does not change.
pub(super) fn gadgets(pid: u32, regions: &[Region]) -> Option<Gadgets> {
    const STEP: usize = 256 << 10;
    let (mut call, mut sigreturn) = (None, None);
    let mut held = vec![0; STEP];
    // Where a C library is, it is small and has both; a static program has them itself.
    let in_library = |r: &&Region| r.file.contains("libc") || r.file.contains("musl");
    let code = || regions.iter().filter(|r| r.rwx[0] && r.rwx[2]);
    let order = code()
        .filter(in_library)
        .chain(code().filter(|r| !in_library(r)));
    for region in order {
        let mut at = region.start;
        while at < region.end {
            let wanted = STEP.min(usize::try_from(region.end - at).unwrap_or(STEP));
            let Ok(got) = sys::read_memory(pid, at, &mut held[..wanted]) else {
                break;
            };
            let seen = &held[..got];
            call = call.or_else(|| Some(at + find(seen, CALL)? as u64));
            sigreturn = sigreturn.or_else(|| Some(at + find(seen, SIGRETURN)? as u64));
            if let (Some(call), Some(sigreturn)) = (call, sigreturn) {
                return Some(Gadgets { call, sigreturn });
            }
            // The next block begins before the end of this one: neither is cut.
            let Some(step @ 1..) = got.checked_sub(SIGRETURN.len() - 1) else {
                break;
            };
            at += step as u64;
        }
    }
    None
}

/// They are still there.
pub(super) fn confirm(pid: u32, gadgets: &Gadgets) -> bool {
    let holds = |address, code: &[u8]| {
        let mut held = vec![0; code.len()];
        sys::read_memory(pid, address, &mut held).is_ok_and(|n| n == code.len()) && held == code
    };
    holds(gadgets.call, CALL) && holds(gadgets.sigreturn, SIGRETURN)
}

fn find(bytes: &[u8], code: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes
        .get(from..)?
        .iter()
        .position(|b| *b == code[0])
        .map(|n| n + from)
    {
        if bytes.get(at..at + code.len()) == Some(code) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_and_without_a_name() {
        let text = "00400000-0066c000 r-xp 00001000 fe:00 1234     /opt/a b (deleted)\n\
                    c000000000-c000400000 rw-p 00000000 00:00 0 \n\
                    junk\n7fff-7000 rw-p 0 0 0\n";
        let regions = parse(text);
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[0].file, "/opt/a b (deleted)");
        assert_eq!((regions[0].start, regions[0].offset), (0x400000, 0x1000));
        assert_eq!(regions[0].rwx, [true, false, true]);
        assert_eq!(regions[1].file, "");
        assert_eq!(regions[1].end, 0xc000400000);
    }

    #[test]
    fn what_may_change() {
        let text = "00400000-0066c000 r-xp 00001000 fe:00 1234     /opt/a\n\
                    0066c000-0067c000 rw-p 00001000 fe:00 1234     /opt/a\n\
                    c000000000-c000400000 rw-p 00000000 00:00 0 \n\
                    c000400000-c004000000 ---p 00000000 00:00 0 \n\
                    7f00000000-7f00001000 rw-s 00000000 00:00 0  /dev/shm/x\n";
        let found: Vec<_> = private(text).collect();
        assert_eq!(
            found,
            [
                (0x66c000..0x67c000, true),
                (0xc000000000..0xc000400000, false)
            ]
        );
    }

    #[test]
    fn code_is_found_where_it_is_whole() {
        assert_eq!(find(&[0x0f, 0x0f, 0x05, 0xc3], CALL), Some(1));
        assert_eq!(find(&[0x0f, 0x05], CALL), None);
        assert_eq!(find(&[], CALL), None);
    }
}
