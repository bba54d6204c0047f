//! The memory of a process, asked for by address.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory of a process that does not change while it is read: a frozen copy, a core
/// file, a buffer of a test.
pub trait Memory: Sync {
    /// Fills `into` with the bytes from `address`.
    ///
    /// # Errors
    /// [`Unreadable`] where any of the bytes is not there; what `into` holds then is
    /// of no meaning.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;

    /// How many bytes there are at most: no table of the process can have more.
    fn size(&self) -> u64 {
        u64::MAX
    }

    /// Whether all these bytes may be there.
    fn has(&self, address: u64, length: u64) -> bool {
        address.checked_add(length).is_some()
    }
}

/// Bytes that are not mapped, or that the kernel does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory at {address:#x}")]
pub struct Unreadable {
    /// The first address that was asked for.
    pub address: u64,
}

impl From<Unreadable> for crate::Error {
    fn from(lost: Unreadable) -> Self {
        Self::UnreadableMemory {
            address: lost.address,
        }
    }
}

/// The general registers of a thread, as its system numbers them.
///
/// amd64: in the order of the instruction set (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi,
/// r8-r15), the program counter apart. arm64: x0-x30, then sp.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The next instruction.
    pub pc: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer (rbp, x29).
    pub frame: u64,
    /// The register in which Go code keeps its goroutine (r14, x28). Elsewhere it holds
    /// anything.
    pub goroutine: u64,
    /// Base of thread-local storage (fs_base, tpidr_el0), 0 when unknown.
    pub tls: u64,
    /// All general registers.
    pub general: Vec<u64>,
}

/// A thread of the process at the moment of the copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// The kernel's number of it.
    pub tid: u32,
    /// Its registers.
    pub registers: Registers,
}

/// A mapping of the process, as `/proc/PID/maps` or a core file tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file that `start` maps.
    pub offset: u64,
    /// The file; empty for anonymous memory.
    pub file: String,
    /// Readable, writable, executable.
    pub rwx: [bool; 3],
}

/// The memory of a process within its mappings, and not endlessly much of it.
///
/// A memory may be made to lie: tables that lead to themselves, or that claim more than
/// there is. Each part of the reader bounds its own work by the size that the mappings
/// have; this is what holds whatever they do.
pub(crate) struct Bounded<'m> {
    memory: &'m dyn Memory,
    /// What can be read: start and end, ascending, apart.
    ranges: Vec<(u64, u64)>,
    size: u64,
    /// Bytes that may still be read.
    left: AtomicU64,
}

impl<'m> Bounded<'m> {
    /// How often the whole memory may be read, and how many bytes besides. A sound process is
    /// read a few times over, in windows for the larger part.
    const TIMES: u64 = 64;
    const BESIDES: u64 = 4 << 30;

    pub(crate) fn new(memory: &'m dyn Memory, regions: &[Region]) -> Self {
        let mut known: Vec<(u64, u64)> = (regions.iter())
            .filter(|r| r.rwx[0] && r.start < r.end)
            .map(|r| (r.start, r.end))
            .collect();
        known.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (start, end) in known {
            match ranges.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        let size = ranges.iter().map(|(start, end)| end - start).sum();
        Self {
            memory,
            ranges,
            size,
            left: AtomicU64::new(Self::BESIDES.saturating_add(size.saturating_mul(Self::TIMES))),
        }
    }

    /// Whether more was asked for than any sound process needs.
    pub(crate) fn is_used_up(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl Memory for Bounded<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let length = into.len() as u64;
        if !self.has(address, length) {
            return Err(Unreadable { address });
        }
        let take = |left: u64| Some(left.saturating_sub(length));
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        if left.is_ok_and(|left| left <= length) {
            return Err(Unreadable { address });
        }
        self.memory.read(address, into)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn has(&self, address: u64, length: u64) -> bool {
        let next = self.ranges.partition_point(|r| r.0 <= address);
        let range = next.checked_sub(1).and_then(|i| self.ranges.get(i));
        range.is_some_and(|r| address < r.1 && length <= r.1 - address)
    }
}

/// Small reads through pages that are held: tables are walked in order mostly, and names of
/// types are read again and again.
pub(crate) struct Window<'m> {
    memory: &'m dyn Memory,
    /// Pages by their number modulo [`Window::PAGES`]; none before the first read.
    held: RefCell<Vec<Page>>,
}

#[derive(Clone, Default)]
struct Page {
    start: u64,
    /// Empty where nothing is held.
    bytes: Vec<u8>,
}

impl<'m> Window<'m> {
    /// Bytes of a page, and how many pages are held at most: 2 MiB.
    const SIZE: u64 = 16 << 10;
    const PAGES: u64 = 128;

    pub(crate) fn new(memory: &'m dyn Memory) -> Self {
        Self {
            memory,
            held: RefCell::new(Vec::new()),
        }
    }

    /// Bytes that the process has at most.
    pub(crate) fn size(&self) -> u64 {
        self.memory.size()
    }

    /// Whether all these bytes may be there.
    pub(crate) fn has(&self, address: u64, length: u64) -> bool {
        self.memory.has(address, length)
    }

    /// Another one on the same memory, for a table that is walked beside this one's.
    pub(crate) fn beside(&self) -> Self {
        Self::new(self.memory)
    }

    /// Fills `into`, from the pages held where it can be.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let start = address & !(Self::SIZE - 1);
        let at = (address - start) as usize;
        let within = at..at.saturating_add(into.len());
        if within.end > Self::SIZE as usize {
            return self.memory.read(address, into);
        }
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            held.resize(Self::PAGES as usize, Page::default());
        }
        let page = &mut held[(start / Self::SIZE % Self::PAGES) as usize];
        if page.start != start || page.bytes.is_empty() {
            page.start = start;
            page.bytes.resize(Self::SIZE as usize, 0);
            if self.memory.read(start, &mut page.bytes).is_err() {
                // It reaches over the end of a mapping.
                page.bytes.clear();
                return self.memory.read(address, into);
            }
        }
        into.copy_from_slice(&page.bytes[within]);
        Ok(())
    }

    pub(crate) fn u8(&self, address: u64) -> Result<u8, Unreadable> {
        let mut bytes = [0];
        self.read(address, &mut bytes)?;
        Ok(bytes[0])
    }

    pub(crate) fn u32(&self, address: u64) -> Result<u32, Unreadable> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(crate) fn u64(&self, address: u64) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A slice header: address, length, capacity.
    pub(crate) fn slice(&self, address: u64) -> Result<(u64, u64, u64), Unreadable> {
        let mut bytes = [0; 24];
        self.read(address, &mut bytes)?;
        let word =
            |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap_or([0; 8]));
        Ok((word(0), word(1), word(2)))
    }

    /// `length` bytes from `address`, at most `limit` of them: memory is taken as it is
    /// read, never because a length says so.
    pub(crate) fn bytes(
        &self,
        address: u64,
        length: u64,
        limit: u64,
    ) -> Result<Vec<u8>, Unreadable> {
        const STEP: u64 = 1 << 20;
        let length = length.min(limit);
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let at = bytes.len();
            let step = STEP.min(length - at as u64);
            let from = address
                .checked_add(at as u64)
                .ok_or(Unreadable { address })?;
            bytes.resize(at + step as usize, 0);
            self.memory.read(from, &mut bytes[at..])?;
        }
        Ok(bytes)
    }
}
