//! The frames of a stack and the pointers in them.
//!
//! Each frame is as long as the table of its function says for the instruction where it
//! stands, and what lies above it is the address it returns to. At each call the compiler
//! noted which words hold a pointer that is still needed; so a word that nobody will read
//! again keeps nothing alive. Variables whose address is taken (stack objects) count only
//! where a pointer leads to them.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::functions::{Call, Func, FuncData, Functions, PcTable, TOP_FRAME, WRITES_SP};
use super::goroutines::RawFrame;
use super::memory::Window;

/// Frames of one stack that are told apart.
const MAX_FRAMES: usize = 1 << 20;
/// Words of one frame.
const MAX_WORDS: u32 = 1 << 24;
/// Variables of one frame whose address is taken.
const MAX_OBJECTS: u64 = 1 << 16;
/// What is known of return addresses, for this many of them.
const MAX_KEPT: usize = 1 << 20;
/// Words of all stacks together that are looked at, and frames with inlined ones.
const MAX_ALL_WORDS: u64 = 1 << 32;
const MAX_ALL_FRAMES: u64 = 1 << 26;
/// Bytes of masks that are kept.
const MAX_MASKS: u64 = 512 << 20;
/// No pointer is below.
const FIRST_PAGE: u64 = 4096;

/// Where a stack is entered.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) pc: u64,
    pub(super) sp: u64,
    /// The return address, where the instruction set keeps it in a register.
    pub(super) link: u64,
    /// The instruction that comes next, of a thread stopped anywhere; else the one after
    /// a call.
    pub(super) is_interrupted: bool,
    /// The registers were saved by a system call.
    pub(super) is_system_call: bool,
}

/// The part of a stack in use.
pub(super) struct Stack {
    pub(super) low: u64,
    pub(super) high: u64,
    from: u64,
    bytes: Vec<u8>,
}

impl Stack {
    /// Reads what lies above `sp`; at most 1 GB, the most that a program may use.
    pub(super) fn read(window: &Window<'_>, low: u64, high: u64, sp: u64) -> Option<Self> {
        const MAX: u64 = 1 << 30;
        let from = sp & !7;
        if !(low <= from && from < high && high - from <= MAX) {
            return None;
        }
        let bytes = window.bytes(from, high - from, MAX).ok()?;
        Some(Self {
            low,
            high,
            from,
            bytes,
        })
    }

    fn holds(&self, address: u64) -> bool {
        (self.low..self.high).contains(&address)
    }

    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.from)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// Bits, one for each word.
#[derive(Clone, Default)]
struct Bits {
    count: u32,
    bytes: Vec<u8>,
}

impl Bits {
    fn is_set(&self, i: u64) -> bool {
        let byte = self.bytes.get((i / 8) as usize);
        byte.is_some_and(|b| b >> (i % 8) & 1 == 1)
    }
}

/// What a map of a frame tells.
enum Map {
    /// Nothing was noted: any word may hold a pointer.
    Unknown,
    Known(Bits),
}

/// A variable of a frame whose address is taken.
#[derive(Clone)]
struct Object {
    /// From the top of the locals where negative, else from the arguments.
    offset: i64,
    size: u64,
    pointers: Rc<Bits>,
}

/// What is known of an instruction in a frame.
struct Place {
    stands: u64,
    calls: Vec<Call>,
    role: Role,
    flags: u8,
    entry: u64,
    frame_size: Option<u64>,
    deferred_return: Option<u64>,
    /// `None`: only the call tells (reflection).
    argument_bytes: Option<u64>,
}

/// Which words are needed at an instruction.
struct Maps {
    locals: Map,
    arguments: Map,
    objects: Vec<Object>,
}

/// Functions that the walk has to know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Normal,
    /// A fault that is made to look like a call.
    SigPanic,
    /// The same for a goroutine that is made to stop: the registers are in its frame.
    Injected,
    /// Called with values in registers that no map tells of.
    KeepsRegisters,
    /// From C back into Go.
    CgoCallback,
    /// Stubs of reflection, of which only the value that is called knows the arguments.
    Reflection,
}

fn role(name: &[u8]) -> Role {
    match name {
        b"runtime.sigpanic" => Role::SigPanic,
        b"runtime.asyncPreempt" | b"runtime.debugCallV2" => Role::Injected,
        b"runtime.duffzero" | b"runtime.duffcopy" | b"gcWriteBarrier" => Role::KeepsRegisters,
        b"runtime.cgocallback" => Role::CgoCallback,
        b"reflect.makeFuncStub" | b"reflect.methodValueCall" => Role::Reflection,
        _ if name.starts_with(b"runtime.gcWriteBarrier") => Role::KeepsRegisters,
        _ => Role::Normal,
    }
}

