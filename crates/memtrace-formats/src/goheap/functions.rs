//! The functions of a program as its runtime knows them: names, lines, frame sizes and
//! where in each function which word of a frame holds a pointer (`runtime._func`,
//! `pclntab`). The tables are the same from Go 1.21 to 1.27.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::image::{Image, Module};
use super::memory::Window;
use crate::Error;

/// Longest name of a function or file that is taken in.
const MAX_NAME: usize = 4 << 10;
/// Bytes of all tables that are taken in; the largest programs have some 100 MB.
const MAX_TABLES: u64 = 1 << 30;
/// Bytes from the start of `_func` to its lists of table offsets.
const HEADER: usize = 44;
/// Inlined calls within each other that are followed.
const MAX_INLINED: usize = 1000;
/// Changes of a value in one function that are followed.
const MAX_STEPS: usize = 1 << 20;
/// The same for all questions together.
const MAX_ALL_STEPS: u64 = 1 << 32;
/// Names that are kept for the next who asks.
const MAX_KEPT: usize = 1 << 20;

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceFrame {
    pub(crate) function: Arc<str>,
    pub(crate) file: Arc<str>,
    /// 0 when unknown.
    pub(crate) line: u32,
}

/// A call at an address: several stand at one where the compiler inlined.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) source: SourceFrame,
    /// A method or function that only passes on what it is called with, written by the
    /// compiler.
    pub(crate) is_wrapper: bool,
}

/// Tables that tell a number for each instruction.
#[derive(Clone, Copy)]
pub(super) enum PcTable {
    StackMap = 1,
    InlineTree = 2,
}

/// Data that belongs to a function.
#[derive(Clone, Copy)]
pub(super) enum FuncData {
    Arguments = 0,
    Locals = 1,
    StackObjects = 2,
    InlineTree = 3,
}

/// The stack ends here.
pub(super) const TOP_FRAME: u8 = 1;
/// Writes to the stack pointer what no table tells.
pub(super) const WRITES_SP: u8 = 2;

/// The functions of all modules.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    modules: Vec<Tables>,
    /// The number that marks wrappers: it moves between releases.
    wrapper: Option<u8>,
    names: Mutex<HashMap<Vec<u8>, Arc<str>>>,
}

#[derive(Debug, Default)]
struct Tables {
    text: u64,
    rodata: u64,
    /// What the offsets of functions' data are relative to.
    data: u64,
    names: Vec<u8>,
    units: Vec<u8>,
    files: Vec<u8>,
    pc: Vec<u8>,
    functions: Vec<u8>,
    /// Entry relative to `text`, offset in `functions`; the last is the end of the code.
    index: Vec<(u32, u32)>,
    /// Least bytes of an instruction.
    quantum: u8,
    /// Changes of values that have been followed, of all modules.
    steps: Arc<AtomicU64>,
}

/// One function.
#[derive(Clone, Copy)]
pub(crate) struct Func<'f> {
    tables: &'f Tables,
    at: usize,
    /// Address of its first instruction.
    pub(crate) entry: u64,
    /// Address after its last one.
    pub(crate) end: u64,
}

impl Functions {
    /// Reads the tables of all modules.
    ///
    /// # Errors
    /// Where those of the first module cannot be read.
    pub(crate) fn read(window: &Window<'_>, image: &Image) -> Result<Self, Error> {
        let mut all = Self::default();
        let steps = Arc::new(AtomicU64::new(0));
        let mut left = MAX_TABLES.min(window.size().saturating_mul(2));
        for (i, module) in image.modules.iter().enumerate() {
            match Tables::read(window, module, &mut left, &steps) {
                Some(tables) => all.modules.push(tables),
                None if i == 0 => {
                    window.u64(module.pc_header)?;
                    return Err(super::damaged("the table of functions"));
                }
                None => {}
            }
        }
        // The number of wrappers comes after that of this function.
        let switch = all.find_func("runtime.systemstack_switch");
        all.wrapper = switch.and_then(|f| f.id().checked_add(1));
        Ok(all)
    }

