//! ELF cores: the kernel's, `gcore`'s and our own.
//!
//! Memory that a core has no bytes of is zero where the mapping has no file behind it
//! (pages that nobody ever wrote), and comes from the executable where that is the file
//! behind it; else it is not there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use memtrace_formats::goheap::{Memory as _, Region, Registers, Thread, Unreadable};
use memtrace_model::Time;

use super::maps;
use super::sys::{REGISTER_WORDS, RawRegisters};
use super::{FreezeError, Frozen, Source};

const PAGE: u64 = 4096;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PN_XNUM: u16 = 0xffff;
const AMD64: u16 = 62;
const ARM64: u16 = 183;
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const AT_ENTRY: u64 = 9;
/// `struct elf_prstatus`: the thread's number, and the registers.
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;
const PRSTATUS_SIZE: usize = 336;
const PRPSINFO_SIZE: usize = 136;

const MAX_SEGMENTS: u64 = 1 << 20;
/// A thread takes some 4 KB with its vector registers.
const MAX_NOTES: u64 = 1 << 30;

/// The bytes of a core.
#[derive(Debug)]
pub(super) struct Core {
    file: File,
    /// Ascending, without overlaps.
    segments: Vec<Segment>,
    executable: Option<Executable>,
    /// Mappings of files, start and end, ascending.
    of_files: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Executable {
    file: File,
    /// What of it is mapped where: start, end, offset.
    mapped: Vec<(u64, u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    /// End of the bytes in the file.
    filled: u64,
    end: u64,
    offset: u64,
    access: u32,
}

impl Core {
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address };
        let (mut at, mut rest) = (address, into);
        while !rest.is_empty() {
            let next = self.segments.partition_point(|s| s.end <= at);
            let segment = self.segments.get(next).filter(|s| s.start <= at);
            let segment = segment.ok_or(unreadable)?;
            let filled = at < segment.filled;
            let end = if filled { segment.filled } else { segment.end };
            let length = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            let done = if filled {
                let offset = segment.offset + (at - segment.start);
                self.file.read_exact_at(part, offset).is_ok()
            } else {
                self.fill(at, part)
            };
            done.then_some(()).ok_or(unreadable)?;
            rest = after;
            at += length as u64;
        }
        Ok(())
    }

    /// Memory of which the core has no bytes.
    fn fill(&self, address: u64, into: &mut [u8]) -> bool {
        let end = address.saturating_add(into.len() as u64);
        let first = self.of_files.partition_point(|f| f.1 <= address);
        if self.of_files.get(first).is_none_or(|f| f.0 >= end) {
            into.fill(0);
            return true;
        }
        let Some(Executable { file, mapped }) = &self.executable else {
            return false;
        };
        let Some(range) = mapped.iter().find(|m| m.0 <= address && end <= m.1) else {
            return false;
        };
        let Some(offset) = range.2.checked_add(address - range.0) else {
            return false;
        };
        file.read_exact_at(into, offset).is_ok()
    }
}

/// What the notes tell.
#[derive(Default)]
struct Notes {
    threads: Vec<Thread>,
    raw: Vec<RawRegisters>,
    auxv: Vec<u8>,
    name: String,
    command: String,
    pid: u32,
    files: Vec<Region>,
}

/// Opens the core of a 64-bit Linux program. The executable is the one named in it,
/// where that is still the same file, or the one given.
///
/// # Errors
/// [`FreezeError::Core`] where the file cannot be read, or is no core.
pub fn open_core(path: &Path, executable: Option<&Path>) -> Result<Frozen, FreezeError> {
    read_core(path, executable).map_err(|what| FreezeError::Core {
        path: path.to_owned(),
        what,
    })
}