/// Walks stacks; keeps what it learned of each instruction for the next one.
pub(super) struct Walker<'a> {
    window: &'a Window<'a>,
    functions: &'a Functions,
    has_link: bool,
    places: HashMap<(u64, bool), Rc<Place>>,
    maps: HashMap<u64, Rc<Maps>>,
    /// Bytes of masks that may still be read.
    masks: Cell<u64>,
    left: Left,
}

/// How much more may be done.
#[derive(Clone, Copy, Default)]
struct Left {
    words: u64,
    frames: u64,
}

impl Left {
    /// Takes so many words; fewer where there are no more.
    fn words(&mut self, wanted: u64) -> u64 {
        let taken = wanted.min(self.words);
        self.words -= taken;
        taken
    }
}

/// What a walk found.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) frames: Vec<RawFrame>,
    /// Pointers that belong to no frame, those into the stack followed.
    pub(super) other: Vec<u64>,
    /// Why the rest of the stack could not be told apart, where it could not.
    pub(super) broken: Option<&'static str>,
    left: Left,
}

impl Walk {
    /// Of a stack that cannot be looked at.
    pub(super) fn lost(why: &'static str) -> Self {
        Self {
            broken: Some(why),
            ..Self::default()
        }
    }
}

/// One physical frame.
#[derive(Clone, Copy, Default)]
struct Frame {
    sp: u64,
    /// The caller's stack pointer.
    fp: u64,
    /// Above the locals.
    top: u64,
    arguments: u64,
    /// Where the function goes on; 0 when it never does.
    continues: u64,
}

/// Objects of the frames so far, and pointers to them.
#[derive(Default)]
struct Found {
    objects: Vec<(u64, Object, usize)>,
    into_stack: Vec<u64>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(window: &'a Window<'a>, functions: &'a Functions) -> Self {
        Self {
            window,
            functions,
            has_link: functions.has_link_register(),
            places: HashMap::new(),
            maps: HashMap::new(),
            masks: Cell::new(MAX_MASKS.min(window.size().saturating_add(64 << 20))),
            left: Left {
                // Frames lie apart, so that each word is looked at a few times.
                words: MAX_ALL_WORDS.min((window.size() / 2).saturating_add(1 << 20)),
                frames: MAX_ALL_FRAMES.min((window.size() / 16).saturating_add(1 << 16)),
            },
        }
    }

    /// The frames of a stack, the leaf first. `held` are pointers of the goroutine outside
    /// its frames: those into the stack keep variables there alive.
    pub(super) fn walk(&mut self, stack: &Stack, entry: &Entry, held: &[u64]) -> Walk {
        let mut walk = Walk {
            left: self.left,
            ..Walk::default()
        };
        let mut found = Found::default();
        for &pointer in held {
            if stack.holds(pointer) {
                found.into_stack.push(pointer);
            } else if pointer >= FIRST_PAGE {
                walk.other.push(pointer);
            }
        }
        self.follow(stack, entry, &mut walk, &mut found);
        reach_objects(stack, &mut walk, found);
        self.left = walk.left;
        walk
    }

    /// All of a stack as one frame of which nothing is known.
    pub(super) fn whole(&mut self, stack: &Stack, held: Vec<u64>, why: &'static str) -> Walk {
        let mut walk = Walk {
            other: held,
            left: self.left,
            ..Walk::default()
        };
        rest(stack, stack.from, why, &mut walk);
        self.left = walk.left;
        walk
    }