    /// Whether the program is of an instruction set that keeps return addresses in a
    /// register (arm64), rather than of amd64.
    pub(super) fn has_link_register(&self) -> bool {
        self.modules.first().is_some_and(|m| m.quantum == 4)
    }

    /// The function around an address.
    pub(crate) fn at(&self, pc: u64) -> Option<Func<'_>> {
        self.modules.iter().find_map(|m| m.at(pc))
    }

    /// The first instructions of functions with such names.
    pub(crate) fn named(&self, wanted: impl Fn(&str) -> bool) -> Vec<u64> {
        let all = self.modules.iter().flat_map(|tables| {
            let count = tables.index.len().saturating_sub(1);
            (0..count).filter_map(|i| tables.func(i))
        });
        all.filter(|f| std::str::from_utf8(f.raw_name()).is_ok_and(&wanted))
            .map(|f| f.entry)
            .collect()
    }

    fn find_func(&self, name: &str) -> Option<Func<'_>> {
        self.modules.iter().find_map(|tables| {
            let count = tables.index.len().checked_sub(1)?;
            (0..count)
                .filter_map(|i| tables.func(i))
                .find(|f| f.raw_name() == name.as_bytes())
        })
    }

    /// The name of a function as the runtime prints it: the types of an instance of a
    /// generic function are left out.
    pub(crate) fn name(&self, func: Func<'_>) -> Arc<str> {
        self.text(func.raw_name(), true)
    }

    /// The place of a call by the address it returns to; where it was inlined, the line is
    /// that of the inlined code and the function the one around it.
    pub(crate) fn place(&self, func: Func<'_>, pc: u64) -> SourceFrame {
        let pc = if pc > func.entry { pc - 1 } else { pc };
        self.call(func, pc, func.id(), func.raw_name()).source
    }

    /// What runs at an instruction, inlined calls first.
    pub(crate) fn calls(&self, window: &Window<'_>, func: Func<'_>, pc: u64) -> Vec<Call> {
        let mut calls = Vec::new();
        let tree = func.data(FuncData::InlineTree);
        let mut pc = pc;
        while let Some((id, name, parent)) = tree.and_then(|t| func.inlined(window, t, pc)) {
            calls.push(self.call(func, pc, id, name));
            pc = parent;
            if calls.len() >= MAX_INLINED {
                break;
            }
        }
        calls.push(self.call(func, pc, func.id(), func.raw_name()));
        calls
    }

    fn call(&self, func: Func<'_>, pc: u64, id: u8, name: &[u8]) -> Call {
        let (file, line) = func.file_line(pc);
        Call {
            source: SourceFrame {
                function: self.text(name, true),
                file: self.text(file, false),
                line,
            },
            is_wrapper: Some(id) == self.wrapper,
        }
    }

    /// The places of a stack that the runtime recorded (`runtime.Callers`, a bucket of
    /// the heap profile), the leaf first. Each of its addresses stands for one call,
    /// inlined ones as well; only the last may stand for more.
    pub(crate) fn call_stack(&self, window: &Window<'_>, pcs: &[u64]) -> Vec<SourceFrame> {
        let mut frames = Vec::new();
        for (i, &pc) in pcs.iter().enumerate() {
            let Some(func) = self.at(pc) else { continue };
            let pc = if pc > func.entry { pc - 1 } else { pc };
            let calls = self.calls(window, func, pc).into_iter();
            let taken = if i + 1 == pcs.len() { usize::MAX } else { 1 };
            frames.extend(calls.take(taken).map(|c| c.source));
        }
        frames
    }

    /// Text that many share. Empty where it is not UTF-8.
    fn text(&self, bytes: &[u8], is_function: bool) -> Arc<str> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(bytes) {
            return Arc::clone(known);
        }
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let shown: Arc<str> = match (is_function, text.find('['), text.rfind(']')) {
            (true, Some(from), Some(to)) if from < to => {
                format!("{}[...]{}", &text[..from], &text[to + 1..]).into()
            }
            _ => text.into(),
        };
        if names.len() >= MAX_KEPT {
            names.clear();
        }
        names.insert(bytes.to_vec(), Arc::clone(&shown));
        shown
    }
}