fn read_core(path: &Path, executable: Option<&Path>) -> Result<Frozen, String> {
    let system = |e: io::Error| e.to_string();
    let file = File::open(path).map_err(system)?;
    let about = file.metadata().map_err(system)?;
    let size = about.len();
    let header = bytes_at(&file, 0, HEADER).ok_or("no ELF file")?;
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] || short(&header, 16) != Some(4) {
        return Err("no core of a 64-bit program".to_owned());
    }
    let machine = short(&header, 18).unwrap_or(0);
    if !matches!(machine, AMD64 | ARM64) {
        return Err(format!("a core of machine {machine}: not supported"));
    }
    let (table, sections) = (long(&header, 32), long(&header, 40));
    let table = table.ok_or("no ELF file")?;
    let mut count = u64::from(short(&header, 56).unwrap_or(0));
    if count == u64::from(PN_XNUM) {
        // More than the header can say: in the first section.
        let first = bytes_at(&file, sections.unwrap_or(0), 64).ok_or("its headers are cut off")?;
        count = u64::from(word(&first, 44).unwrap_or(0));
    }
    if count > MAX_SEGMENTS {
        return Err(format!("{count} segments are too many"));
    }
    let headers =
        bytes_at(&file, table, count * PROGRAM_HEADER).ok_or("its headers are cut off")?;
    let mut notes = Notes::default();
    let mut segments = Vec::new();
    for header in headers.chunks_exact(PROGRAM_HEADER as usize) {
        let field = |at| long(header, at).unwrap_or(0);
        let (offset, start, filled, length) = (field(8), field(16), field(32), field(40));
        match word(header, 0) {
            Some(PT_NOTE) => {
                let held = filled.min(MAX_NOTES).min(size.saturating_sub(offset));
                let bytes = bytes_at(&file, offset, held).unwrap_or_default();
                notes.read(&bytes, machine);
            }
            Some(PT_LOAD) => {
                // A core that was cut off still has what is before the cut.
                let filled = filled.min(length).min(size.saturating_sub(offset));
                if let (Some(end), true) = (start.checked_add(length), length > 0) {
                    segments.push(Segment {
                        start,
                        filled: start + filled,
                        end,
                        offset,
                        access: word(header, 4).unwrap_or(0),
                    });
                }
            }
            _ => {}
        }
    }
    if notes.threads.is_empty() {
        return Err("it names no thread".to_owned());
    }
    segments.sort_by_key(|s| s.start);
    let mut last = 0;
    segments.retain(|s| {
        let fits = s.start >= last;
        if fits {
            last = s.end;
        }
        fits
    });
    let mut of_files: Vec<(u64, u64)> = notes.files.iter().map(|f| (f.start, f.end)).collect();
    of_files.sort_unstable();
    let mut core = Core {
        file,
        segments,
        executable: None,
        of_files,
    };
    let program = core.find_executable(&notes, executable);
    let modified = about.modified().ok();
    let since = modified.and_then(|m| m.duration_since(UNIX_EPOCH).ok());
    Ok(Frozen {
        pid: notes.pid,
        start_ticks: 0,
        taken: Time(since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))),
        pause: Duration::ZERO,
        regions: regions(&core.segments, &notes.files),
        threads: notes.threads,
        raw: notes.raw,
        absent: Vec::new(),
        auxv: notes.auxv,
        name: notes.name,
        command: notes.command,
        executable: program,
        source: Source::Core(core),
    })
}

impl Core {
    /// The program's file, where it is the one that ran.
    fn find_executable(&mut self, notes: &Notes, given: Option<&Path>) -> Option<PathBuf> {
        let mut pairs = notes.auxv.chunks_exact(16);
        let entry = pairs.find_map(|p| (long(p, 0)? == AT_ENTRY).then(|| long(p, 8))?);
        let at_entry = |f: &&Region| entry.is_some_and(|e| f.start <= e && e < f.end);
        let named = notes.files.iter().find(at_entry).map(|f| f.file.clone());
        let path = given.map_or_else(|| named.clone().map(PathBuf::from), |p| Some(p.into()))?;
        let file = File::open(&path).ok()?;
        let mapped: Vec<(u64, u64, u64)> = notes
            .files
            .iter()
            .filter(|f| named.as_ref() == Some(&f.file))
            .map(|f| (f.start, f.end, f.offset))
            .collect();
        // The first page has the headers and, as a rule, the build id: another build
        // has another one.
        let first = mapped.iter().find(|m| m.2 == 0);
        if let (Some(first), None) = (first, given) {
            let mut held = [0; 1024];
            let next = self.segments.partition_point(|s| s.end <= first.0);
            let dumped = self.segments.get(next);
            let dumped = dumped
                .is_some_and(|s| s.start <= first.0 && s.filled >= first.0 + held.len() as u64);
            if dumped && self.read(first.0, &mut held).is_ok() {
                let same = bytes_at(&file, 0, held.len() as u64);
                if same.as_deref() != Some(held.as_slice()) {
                    return None;
                }
            }
        }
        self.executable = Some(Executable { file, mapped });
        Some(path)
    }
}