    fn follow(&mut self, stack: &Stack, entry: &Entry, walk: &mut Walk, found: &mut Found) {
        let word = if self.has_link { 0 } else { 8 };
        let (mut pc, mut sp, mut link) = (entry.pc, entry.sp, entry.link);
        if pc == 0 {
            // A call of a nil function: it is its caller that counts.
            (pc, link) = (stack.word(sp).unwrap_or(0), 0);
            sp = sp.saturating_add(word);
        }
        let mut interrupted = entry.is_interrupted;
        // The first frame has no callee, and one stopped anywhere is told by no map.
        let (mut callee, mut unknown) = (Role::Normal, entry.is_interrupted);
        let mut shown = String::new();
        for depth in 0..MAX_FRAMES {
            let is_leaf = depth == 0;
            let Some(place) = self.place(pc, interrupted) else {
                return rest(stack, sp, "an address that is in no function", walk);
            };
            let mut flags = place.flags;
            if place.role == Role::CgoCallback || is_leaf && entry.is_system_call {
                flags &= !WRITES_SP;
            }
            let Some(size) = place.frame_size else {
                return rest(stack, sp, "a function whose frame is not known", walk);
            };
            let Some(fp) = sp.checked_add(size).and_then(|fp| fp.checked_add(word)) else {
                return rest(stack, sp, "a frame beyond its stack", walk);
            };
            if fp > stack.high {
                return rest(stack, sp, "a frame beyond its stack", walk);
            }
            let is_top = flags & TOP_FRAME != 0;
            let mut is_lost = false;
            if is_top {
                link = 0;
            } else if flags & WRITES_SP != 0 && (!is_leaf || entry.is_interrupted) {
                (link, is_lost) = (0, true);
            } else if self.has_link {
                if is_leaf && sp < fp || link == 0 {
                    link = stack.word(sp).unwrap_or(0);
                }
            } else {
                link = stack.word(fp.wrapping_sub(8)).unwrap_or(0);
            }
            let mut top = fp - word;
            if top > sp {
                top -= 8;
            }
            let frame = Frame {
                sp,
                fp,
                top,
                arguments: fp.saturating_add(if self.has_link { 8 } else { 0 }),
                // The one below made it stop here; it goes on where it returns.
                continues: match (callee, place.deferred_return) {
                    (Role::SigPanic, None) => 0,
                    (Role::SigPanic, Some(at)) => at.saturating_add(1),
                    _ => pc,
                },
            };
            let Some(left) = walk.left.frames.checked_sub(place.calls.len() as u64) else {
                return rest(stack, sp, "too many frames in all stacks", walk);
            };
            walk.left.frames = left;
            show(&place, &frame, &mut shown, walk);
            unknown |= matches!(place.role, Role::Injected | Role::KeepsRegisters);
            if unknown {
                let bytes = place.argument_bytes.unwrap_or(0);
                scan_words(stack, sp, top, walk, found);
                let end = frame.arguments.saturating_add(bytes);
                scan_words(stack, frame.arguments, end, walk, found);
            } else {
                self.scan(stack, &frame, &place, walk, found);
            }
            unknown = matches!(place.role, Role::Injected | Role::KeepsRegisters);

            if is_lost {
                return rest(stack, fp, "a function that writes its stack pointer", walk);
            }
            if link == 0 {
                if !is_top {
                    rest(stack, fp, "a frame without a caller", walk);
                }
                return;
            }
            if link == pc && sp == fp {
                return rest(stack, fp, "a frame that calls itself", walk);
            }
            callee = place.role;
            interrupted = matches!(place.role, Role::Injected | Role::SigPanic);
            (pc, sp, link) = (link, fp, 0);
            if self.has_link && interrupted {
                // What made the call put the return address below.
                let saved = stack.word(sp).unwrap_or(0);
                sp = sp.saturating_add(16);
                match self.functions.at(pc) {
                    None => pc = saved,
                    Some(f) if f.frame_size(pc) == Some(0) => link = saved,
                    Some(_) => {}
                }
            }
        }
        rest(stack, sp, "more frames than a stack can have", walk);
    }

    /// `interrupted` says that the instruction comes next; else it is the one after a call.
    fn place(&mut self, pc: u64, interrupted: bool) -> Option<Rc<Place>> {
        if let Some(known) = self.places.get(&(pc, interrupted)) {
            return Some(Rc::clone(known));
        }
        let func = self.functions.at(pc)?;
        let stands = if !interrupted && pc > func.entry {
            pc - 1
        } else {
            pc
        };
        let name = func.raw_name();
        let place = Rc::new(Place {
            stands,
            calls: self.functions.calls(self.window, func, stands),
            role: role(name),
            flags: func.flags(),
            entry: func.entry,
            frame_size: func
                .has_frame_table()
                .then(|| func.frame_size(pc))
                .flatten(),
            deferred_return: func.deferred_return(),
            argument_bytes: func.argument_bytes(),
        });
        if self.places.len() >= MAX_KEPT {
            self.places.clear();
        }
        self.places.insert((pc, interrupted), Rc::clone(&place));
        Some(place)
    }