impl Tables {
    /// `left` is how many more bytes may be taken in.
    fn read(
        window: &Window<'_>,
        module: &Module,
        left: &mut u64,
        steps: &Arc<AtomicU64>,
    ) -> Option<Self> {
        let mut table = |(address, count): (u64, u64), size: u64| {
            let bytes = window
                .bytes(address, count.checked_mul(size)?, *left)
                .ok()?;
            *left -= bytes.len() as u64;
            Some(bytes)
        };
        let index = table(module.ftab, 8)?;
        let quantum = window.u8(module.pc_header.checked_add(6)?).ok()?;
        let tables = Self {
            text: module.text.0,
            rodata: module.rodata,
            data: module.gofunc,
            names: table(module.funcnametab, 1)?,
            units: table(module.cutab, 4)?,
            files: table(module.filetab, 1)?,
            pc: table(module.pctab, 1)?,
            functions: table(module.pclntable, 1)?,
            index: index
                .chunks_exact(8)
                .map_while(|pair| Some((u32_at(pair, 0)?, u32_at(pair, 4)?)))
                .collect(),
            quantum,
            steps: Arc::clone(steps),
        };
        // Each function has a record of its own.
        let fits = tables.index.len() <= tables.functions.len() / HEADER + 1;
        let is_sorted = tables.index.is_sorted_by_key(|&(entry, _)| entry);
        (fits && is_sorted).then_some(tables)
    }

    fn at(&self, pc: u64) -> Option<Func<'_>> {
        let offset = u32::try_from(pc.checked_sub(self.text)?).ok()?;
        let next = self.index.partition_point(|&(entry, _)| entry <= offset);
        // The last one is only the end.
        self.func(next.checked_sub(1)?)
    }

    fn func(&self, number: usize) -> Option<Func<'_>> {
        let &(entry, at) = self.index.get(number)?;
        let &(end, _) = self.index.get(number.checked_add(1)?)?;
        let at = at as usize;
        self.functions.get(at..at.checked_add(HEADER)?)?;
        Some(Func {
            tables: self,
            at,
            entry: self.text.checked_add(entry.into())?,
            end: self.text.checked_add(end.into())?,
        })
    }

    /// The value of a table for an instruction; `None` where there is none.
    fn value(&self, table: u32, entry: u64, target: u64) -> Option<i32> {
        if table == 0 {
            return None;
        }
        if self.steps.load(Ordering::Relaxed) > MAX_ALL_STEPS {
            return None;
        }
        let pc = self.pc.get(table as usize..)?;
        let mut bytes = pc.iter();
        let value = self.follow(&mut bytes, entry, target);
        let passed = pc.len() - bytes.len();
        self.steps.fetch_add(passed as u64, Ordering::Relaxed);
        value
    }

    /// The value at an instruction, from the changes of it.
    fn follow(&self, bytes: &mut std::slice::Iter<'_, u8>, entry: u64, target: u64) -> Option<i32> {
        let mut value = -1i32;
        let mut pc = entry;
        let mut is_first = true;
        for _ in 0..MAX_STEPS {
            if pc > target {
                return Some(value);
            }
            let delta = varint(bytes)?;
            if delta == 0 && !is_first {
                return None;
            }
            is_first = false;
            // Zigzag: the lowest bit is the sign.
            let change = (delta >> 1) as i32 ^ -((delta & 1) as i32);
            value = value.wrapping_add(change);
            let step = varint(bytes)?;
            if step == 0 {
                return None;
            }
            pc = pc.checked_add(u64::from(step).checked_mul(self.quantum.into())?)?;
        }
        None
    }
}

impl<'f> Func<'f> {
    fn field(self, at: usize) -> u32 {
        u32_at(&self.tables.functions, self.at.saturating_add(at)).unwrap_or(0)
    }

    fn byte(self, at: usize) -> u8 {
        let at = self.at.saturating_add(at);
        self.tables.functions.get(at).copied().unwrap_or(0)
    }