impl Notes {
    fn read(&mut self, mut bytes: &[u8], machine: u16) {
        let padded = |length: u32| (length as usize).checked_add(3).map(|n| n & !3);
        while let (Some(name), Some(size), Some(kind)) =
            (word(bytes, 0), word(bytes, 4), word(bytes, 8))
        {
            let (Some(skip), Some(whole)) = (padded(name), padded(size)) else {
                return;
            };
            let Some(rest) = skip.checked_add(12).and_then(|n| bytes.get(n..)) else {
                return;
            };
            let Some(note) = rest.get(..size as usize) else {
                return;
            };
            match kind {
                NT_PRSTATUS => self.thread(note, machine),
                NT_PRPSINFO => {
                    self.pid = word(note, 24).unwrap_or(self.pid);
                    self.name = text(note.get(40..56));
                    self.command = text(note.get(56..136));
                }
                NT_AUXV => self.auxv = note.to_vec(),
                NT_FILE => self.files = files(note).unwrap_or_default(),
                _ => {}
            }
            bytes = rest.get(whole..).unwrap_or_default();
        }
    }

    fn thread(&mut self, note: &[u8], machine: u16) {
        let Some(tid) = word(note, PRSTATUS_PID) else {
            return;
        };
        if self.threads.is_empty() && self.pid == 0 {
            self.pid = tid;
        }
        let words: Vec<u64> = note
            .get(PRSTATUS_REGISTERS..)
            .unwrap_or_default()
            .chunks_exact(8)
            .filter_map(|w| long(w, 0))
            .collect();
        if machine == AMD64 {
            let Some(raw) = words.get(..REGISTER_WORDS).and_then(|w| w.try_into().ok()) else {
                return;
            };
            self.threads.push(super::thread(&(tid, raw)));
            self.raw.push(raw);
        } else if let Some(general) = words.get(..32) {
            self.threads.push(Thread {
                tid,
                registers: Registers {
                    pc: words.get(32).copied().unwrap_or(0),
                    sp: general[31],
                    frame: general[29],
                    goroutine: general[28],
                    tls: 0,
                    general: general.to_vec(),
                },
            });
        }
    }
}

/// `NT_FILE`: which file is mapped where.
fn files(note: &[u8]) -> Option<Vec<Region>> {
    let count = usize::try_from(long(note, 0)?).ok()?;
    let page = long(note, 8)?;
    let table = count.checked_mul(24)?.checked_add(16)?;
    let mut names = note.get(table..)?.split(|b| *b == 0);
    let rows = note.get(16..table)?.chunks_exact(24);
    let row = |row: &[u8]| {
        let file = String::from_utf8_lossy(names.next()?).into_owned();
        Some(Region {
            start: long(row, 0)?,
            end: long(row, 8)?,
            offset: long(row, 16)?.checked_mul(page)?,
            file,
            rwx: [true, false, false],
        })
    };
    Some(rows.filter_map(row).filter(|f| f.start < f.end).collect())
}

/// The segments as mappings, those of one access that touch as one.
fn regions(segments: &[Segment], files: &[Region]) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    let mut by_start: Vec<&Region> = files.iter().collect();
    by_start.sort_by_key(|f| f.start);
    for segment in segments {
        let next = by_start.partition_point(|f| f.end <= segment.start);
        let file = by_start.get(next).filter(|f| f.start <= segment.start);
        let region = Region {
            start: segment.start,
            end: segment.end,
            offset: file.map_or(0, |f| f.offset.saturating_add(segment.start - f.start)),
            file: file.map(|f| f.file.clone()).unwrap_or_default(),
            rwx: [4, 2, 1].map(|bit| segment.access & bit != 0),
        };
        match regions.last_mut() {
            Some(last)
                if last.end == region.start
                    && last.rwx == region.rwx
                    && last.file == region.file
                    && (last.file.is_empty()
                        || last.offset.checked_add(last.end - last.start)
                            == Some(region.offset)) =>
            {
                last.end = region.end;
            }
            _ => regions.push(region),
        }
    }
    regions
}