    fn maps(&mut self, continues: u64) -> Option<Rc<Maps>> {
        if let Some(known) = self.maps.get(&continues) {
            return Some(Rc::clone(known));
        }
        let func = self.functions.at(continues)?;
        let index = if continues == func.entry {
            None
        } else {
            func.value(PcTable::StackMap, continues - 1)
        };
        // Before the first call the first map holds.
        let index = index.filter(|&i| i != -1).unwrap_or(0);
        let maps = Rc::new(Maps {
            locals: self.map(func, FuncData::Locals, index),
            arguments: self.map(func, FuncData::Arguments, index),
            objects: self.objects(func),
        });
        if self.maps.len() >= MAX_KEPT {
            self.maps.clear();
        }
        self.maps.insert(continues, Rc::clone(&maps));
        Some(maps)
    }

    /// Takes room for bytes of masks; `None` where there is no more.
    fn keep(&self, bytes: u64) -> Option<()> {
        self.masks.set(self.masks.get().checked_sub(bytes)?);
        Some(())
    }

    /// `runtime.stackmap`: how many maps, bits of each, the maps.
    fn map(&self, func: Func<'_>, which: FuncData, index: i32) -> Map {
        let read = || {
            let address = func.data(which)?;
            let count = self.window.u32(address).ok()?;
            let bits = self.window.u32(address.checked_add(4)?).ok()?;
            if bits == 0 && count > 0 {
                return Some(Bits::default());
            }
            let index = u32::try_from(index).ok()?;
            if index >= count || bits > MAX_WORDS {
                return None;
            }
            let size = u64::from(bits.div_ceil(8));
            let at = address.checked_add(8 + u64::from(index) * size)?;
            self.keep(size)?;
            let bytes = self.window.bytes(at, size, size).ok()?;
            Some(Bits { count: bits, bytes })
        };
        read().map_or(Map::Unknown, Map::Known)
    }

    /// `runtime.stackObjectRecord`: offset, size, bytes up to the last pointer and offset
    /// of the mask, 32 bits each.
    fn objects(&self, func: Func<'_>) -> Vec<Object> {
        let Some(address) = func.data(FuncData::StackObjects) else {
            return Vec::new();
        };
        let count = self.window.u64(address).unwrap_or(0).min(MAX_OBJECTS);
        let record = |i: u64| {
            let mut bytes = [0; 16];
            let at = address.checked_add(8 + i * 16)?;
            self.window.read(at, &mut bytes).ok()?;
            let field =
                |i: usize| i32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
            let size = u64::try_from(field(4)).ok()?;
            let mask = func
                .read_only_data()
                .checked_add((field(12) as u32).into())?;
            let words = (field(8).unsigned_abs() / 8).min(MAX_WORDS);
            self.keep(16 + u64::from(words) / 8)?;
            let pointers = if field(8) < 0 {
                // Up to Go 1.23: long masks are written as a program.
                run_mask_program(self.window, mask.checked_add(4)?, words)?
            } else {
                let size = u64::from(words.div_ceil(8));
                let bytes = self.window.bytes(mask, size, size).ok()?;
                Bits {
                    count: words,
                    bytes,
                }
            };
            Some(Object {
                offset: field(0).into(),
                size,
                pointers: Rc::new(pointers),
            })
        };
        (0..count).map_while(record).collect()
    }

    /// The pointers of a frame by the maps of its function.
    fn scan(
        &mut self,
        stack: &Stack,
        frame: &Frame,
        place: &Place,
        walk: &mut Walk,
        found: &mut Found,
    ) {
        if frame.continues == 0 {
            return;
        }
        let Some(maps) = self.maps(frame.continues) else {
            return;
        };
        let locals = frame.top.saturating_sub(frame.sp);
        if locals > if self.has_link { 16 } else { 0 } {
            match &maps.locals {
                Map::Known(bits) => {
                    let from = frame.top.saturating_sub(u64::from(bits.count) * 8);
                    take_ones(stack, from, (frame.sp, frame.top), bits, walk, found);
                }
                Map::Unknown => scan_words(stack, frame.sp, frame.top, walk, found),
            }
        }
        let mut reflected = None;
        match (place.argument_bytes, &maps.arguments) {
            (Some(0), _) => {}
            (Some(_), Map::Known(bits)) => {
                let all = (frame.arguments, stack.high);
                take_ones(stack, frame.arguments, all, bits, walk, found);
            }
            (Some(bytes), Map::Unknown) => {
                let end = frame.arguments.saturating_add(bytes);
                scan_words(stack, frame.arguments, end, walk, found);
            }
            (None, _) if place.role == Role::Reflection => {
                reflected = self.reflected(stack, frame, place, walk, found);
            }
            (None, _) => {}
        }
        let number = walk.frames.len().saturating_sub(1);
        let objects = match &reflected {
            Some(object) => std::slice::from_ref(object),
            None => &maps.objects[..],
        };
        for object in objects {
            let base = if object.offset < 0 {
                frame.top
            } else {
                frame.arguments
            };
            let Some(at) = base.checked_add_signed(object.offset) else {
                continue;
            };
            // Its place is not yet made where it lies below the frame.
            if at >= frame.sp && walk.left.words(1) > 0 {
                found.objects.push((at, object.clone(), number));
            }
        }
    }