    /// The name in full, as the linker knows it.
    pub(super) fn raw_name(self) -> &'f [u8] {
        text_at(&self.tables.names, self.field(4))
    }

    /// Bytes of arguments and results on the stack; `None` where only a call tells.
    pub(super) fn argument_bytes(self) -> Option<u64> {
        u64::try_from(self.field(8) as i32).ok()
    }

    /// The instruction at which a function goes on after a panic that it recovers from.
    pub(super) fn deferred_return(self) -> Option<u64> {
        match self.field(12) {
            0 => None,
            offset => self.entry.checked_add(offset.into()),
        }
    }

    /// Whether the size of its frame is known.
    pub(super) fn has_frame_table(self) -> bool {
        self.field(16) != 0
    }

    /// Bytes of its frame at an instruction.
    pub(super) fn frame_size(self, pc: u64) -> Option<u64> {
        let size = self.tables.value(self.field(16), self.entry, pc)?;
        u64::try_from(size).ok()
    }

    /// A number for functions that the runtime treats in a special way.
    pub(super) fn id(self) -> u8 {
        self.byte(40)
    }

    pub(super) fn flags(self) -> u8 {
        self.byte(41)
    }

    /// Where offsets in the read-only data of its module start.
    pub(super) fn read_only_data(self) -> u64 {
        self.tables.rodata
    }

    /// The value of a table at an instruction; `None` where nothing is told.
    pub(super) fn value(self, table: PcTable, pc: u64) -> Option<i32> {
        let count = self.field(28);
        if table as u32 >= count {
            return None;
        }
        let start = self.field(HEADER + 4 * table as usize);
        self.tables.value(start, self.entry, pc)
    }

    /// Address of data that belongs to the function.
    pub(super) fn data(self, which: FuncData) -> Option<u64> {
        if which as u8 >= self.byte(43) {
            return None;
        }
        let tables = (self.field(28) as usize).checked_mul(4)?;
        let at = HEADER
            .checked_add(tables)?
            .checked_add(4 * which as usize)?;
        let offset = u32_at(&self.tables.functions, self.at.checked_add(at)?)?;
        if offset == u32::MAX {
            return None;
        }
        self.tables.data.checked_add(offset.into())
    }

    /// The file (empty when unknown) and line of an instruction.
    fn file_line(self, pc: u64) -> (&'f [u8], u32) {
        let line = self.tables.value(self.field(24), self.entry, pc);
        let line = line.and_then(|l| u32::try_from(l).ok()).unwrap_or(0);
        let file = || {
            let number = self.tables.value(self.field(20), self.entry, pc)?;
            let unit = self.field(32).checked_add(u32::try_from(number).ok()?)?;
            let at = u32_at(&self.tables.units, (unit as usize).checked_mul(4)?)?;
            (at != u32::MAX).then(|| text_at(&self.tables.files, at))
        };
        (file().unwrap_or_default(), line)
    }

    /// The innermost inlined call at an instruction: number and name of its function and
    /// the instruction that stands for the call.
    fn inlined(self, window: &Window<'_>, tree: u64, pc: u64) -> Option<(u8, &'f [u8], u64)> {
        let index = self.value(PcTable::InlineTree, pc)?;
        let record = tree.checked_add(u64::try_from(index).ok()?.checked_mul(16)?)?;
        let mut bytes = [0; 16];
        window.read(record, &mut bytes).ok()?;
        let parent = self.entry.checked_add(u32_at(&bytes, 8)?.into())?;
        let name = text_at(&self.tables.names, u32_at(&bytes, 4)?);
        (parent < self.end).then_some((bytes[0], name, parent))
    }
}

/// At most five bytes, seven bits each, the lowest first.
fn varint(bytes: &mut std::slice::Iter<'_, u8>) -> Option<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.next()?;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Text that ends with a zero byte; empty where it does not.
fn text_at(bytes: &[u8], at: u32) -> &[u8] {
    let rest = bytes.get(at as usize..).unwrap_or_default();
    let rest = &rest[..rest.len().min(MAX_NAME)];
    let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
    &rest[..end]
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
impl Functions {
    /// Puts other functions into the index of the first module.
    pub(super) fn lie(&mut self, index: impl Iterator<Item = (u32, u32)>) {
        self.modules[0].index = index.collect();
    }
}
