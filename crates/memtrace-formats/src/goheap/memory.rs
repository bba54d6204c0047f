//! The memory of a process, asked for by address.

use std::cell::RefCell;

/// Memory of a process that does not change while it is read: a frozen copy, a core
/// file, a buffer of a test.
pub trait Memory: Sync {
    /// Fills `into` with the bytes from `address`.
    ///
    /// # Errors
    /// [`Unreadable`] where any of the bytes is not there; what `into` holds then is
    /// of no meaning.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// Bytes that are not mapped, or that the kernel does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory at {address:#x}")]
pub struct Unreadable {
    /// The first address that was asked for.
    pub address: u64,
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

/// Small reads through a window of some KB: tables are walked in order mostly.
pub(crate) struct Window<'m> {
    memory: &'m dyn Memory,
    held: RefCell<(u64, Vec<u8>)>,
}

impl<'m> Window<'m> {
    /// Bytes held at a time.
    const SIZE: u64 = 16 << 10;

    pub(crate) fn new(memory: &'m dyn Memory) -> Self {
        Self {
            memory,
            held: RefCell::new((0, Vec::new())),
        }
    }

    pub(crate) fn memory(&self) -> &'m dyn Memory {
        self.memory
    }

    /// Fills `into`, from the window where it can be.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let mut held = self.held.borrow_mut();
        let within = |start: u64, bytes: &[u8]| {
            let at = usize::try_from(address.checked_sub(start)?).ok()?;
            let end = at.checked_add(into.len())?;
            (end <= bytes.len()).then_some((at, end))
        };
        if let Some((at, end)) = within(held.0, &held.1) {
            into.copy_from_slice(&held.1[at..end]);
            return Ok(());
        }
        let start = address & !(Self::SIZE - 1);
        held.1.resize(Self::SIZE as usize, 0);
        if self.memory.read(start, &mut held.1).is_ok()
            && let Some((at, end)) = within(start, &held.1)
        {
            held.0 = start;
            into.copy_from_slice(&held.1[at..end]);
            return Ok(());
        }
        // Too long for the window, or it reaches over the end of a mapping.
        held.1.clear();
        self.memory.read(address, into)
    }

    pub(crate) fn u8(&self, address: u64) -> Result<u8, Unreadable> {
        let mut bytes = [0];
        self.read(address, &mut bytes)?;
        Ok(bytes[0])
    }

    pub(crate) fn u16(&self, address: u64) -> Result<u16, Unreadable> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
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