    /// The arguments of a stub of reflection, told by the value that it is called for
    /// (`reflect.makeFuncImpl`: function, bit vector, bytes of arguments), and the
    /// registers it was called with (`abi.RegArgs`), which are its highest local.
    fn reflected(
        &self,
        stack: &Stack,
        frame: &Frame,
        place: &Place,
        walk: &mut Walk,
        found: &mut Found,
    ) -> Option<Object> {
        let first = frame.sp.checked_add(if self.has_link { 8 } else { 0 })?;
        if first >= frame.fp.saturating_sub(8) {
            return None;
        }
        let value = stack.word(first)?;
        if self.window.u64(value).ok()? != place.entry {
            return None;
        }
        let vector = self.window.u64(value.checked_add(8)?).ok()?;
        let arguments = self.window.u64(value.checked_add(16)?).ok()? / 8;
        let mut words = self.window.u32(vector).ok()?.min(MAX_WORDS);
        let bits = self.window.u64(vector.checked_add(8)?).ok()?;
        // The results count once they are there.
        if stack.word(first.checked_add(32)?)? & 0xff == 0 {
            words = words.min(u32::try_from(arguments).unwrap_or(u32::MAX));
        }
        let size = u64::from(words.div_ceil(8));
        let bytes = self.window.bytes(bits, size, size).ok()?;
        let bits = Bits {
            count: words,
            bytes,
        };
        let all = (frame.arguments, stack.high);
        take_ones(stack, frame.arguments, all, &bits, walk, found);
        // Integers, floats, pointers, and which results are pointers.
        let (integers, floats) = if self.has_link { (16, 16) } else { (9, 15) };
        let count = integers + floats + integers;
        let mut bytes = vec![0u8; count / 8 + 1];
        for i in integers + floats..count {
            bytes[i / 8] |= 1 << (i % 8);
        }
        let size = 8 * (count as u64 + 1);
        Some(Object {
            offset: -(size as i64),
            size,
            pointers: Rc::new(Bits {
                count: count as u32,
                bytes,
            }),
        })
    }
}

/// The calls of a frame; `callee` is the function below them.
fn show(place: &Place, of: &Frame, callee: &mut String, walk: &mut Walk) {
    for call in &place.calls {
        let below = callee.as_str();
        // A wrapper is of interest only where a panic goes through it.
        let panics = matches!(
            below,
            "runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap"
        );
        let frame = RawFrame {
            stands: place.stands,
            cfa: of.fp,
            function: call.source.function.clone(),
            file: call.source.file.clone(),
            line: call.source.line,
            is_hidden: call.is_wrapper && !panics,
            pointers: Vec::new(),
        };
        callee.clear();
        callee.push_str(&frame.function);
        walk.frames.push(frame);
    }
}

/// A pointer of the frame that was shown last.
fn take(stack: &Stack, slot: u64, value: u64, walk: &mut Walk, found: &mut Found) {
    if stack.holds(value) {
        found.into_stack.push(value);
    } else if value >= FIRST_PAGE
        && let Some(frame) = walk.frames.last_mut()
    {
        frame.pointers.push((slot, value));
    }
}

/// Pointers where a mask that starts at `from` has a bit set, of the words of a range.
fn take_ones(
    stack: &Stack,
    from: u64,
    (low, high): (u64, u64),
    bits: &Bits,
    walk: &mut Walk,
    found: &mut Found,
) {
    for i in within(stack, from, (low, high), bits, &mut walk.left) {
        let slot = from.saturating_add(8 * i);
        // Words below the stack pointer are not in use, and none is above the stack.
        if let Some(value) = stack.word(slot) {
            take(stack, slot, value, walk, found);
        }
    }
}