/// Writes an ELF core that debuggers open. Long runs of pages that nobody wrote take no
/// place in it. `progress` is told how many bytes of how many are written.
///
/// # Errors
/// Those of `out`; `Unsupported` for a process of a machine other than amd64.
pub fn write_core(
    frozen: &Frozen,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    if frozen.raw.len() != frozen.threads.len() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let notes = notes(frozen);
    let mut segments = plan(frozen);
    let count = segments.len() as u64 + 1;
    let many = count >= u64::from(PN_XNUM);
    let table_end = HEADER + count * PROGRAM_HEADER + if many { 64 } else { 0 };
    let data = (table_end + notes.len() as u64).next_multiple_of(PAGE);
    let mut offset = data;
    for segment in &mut segments {
        segment.offset = offset;
        offset += segment.filled - segment.start;
    }
    let total = offset;

    let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let shorts = |head: &mut Vec<u8>, values: &[u16]| {
        head.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    };
    shorts(&mut head, &[4, AMD64, 1, 0]);
    longs(
        &mut head,
        &[0, HEADER, if many { table_end - 64 } else { 0 }],
    );
    let said = if many { PN_XNUM } else { count as u16 };
    let section = if many { [64, 1, 0] } else { [0; 3] };
    shorts(
        &mut head,
        &[0, 0, HEADER as u16, PROGRAM_HEADER as u16, said],
    );
    shorts(&mut head, &section);
    words(&mut head, &[PT_NOTE, 0]);
    longs(&mut head, &[table_end, 0, 0, notes.len() as u64, 0, 4]);
    for segment in &segments {
        words(&mut head, &[PT_LOAD, segment.access]);
        let (filled, length) = (segment.filled - segment.start, segment.end - segment.start);
        longs(
            &mut head,
            &[segment.offset, segment.start, 0, filled, length, PAGE],
        );
    }
    if many {
        let mut first = vec![0; 64];
        first[44..48].copy_from_slice(&(count as u32).to_le_bytes());
        head.extend(first);
    }
    head.extend(notes);
    head.resize(
        usize::try_from(data).map_err(|_| io::ErrorKind::FileTooLarge)?,
        0,
    );
    out.write_all(&head)?;

    let mut done = data;
    let mut block = vec![0; 1 << 20];
    for segment in &segments {
        let mut at = segment.start;
        while at < segment.filled {
            let length = (segment.filled - at).min(block.len() as u64);
            let part = &mut block[..length as usize];
            if frozen.read(at, part).is_err() {
                for (page, into) in part.chunks_mut(PAGE as usize).enumerate() {
                    if frozen.read(at + page as u64 * PAGE, into).is_err() {
                        into.fill(0);
                    }
                }
            }
            out.write_all(part)?;
            at += length;
            done += length;
            progress(done, total);
        }
    }
    out.flush()?;
    // What could not be read is zero in the file: of a copy that did not last, all of it.
    frozen.whole().map_err(io::Error::other)
}

/// What is written: each segment has bytes first, then none.
fn plan(frozen: &Frozen) -> Vec<Segment> {
    /// Runs nearer to each other than this are one: segments are not free either.
    const GAP: u64 = 1 << 20;
    let mut gap = GAP;
    loop {
        let mut segments = Vec::new();
        for region in frozen.regions.iter().filter(|r| r.rwx[0] && !is_device(r)) {
            let access = [4, 2, 1].iter().zip(region.rwx);
            let access = access.map(|(bit, set)| if set { *bit } else { 0 }).sum();
            let mut starts = merged(&present(frozen, region), gap);
            // Bytes, then none up to the next run; none at all before the first.
            if starts.first().is_none_or(|run| run.0 != region.start) {
                starts.insert(0, (region.start, region.start));
            }
            for (i, run) in starts.iter().enumerate() {
                segments.push(Segment {
                    start: run.0,
                    filled: run.1,
                    end: starts.get(i + 1).map_or(region.end, |next| next.0),
                    offset: 0,
                    access,
                });
            }
        }
        if segments.len() < 60_000 || gap > 1 << 40 {
            return segments;
        }
        gap *= 8;
    }
}

fn merged(runs: &[(u64, u64)], gap: u64) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        match all.last_mut() {
            Some(last) if run.0 - last.1 <= gap => last.1 = run.1,
            _ => all.push(*run),
        }
    }
    all
}

fn is_device(region: &Region) -> bool {
    region.file.starts_with("/dev/")
        || matches!(region.file.as_str(), "[vvar]" | "[vsyscall]")
        || region.file.starts_with("[vvar_")
}