/// The bits that are set of a mask that starts at `from`, of the words of a range in the
/// stack, as many as may be looked at.
fn within<'b>(
    stack: &Stack,
    from: u64,
    (low, high): (u64, u64),
    bits: &'b Bits,
    left: &mut Left,
) -> impl Iterator<Item = u64> + use<'b> {
    let first = low.max(stack.from).saturating_sub(from).div_ceil(8);
    let end = high.min(stack.high).saturating_sub(from).div_ceil(8);
    let end = end.min(bits.count.into());
    let count = left.words(end.saturating_sub(first));
    (first..first.saturating_add(count)).filter(|&i| bits.is_set(i))
}

/// All words may be pointers.
fn scan_words(stack: &Stack, from: u64, to: u64, walk: &mut Walk, found: &mut Found) {
    let mut slot = from.max(stack.from) & !7;
    let to = to.min(stack.high);
    let wanted = to.saturating_sub(slot).div_ceil(8);
    let to = slot.saturating_add(8 * walk.left.words(wanted)).min(to);
    while slot < to {
        if let Some(value) = stack.word(slot) {
            take(stack, slot, value, walk, found);
        }
        slot += 8;
    }
}

/// What is left of a stack that cannot be followed further: any word may be a pointer.
fn rest(stack: &Stack, from: u64, why: &'static str, walk: &mut Walk) {
    walk.broken = Some(why);
    walk.frames.push(RawFrame {
        function: "?".into(),
        ..RawFrame::default()
    });
    // Pointers into the stack lead to what is taken in full anyway.
    scan_words(stack, from, stack.high, walk, &mut Found::default());
}

/// Follows pointers into the stack: from each variable that one leads to, on to others.
fn reach_objects(stack: &Stack, walk: &mut Walk, mut found: Found) {
    let mut objects = std::mem::take(&mut found.objects);
    objects.sort_by_key(|(at, _, _)| *at);
    let mut is_reached = vec![false; objects.len()];
    let mut work = found.into_stack;
    while let Some(pointer) = work.pop() {
        let next = objects.partition_point(|(at, _, _)| *at <= pointer);
        let Some(number) = next.checked_sub(1) else {
            continue;
        };
        let (at, object, frame) = &objects[number];
        if pointer - at >= object.size || std::mem::replace(&mut is_reached[number], true) {
            continue;
        }
        let all = (*at, stack.high);
        for i in within(stack, *at, all, &object.pointers, &mut walk.left) {
            let slot = at.saturating_add(8 * i);
            let Some(value) = stack.word(slot) else {
                continue;
            };
            if stack.holds(value) {
                work.push(value);
            } else if value >= FIRST_PAGE
                && let Some(frame) = walk.frames.get_mut(*frame)
            {
                frame.pointers.push((slot, value));
            }
        }
    }
}

/// Runs a program that writes a mask: a byte below 128 is a count of bits that follow it,
/// one above says how many of the last bits to repeat, how often follows; zero ends it.
fn run_mask_program(window: &Window<'_>, address: u64, words: u32) -> Option<Bits> {
    let mut at = address;
    let mut next = || {
        let byte = window.u8(at).ok()?;
        at = at.checked_add(1)?;
        Some(byte)
    };
    let mut bits: Vec<bool> = Vec::new();
    let limit = words as usize;
    // No part of it needs to say nothing.
    for _ in 0..=limit {
        if bits.len() >= limit {
            break;
        }
        let code = next()?;
        let mut number = |first: u64| {
            if first != 0 {
                return Some(first);
            }
            let mut value = 0u64;
            for shift in (0..35).step_by(7) {
                let byte = next()?;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        };
        if code == 0 {
            break;
        }
        if code & 0x80 == 0 {
            for start in (0..code).step_by(8) {
                let byte = next()?;
                bits.extend((0..(code - start).min(8)).map(|i| byte >> i & 1 == 1));
            }
            continue;
        }
        let length = usize::try_from(number((code & 0x7f).into())?).ok()?;
        let times = number(0)?;
        let from = bits.len().checked_sub(length).filter(|_| length > 0)?;
        let wanted = u64::try_from(length).ok()?.saturating_mul(times);
        let wanted = wanted.min((limit - bits.len().min(limit)) as u64) as usize;
        for i in 0..wanted {
            bits.push(bits[from + i % length]);
        }
    }
    let mut bytes = vec![0u8; bits.len().div_ceil(8)];
    for (i, bit) in bits.iter().enumerate() {
        bytes[i / 8] |= u8::from(*bit) << (i % 8);
    }
    Some(Bits {
        count: words.min(bits.len() as u32),
        bytes,
    })
}