/// Runs of the region that have bytes of their own, ascending.
fn present(frozen: &Frozen, region: &Region) -> Vec<(u64, u64)> {
    /// Below this, pages that nobody wrote are written too: not every debugger takes
    /// them for zero.
    const SMALL: u64 = 4 << 20;
    /// A file that is mapped as a whole, a database say, is not the program's memory.
    const LARGE_FILE: u64 = 512 << 20;
    let whole = vec![(region.start, region.end)];
    let length = region.end - region.start;
    let of_file = region.file.starts_with('/');
    match &frozen.source {
        Source::Core(core) => {
            let from = core.segments.partition_point(|s| s.end <= region.start);
            let within = core.segments[from..].iter();
            within
                .take_while(|s| s.start < region.end)
                .filter(|s| s.start < s.filled)
                .map(|s| (s.start.max(region.start), s.filled.min(region.end)))
                .collect()
        }
        _ if length <= SMALL || of_file && length <= LARGE_FILE => whole,
        Source::Copy(copy) => File::open(format!("/proc/{}/pagemap", copy.pid))
            .ok()
            .and_then(|file| maps::present(&file, region.start, region.end, None))
            .unwrap_or(whole),
        Source::Taken(taken) => taken.present(region.start, region.end),
    }
}

fn notes(frozen: &Frozen) -> Vec<u8> {
    let mut all = Vec::new();
    let status = |tid: u32, raw: &RawRegisters| {
        let mut bytes = vec![0; PRSTATUS_REGISTERS];
        bytes[PRSTATUS_PID..PRSTATUS_PID + 4].copy_from_slice(&tid.to_le_bytes());
        longs(&mut bytes, raw);
        bytes.resize(PRSTATUS_SIZE, 0);
        bytes
    };
    let mut threads: Vec<(u32, &RawRegisters)> = frozen
        .threads
        .iter()
        .map(|t| t.tid)
        .zip(&frozen.raw)
        .collect();
    // Debuggers begin with the first.
    threads.sort_by_key(|t| t.0 != frozen.pid);
    for (i, (tid, raw)) in threads.into_iter().enumerate() {
        note(&mut all, NT_PRSTATUS, &status(tid, raw));
        if i > 0 {
            continue;
        }
        let mut about = vec![0; PRPSINFO_SIZE];
        about[1] = b'S';
        about[24..28].copy_from_slice(&frozen.pid.to_le_bytes());
        for (from, room, text) in [(40, 15, &frozen.name), (56, 79, &frozen.command)] {
            let text = &text.as_bytes()[..text.len().min(room)];
            about[from..from + text.len()].copy_from_slice(text);
        }
        note(&mut all, NT_PRPSINFO, &about);
        note(&mut all, NT_AUXV, &frozen.auxv);
        let of_files: Vec<&Region> = frozen
            .regions
            .iter()
            .filter(|r| r.file.starts_with('/'))
            .collect();
        let mut bytes = Vec::new();
        longs(&mut bytes, &[of_files.len() as u64, PAGE]);
        for region in &of_files {
            longs(
                &mut bytes,
                &[region.start, region.end, region.offset / PAGE],
            );
        }
        for region in &of_files {
            bytes.extend(region.file.as_bytes());
            bytes.push(0);
        }
        note(&mut all, NT_FILE, &bytes);
    }
    all
}

fn note(all: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    words(all, &[5, bytes.len() as u32, kind]);
    all.extend(b"CORE\0\0\0\0");
    all.extend(bytes);
    all.resize(all.len().next_multiple_of(4), 0);
}

fn words(into: &mut Vec<u8>, values: &[u32]) {
    into.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

fn longs(into: &mut Vec<u8>, values: &[u64]) {
    into.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

/// `length` bytes of a file; memory is taken as they are read.
fn bytes_at(file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    const STEP: u64 = 1 << 20;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let at = bytes.len();
        bytes.resize(at + STEP.min(length - at as u64) as usize, 0);
        file.read_exact_at(&mut bytes[at..], offset.checked_add(at as u64)?)
            .ok()?;
    }
    Some(bytes)
}

fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    crate::scrape::sanitise(&String::from_utf8_lossy(&bytes[..end]), 256)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.get(..2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.get(..4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.get(..8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
