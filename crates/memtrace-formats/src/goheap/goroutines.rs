//! The goroutines of a program: their frames and the pointers in them, and what each
//! waits for.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use memtrace_model::WaitsFor;

use super::chain::Chain;
use super::frames::{Entry, Stack, Walk, Walker};
use super::functions::{Functions, SourceFrame};
use super::image::{Image, Layout};
use super::memory::{Registers, Thread, Window};
use crate::Error;

/// Goroutines of a program.
const MAX_GOROUTINES: u64 = 1 << 24;
/// Bytes of all their stacks that are read.
const MAX_STACKS: u64 = 16 << 30;
/// Cases of a select (the language allows no more), deferred calls of a goroutine.
const MAX_LIST: u64 = 1 << 16;
/// Goroutines that wait for one condition.
const MAX_WAITERS: u64 = 1 << 20;
/// Nodes of all lists together.
const MAX_NODES: u64 = 1 << 27;
/// Results that are kept for the next goroutine.
const MAX_KEPT: usize = 1 << 16;
/// Labels of a goroutine, and bytes of each of their strings.
const MAX_LABELS: usize = 64;
const MAX_LABEL: u64 = 1 << 10;
/// Bytes of the labels of all goroutines.
const MAX_LABEL_BYTES: u64 = 256 << 20;

/// A goroutine that is not dead.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawGoroutine {
    /// Address of its `runtime.g`.
    pub(crate) address: u64,
    /// The runtime's number of it.
    pub(crate) id: u64,
    /// The runtime's words for what it does or waits for: `running`, `chan receive`.
    pub(crate) state: Arc<str>,
    /// For how long it has waited, where the runtime noted since when.
    pub(crate) waiting_ns: Option<u64>,
    /// It belongs to the runtime.
    pub(crate) is_system: bool,
    /// First address of its stack, and the one after the last.
    pub(crate) stack: (u64, u64),
    /// Where it was started, the place of the `go` statement.
    pub(crate) created_by: Option<SourceFrame>,
    /// The function it was started with.
    pub(crate) entry_function: Arc<str>,
    /// Its pprof labels.
    pub(crate) labels: Vec<(String, String)>,
    /// Its frames, the leaf first, inlined calls each their own.
    pub(crate) frames: Vec<RawFrame>,
    /// Pointers of the goroutine outside its frames: deferred calls, the closure it is
    /// about to enter, the registers of its thread while it runs.
    pub(crate) other: Vec<u64>,
    pub(crate) waits_for: WaitsFor,
    /// Addresses of what it waits on: channels, the semaphore in a mutex or wait group,
    /// the list in a condition variable. They may lead into the middle of an object.
    pub(crate) waits_on: Vec<u64>,
}

/// A frame. Those inlined into a function come before it, and the pointers are with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawFrame {
    /// The instruction where it stands: the call.
    pub(crate) stands: u64,
    /// The canonical frame address: the caller's stack pointer; 0 where it is not known.
    pub(crate) cfa: u64,
    /// `?` where the stack could not be followed.
    pub(crate) function: Arc<str>,
    pub(crate) file: Arc<str>,
    pub(crate) line: u32,
    /// Written by the compiler to pass a call on; the runtime does not show it.
    pub(crate) is_hidden: bool,
    /// Where each pointer stands and where it leads: out of the stack, not necessarily
    /// to an object.
    pub(crate) pointers: Vec<(u64, u64)>,
}

/// States (`runtime._Grunning`).
mod status {
    pub(super) const IDLE: u32 = 0;
    pub(super) const RUNNING: u32 = 2;
    pub(super) const SYSTEM_CALL: u32 = 3;
    pub(super) const WAITING: u32 = 4;
    pub(super) const DEAD: u32 = 6;
    pub(super) const STACK_MOVES: u32 = 8;
    pub(super) const LEAKED: u32 = 10;
    pub(super) const DEAD_EXTRA: u32 = 11;
    /// Added by the collector while it scans the stack.
    pub(super) const SCAN: u32 = 0x1000;
    pub(super) const NAMES: [&str; 12] = [
        "idle",
        "runnable",
        "running",
        "syscall",
        "waiting",
        "???",
        "dead",
        "???",
        "copystack",
        "preempted",
        "leaked",
        "waiting for cgo callback",
    ];
}

/// Offsets of the fields that are read.
struct Offsets {
    stack_low: u64,
    stack_high: u64,
    panic: u64,
    deferred: u64,
    m: u64,
    pc: u64,
    sp: u64,
    context: u64,
    link: Option<u64>,
    call_sp: u64,
    call_pc: u64,
    status: u64,
    id: u64,
    wait_since: u64,
    wait_reason: u64,
    created: u64,
    start: u64,
    waiting: u64,
    labels: u64,
    runs_cleanups: Option<u64>,
    /// Bytes from the start of `runtime.g` that hold all these.
    length: u64,

    m_g0: u64,
    m_signal: Option<u64>,
    m_procid: u64,
    m_vdso_pc: Option<u64>,
    m_vdso_sp: Option<u64>,

    deferred_heap: u64,
    deferred_fn: u64,
    deferred_link: u64,

    waiter_g: u64,
    waiter_next: u64,
    waiter_elem: u64,
    waiter_link: u64,
    waiter_channel: u64,
}

impl Offsets {
    fn of(layout: &Layout, minor: u32) -> Result<Self, Error> {
        let mut length = 0;
        let mut g = |field: &str| -> Result<u64, Error> {
            let at = layout.at(&format!("g.{field}"))?;
            length = at.saturating_add(8).max(length);
            Ok(at)
        };
        // Since Go 1.26 these are two words, the first of which the collector may clear.
        let second = if minor >= 26 { 8 } else { 0 };
        let mut offsets = Self {
            stack_low: g("stack.lo")?,
            stack_high: g("stack.hi")?,
            panic: g("_panic")?,
            deferred: g("_defer")?,
            m: g("m")?,
            pc: g("sched.pc")?,
            sp: g("sched.sp")?,
            context: g("sched.ctxt")?,
            link: g("sched.lr").ok(),
            call_sp: g("syscallsp")?,
            call_pc: g("syscallpc")?,
            status: g("atomicstatus")?,
            id: g("goid")?,
            wait_since: g("waitsince")?,
            wait_reason: g("waitreason")?,
            created: g("gopc")?,
            start: g("startpc")?,
            waiting: g("waiting")?,
            labels: g("labels")?,
            runs_cleanups: g("runningCleanups").ok(),
            length: 0,
            m_g0: layout.at("m.g0")?,
            m_signal: layout.find("m.gsignal"),
            m_procid: layout.at("m.procid")?,
            m_vdso_pc: layout.find("m.vdsoPC"),
            m_vdso_sp: layout.find("m.vdsoSP"),
            deferred_heap: layout.at("_defer.heap")?,
            deferred_fn: layout.at("_defer.fn")?,
            deferred_link: layout.at("_defer.link")?,
            waiter_g: layout.at("sudog.g")?,
            waiter_next: layout.at("sudog.next")?,
            waiter_elem: layout.at("sudog.elem")?.saturating_add(second),
            waiter_link: layout.at("sudog.waitlink")?,
            waiter_channel: layout.at("sudog.c")?.saturating_add(second),
        };
        if length > 4096 {
            return Err(super::damaged("the size of runtime.g"));
        }
        offsets.length = length;
        Ok(offsets)
    }
}

/// The bytes of a `runtime.g`.
struct Bytes(Vec<u8>);

impl Bytes {
    fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        let bytes = self.0.get(at..at.saturating_add(8));
        bytes
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    fn byte(&self, at: u64) -> u8 {
        self.0.get(at as usize).copied().unwrap_or(0)
    }
}

struct Reader<'a> {
    window: &'a Window<'a>,
    functions: &'a Functions,
    offsets: Offsets,
    threads: &'a [Thread],
    walker: Walker<'a>,
    minor: u32,
    reasons: Vec<Arc<str>>,
    states: Vec<Arc<str>>,
    /// Of condition variables, whose address is the key: the goroutines that wait.
    conditions: HashMap<u64, HashSet<u64>>,
    /// Names and places of return addresses.
    created: HashMap<u64, Option<SourceFrame>>,
    finalizers_run: bool,
    now_ns: Option<u64>,
    /// Bytes of stacks and nodes of lists that may still be read.
    budget: u64,
    nodes: Cell<u64>,
    /// Bytes of labels that may still be taken.
    text: Cell<u64>,
    broken: HashMap<&'static str, u64>,
}

/// Reads all goroutines that are not dead, and tells what could not be read. `now_ns` is
/// the moment of the copy by the process's monotonic clock, in nanoseconds.
pub(crate) fn read(
    window: &Window<'_>,
    image: &Image,
    functions: &Functions,
    threads: &[Thread],
    now_ns: Option<u64>,
) -> (Vec<RawGoroutine>, Vec<String>) {
    let mut warnings = Vec::new();
    let begin = || -> Result<_, Error> {
        let offsets = Offsets::of(&image.layout, image.version.minor)?;
        let all = image.variable("allgs")?;
        let all = window.slice(all).ok();
        // Each has a record of its own.
        let most = MAX_GOROUTINES.min(window.size() / offsets.length.max(8));
        let all = all.filter(|&(_, count, capacity)| count <= capacity && count <= most);
        let (address, count, _) = all.ok_or_else(|| super::damaged("the list of goroutines"))?;
        Ok((offsets, address, count))
    };
    let (offsets, address, count) = match begin() {
        Ok(good) => good,
        Err(error) => return (Vec::new(), vec![format!("no goroutines: {error}")]),
    };
    let status = image.variable("fingStatus").ok();
    let status = status.and_then(|at| window.u32(at).ok()).unwrap_or(0);
    let mut reader = Reader {
        window,
        functions,
        offsets,
        threads,
        walker: Walker::new(window, functions),
        minor: image.version.minor,
        reasons: wait_reasons(window, image),
        states: status::NAMES.map(Arc::from).to_vec(),
        conditions: HashMap::new(),
        created: HashMap::new(),
        finalizers_run: status & 2 != 0,
        now_ns,
        budget: MAX_STACKS.min(window.size()),
        // A node of a list is in one list, and has 40 bytes at least.
        nodes: Cell::new(MAX_NODES.min(window.size() / 32)),
        text: Cell::new(MAX_LABEL_BYTES.min(window.size())),
        broken: HashMap::new(),
    };
    let mut goroutines = Vec::new();
    let mut unreadable = 0u64;
    // The list is read in parts: its window is not that of what it points to.
    const PART: u64 = 512;
    for part in (0..count).step_by(PART as usize) {
        let length = PART.min(count - part) * 8;
        let bytes =
            (address.checked_add(part * 8)).and_then(|at| window.bytes(at, length, length).ok());
        let Some(bytes) = bytes else {
            warnings.push("the list of goroutines cannot be read to its end".to_owned());
            break;
        };
        for pointer in bytes.chunks_exact(8) {
            let pointer = u64::from_le_bytes(pointer.try_into().unwrap_or_default());
            match reader.goroutine(pointer) {
                Some(Some(goroutine)) => goroutines.push(goroutine),
                Some(None) => {}
                None => unreadable += 1,
            }
        }
    }
    if unreadable > 0 {
        warnings.push(format!("{unreadable} goroutines cannot be read"));
    }
    let mut broken: Vec<_> = reader.broken.into_iter().collect();
    broken.sort_unstable();
    let told = |(why, count)| format!("{count} stacks were not followed to their end: {why}");
    warnings.extend(broken.into_iter().map(told));
    (goroutines, warnings)
}

impl Reader<'_> {
    /// `None` where it cannot be read, `Some(None)` where it is dead.
    #[allow(clippy::option_option)] // the two are counted apart
    fn goroutine(&mut self, address: u64) -> Option<Option<RawGoroutine>> {
        let length = self.offsets.length;
        let mut bytes = vec![0; length as usize];
        self.window.read(address, &mut bytes).ok()?;
        let g = Bytes(bytes);
        let offsets = &self.offsets;
        let status = (g.word(offsets.status) as u32) & !status::SCAN;
        if matches!(status, status::IDLE | status::DEAD | status::DEAD_EXTRA) {
            return Some(None);
        }
        let mut state = Arc::clone(self.states.get(status as usize)?);
        let is_parked = matches!(status, status::WAITING | status::LEAKED);
        let reason = g.byte(offsets.wait_reason);
        if is_parked && reason != 0 {
            let known = self.reasons.get(usize::from(reason)).cloned();
            state = known.unwrap_or_else(|| "unknown wait reason".into());
        }
        let since = g.word(offsets.wait_since);
        let waits = matches!(
            status,
            status::WAITING | status::LEAKED | status::SYSTEM_CALL
        );
        let waiting_ns = (self.now_ns)
            .and_then(|now| now.checked_sub(since))
            .filter(|_| waits && since != 0);
        let (created, start) = (g.word(offsets.created), g.word(offsets.start));
        let stack = (g.word(offsets.stack_low), g.word(offsets.stack_high));
        let labels = self.labels(g.word(offsets.labels));
        let created_by = self.created_by(created);
        let (entry_function, is_system) = self.entry(start, &g);
        let walk = self.walk(address, &g, status, stack);
        if let Some(why) = walk.broken {
            *self.broken.entry(why).or_default() += 1;
        }
        let mut goroutine = RawGoroutine {
            address,
            id: g.word(self.offsets.id),
            state,
            waiting_ns,
            is_system,
            stack,
            created_by,
            entry_function,
            labels,
            frames: walk.frames,
            other: walk.other,
            waits_for: WaitsFor::NotBlocked,
            waits_on: Vec::new(),
        };
        if is_parked {
            self.block(&mut goroutine, g.word(self.offsets.waiting));
        }
        Some(Some(goroutine))
    }

    fn walk(&mut self, address: u64, g: &Bytes, status: u32, (low, high): (u64, u64)) -> Walk {
        let lost = Walk::lost;
        if status == status::STACK_MOVES {
            return lost("a stack that is being moved");
        }
        let offsets = &self.offsets;
        let mut held = self.deferred(g.word(offsets.deferred));
        held.push(g.word(offsets.panic));
        held.push(g.word(offsets.context));
        let saved = Entry {
            pc: g.word(offsets.pc),
            sp: g.word(offsets.sp),
            link: offsets.link.map_or(0, |at| g.word(at)),
            is_interrupted: false,
            is_system_call: false,
        };
        let call_sp = g.word(offsets.call_sp);
        let entry = if status == status::RUNNING {
            let m = g.word(offsets.m);
            match self.thread(address, m, (low, high)) {
                Some(thread) => {
                    held.extend_from_slice(&thread.registers.general);
                    self.running(m, thread, (low, high), &saved, &mut held)
                }
                None => None,
            }
        } else if call_sp != 0 {
            Some(Entry {
                pc: g.word(offsets.call_pc),
                sp: call_sp,
                is_system_call: true,
                ..Entry::default()
            })
        } else {
            Some(saved)
        };
        let from = entry.as_ref().map_or(low, |e| e.sp);
        let size = high.saturating_sub(from);
        if size > self.budget {
            return lost("too many bytes of stacks");
        }
        let Some(stack) = Stack::read(self.window, low, high, from) else {
            return lost("a stack pointer outside its stack");
        };
        self.budget -= size;
        match entry {
            Some(entry) => self.walker.walk(&stack, &entry, &held),
            None => {
                let why = "a thread whose registers are not known";
                self.walker.whole(&stack, held, why)
            }
        }
    }

    /// The thread that runs a goroutine. The kernel's number of it is asked last: inside
    /// a container the runtime knows another one.
    fn thread(&self, g: u64, m: u64, (low, high): (u64, u64)) -> Option<&Thread> {
        let word = |at: u64| m.checked_add(at).and_then(|at| self.window.u64(at).ok());
        let own = |pointer: u64| {
            pointer != 0
                && (pointer == g
                    || Some(pointer) == word(self.offsets.m_g0)
                    || Some(pointer) == self.offsets.m_signal.and_then(word))
        };
        let find = |test: &dyn Fn(&Thread) -> bool| self.threads.iter().find(|t| test(t));
        find(&|t| (low..high).contains(&t.registers.sp))
            .or_else(|| {
                // Where the runtime keeps the goroutine of a thread on amd64.
                find(&|t| {
                    let at = t.registers.tls.checked_sub(8);
                    at.and_then(|at| self.window.u64(at).ok()).is_some_and(own)
                })
            })
            .or_else(|| find(&|t| own(t.registers.goroutine)))
            .or_else(|| find(&|t| word(self.offsets.m_procid) == Some(t.tid.into())))
    }

    /// Where the stack of a running goroutine is entered: at its thread's registers, at
    /// those that a signal interrupted (their values are `held` then), or where it left for
    /// the stack of the scheduler. `None` where that is not known.
    fn running(
        &self,
        m: u64,
        thread: &Thread,
        (low, high): (u64, u64),
        saved: &Entry,
        held: &mut Vec<u64>,
    ) -> Option<Entry> {
        let registers = &thread.registers;
        let word = |at: u64| self.window.u64(m.checked_add(at)?).ok();
        let inside = |sp: u64| (low..high).contains(&sp);
        let signal = self.offsets.m_signal.and_then(word);
        let bounds = signal.and_then(|g| {
            let low = self
                .window
                .u64(g.checked_add(self.offsets.stack_low)?)
                .ok()?;
            let high = self
                .window
                .u64(g.checked_add(self.offsets.stack_high)?)
                .ok()?;
            Some((low, high))
        });
        let now = match bounds {
            Some((from, to)) if (from..to).contains(&registers.sp) => {
                let interrupted = self.interrupted(registers.sp, (from, to))?;
                held.extend_from_slice(&interrupted.general);
                interrupted
            }
            _ => registers.clone(),
        };
        if inside(now.sp) && self.functions.at(now.pc).is_some() {
            // The link register is the last before the stack pointer.
            let link = now.general.get(30).copied().unwrap_or(0);
            return Some(Entry {
                pc: now.pc,
                sp: now.sp,
                link,
                is_interrupted: true,
                is_system_call: false,
            });
        }
        let (vdso_pc, vdso_sp) = (self.offsets.m_vdso_pc, self.offsets.m_vdso_sp);
        let (vdso_pc, vdso_sp) = (vdso_pc.and_then(word), vdso_sp.and_then(word));
        if let (Some(pc), Some(sp)) = (vdso_pc, vdso_sp)
            && inside(sp)
        {
            return Some(Entry {
                pc,
                sp,
                ..Entry::default()
            });
        }
        inside(saved.sp).then(|| saved.clone())
    }

    /// The registers that the kernel saved on the stack for signals. What it saves tells
    /// that stack itself (`ucontext_t`: flags, link, then its address, flags, size), which
    /// is how it is found.
    fn interrupted(&self, sp: u64, (low, high): (u64, u64)) -> Option<Registers> {
        const MAX: u64 = 1 << 20;
        // To the general registers and how many, to the stack pointer and the counter.
        let (general, count, stack, counter) = if self.functions.has_link_register() {
            (184, 31, 432, 440)
        } else {
            (40, 16, 160, 168)
        };
        let from = sp & !7;
        let bytes = self.window.bytes(from, high.checked_sub(from)?, MAX).ok()?;
        let word = |at: usize| {
            let bytes = bytes.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let is_context = |&at: &usize| {
            word(at + 8) == Some(0)
                && word(at + 16) == Some(low)
                && word(at + 32) == Some(high - low)
        };
        let at = (0..bytes.len()).step_by(8).find(is_context)?;
        Some(Registers {
            pc: word(at + counter)?,
            sp: word(at + stack)?,
            general: (0..count)
                .map_while(|i| word(at + general + 8 * i))
                .collect(),
            ..Registers::default()
        })
    }

    /// Pointers of deferred calls: the function, and records on the heap.
    fn deferred(&self, first: u64) -> Vec<u64> {
        let mut pointers = Vec::new();
        let word = |record: u64, at: u64| self.window.u64(record.checked_add(at)?).ok();
        let mut chain = self.list(first, MAX_LIST);
        while let Some(record) = self.node(&chain) {
            pointers.extend(word(record, self.offsets.deferred_fn));
            let heap = record.checked_add(self.offsets.deferred_heap);
            if heap
                .and_then(|at| self.window.u8(at).ok())
                .is_some_and(|b| b & 1 == 1)
            {
                pointers.push(record);
            }
            chain.follow(word(record, self.offsets.deferred_link));
        }
        pointers
    }

    fn list(&self, first: u64, limit: u64) -> Chain {
        Chain::new(first, limit.min(self.nodes.get()))
    }

    fn node(&self, chain: &Chain) -> Option<u64> {
        let node = chain.node()?;
        self.nodes.set(self.nodes.get().saturating_sub(1));
        Some(node)
    }

    fn entry(&self, start: u64, g: &Bytes) -> (Arc<str>, bool) {
        let Some(func) = self.functions.at(start) else {
            return (Arc::default(), false);
        };
        let name = self.functions.name(func);
        let is_system = match &*name {
            "runtime.main" | "runtime.corostart" | "runtime.handleAsyncEvent" => false,
            "runtime.runfinq" | "runtime.runFinalizers" => !self.finalizers_run,
            "runtime.runCleanups" => {
                (self.offsets.runs_cleanups).is_none_or(|at| g.byte(at) & 1 == 0)
            }
            _ => name.starts_with("runtime."),
        };
        (name, is_system)
    }

    fn created_by(&mut self, pc: u64) -> Option<SourceFrame> {
        let functions = self.functions;
        if self.created.len() > MAX_KEPT {
            self.created.clear();
        }
        let place = || Some(functions.place(functions.at(pc)?, pc));
        self.created.entry(pc).or_insert_with(place).clone()
    }

    fn block(&mut self, goroutine: &mut RawGoroutine, waiting: u64) {
        goroutine.waits_for = match &*goroutine.state {
            "chan receive (nil chan)" | "chan send (nil chan)" | "select (no cases)" => {
                WaitsFor::Nothing
            }
            "chan receive" | "chan send" | "select" => match self.channels(waiting) {
                // A select whose channels are all nil.
                Some(none) if none.is_empty() => WaitsFor::Nothing,
                Some(channels) => {
                    goroutine.waits_on = channels;
                    WaitsFor::Objects
                }
                None => WaitsFor::Elsewhere,
            },
            "sync.Mutex.Lock"
            | "sync.RWMutex.Lock"
            | "sync.RWMutex.RLock"
            | "sync.WaitGroup.Wait"
            | "semacquire"
            | "sync.Cond.Wait" => {
                let found = self.primitive(goroutine, waiting);
                goroutine.waits_on.extend(found);
                found.map_or(WaitsFor::Elsewhere, |_| WaitsFor::Objects)
            }
            _ => WaitsFor::NotBlocked,
        };
    }

    /// A field of a `sudog` of a goroutine.
    fn waiter(&self, waiter: u64, field: u64) -> Option<u64> {
        self.window.u64(waiter.checked_add(field)?).ok()
    }

    fn channels(&self, first: u64) -> Option<Vec<u64>> {
        let mut channels = Vec::new();
        let mut chain = self.list(first, MAX_LIST);
        while let Some(waiter) = self.node(&chain) {
            let channel = self.waiter(waiter, self.offsets.waiter_channel)?;
            if channel != 0 {
                channels.push(channel);
            }
            chain.follow(Some(self.waiter(waiter, self.offsets.waiter_link)?));
        }
        channels.sort_unstable();
        channels.dedup();
        Some(channels)
    }

    /// The address of the semaphore or list that a goroutine waits on. Since Go 1.26 it is
    /// noted with the goroutine; before, it is found through the frames that wait for it.
    fn primitive(&mut self, goroutine: &RawGoroutine, waiting: u64) -> Option<u64> {
        let g = goroutine.address;
        if self.minor >= 26 && waiting != 0 {
            let elem = self.waiter(waiting, self.offsets.waiter_elem)?;
            return Some(elem).filter(|&e| e != 0);
        }
        let pointers = |function: &str| {
            let frame = goroutine.frames.iter().find(|f| &*f.function == function);
            frame.map_or(&[][..], |f| &f.pointers)
        };
        if &*goroutine.state == "sync.Cond.Wait" {
            for &(_, cond) in pointers("sync.(*Cond).Wait") {
                if self
                    .condition(cond)
                    .is_some_and(|waiters| waiters.contains(&g))
                {
                    return cond.checked_add(NOTIFY_LIST);
                }
            }
            return None;
        }
        let is_own =
            |&&(_, waiter): &&(u64, u64)| self.waiter(waiter, self.offsets.waiter_g) == Some(g);
        let &(_, waiter) = pointers("runtime.semacquire1").iter().find(is_own)?;
        self.waiter(waiter, self.offsets.waiter_elem)
            .filter(|&e| e != 0)
    }

    /// The goroutines that wait for what may be a `sync.Cond`.
    fn condition(&mut self, cond: u64) -> Option<&HashSet<u64>> {
        if !self.conditions.contains_key(&cond) {
            let mut waiters = HashSet::new();
            // In the list: two counts, a lock, the first waiter.
            let first = self.waiter(cond, NOTIFY_LIST + 16)?;
            let mut chain = self.list(first, MAX_WAITERS);
            while let Some(waiter) = self.node(&chain) {
                let Some(g) = self.waiter(waiter, self.offsets.waiter_g) else {
                    break;
                };
                waiters.insert(g);
                chain.follow(self.waiter(waiter, self.offsets.waiter_next));
            }
            if self.conditions.len() > MAX_KEPT {
                self.conditions.clear();
            }
            self.conditions.insert(cond, waiters);
        }
        self.conditions.get(&cond)
    }

    /// Up to Go 1.23 a map of strings, then a slice of pairs of strings.
    fn labels(&self, labels: u64) -> Vec<(String, String)> {
        if labels == 0 {
            return Vec::new();
        }
        if self.minor <= 23 {
            return self.label_map(labels).unwrap_or_default();
        }
        let Ok((address, count, _)) = self.window.slice(labels) else {
            return Vec::new();
        };
        let pair = |i: u64| {
            let at = address.checked_add(i * 32)?;
            Some((self.string(at)?, self.string(at.checked_add(16)?)?))
        };
        (0..count.min(MAX_LABELS as u64)).map_while(pair).collect()
    }

    /// `runtime.hmap` with buckets of eight: hashes, keys, values, the next bucket.
    fn label_map(&self, labels: u64) -> Option<Vec<(String, String)>> {
        const BUCKET: u64 = 8 + 8 * 16 + 8 * 16 + 8;
        let word = |at: u64| self.window.u64(at).ok();
        let map = word(labels)?;
        if map == 0 {
            return None;
        }
        let wanted = usize::try_from(word(map)?).ok()?.min(MAX_LABELS);
        // Buckets as a power of two: there are more labels than are taken beyond.
        let size = self.window.u8(map.checked_add(9)?).ok()?.min(4);
        let mut pairs: Vec<(String, String)> = Vec::new();
        for array in [16, 24] {
            let array = word(map.checked_add(array)?)?;
            if array == 0 {
                continue;
            }
            for i in 0..1u64 << size {
                let mut bucket = array.checked_add(i * BUCKET)?;
                // Buckets that overflow are few: a map of labels is small.
                for _ in 0..4 {
                    for slot in 0..8 {
                        // Lower ones stand for free or moved.
                        let hash = bucket.checked_add(slot)?;
                        if pairs.len() >= wanted || self.window.u8(hash).ok()? < 5 {
                            continue;
                        }
                        let key = bucket.checked_add(8 + slot * 16)?;
                        let (key, value) = (self.string(key)?, self.string(key.checked_add(128)?)?);
                        pairs.push((key, value));
                    }
                    bucket = word(bucket.checked_add(BUCKET - 8)?)?;
                    if bucket == 0 {
                        break;
                    }
                }
            }
        }
        pairs.sort();
        Some(pairs)
    }

    fn string(&self, header: u64) -> Option<String> {
        let address = self.window.u64(header).ok()?;
        let length = self.window.u64(header.checked_add(8)?).ok()?;
        let left = self.text.get().checked_sub(length.min(MAX_LABEL))?;
        let bytes = self.window.bytes(address, length, MAX_LABEL).ok()?;
        self.text.set(left);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// From the start of a `sync.Cond` to its list: after the interface of its lock.
const NOTIFY_LIST: u64 = 16;

/// The runtime's words for reasons to wait, by number; the numbers move between releases.
fn wait_reasons(window: &Window<'_>, image: &Image) -> Vec<Arc<str>> {
    let known = known_reasons(image.version.minor);
    let Ok(table) = image.variable("waitReasonStrings") else {
        return known;
    };
    let text = |i: usize| {
        let header = table.checked_add(i as u64 * 16)?;
        let address = window.u64(header).ok()?;
        let length = window.u64(header.checked_add(8)?).ok()?;
        if length > 64 {
            return None;
        }
        let bytes = window.bytes(address, length, length).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        (!text.contains(char::is_control)).then(|| Arc::from(text))
    };
    let told: Vec<Arc<str>> = (0..known.len()).map_while(text).collect();
    // The first is no reason; what else is there means that it is another table.
    if told.len() == known.len() && told.first().is_some_and(|t| t.is_empty()) {
        told
    } else {
        known
    }
}

/// The same from the releases' sources.
fn known_reasons(minor: u32) -> Vec<Arc<str>> {
    let channels_old = ["chan receive (nil chan)", "chan send (nil chan)"];
    let select_old = ["select", "select (no cases)"];
    let transfer_old = ["chan receive", "chan send"];
    let mut names = vec!["", "GC assist marking", "IO wait"];
    let is_new = minor >= 26;
    if !is_new {
        names.extend(channels_old);
    }
    names.extend([
        "dumping heap",
        "garbage collection",
        "garbage collection scan",
        "panicwait",
    ]);
    if !is_new {
        names.extend(select_old);
    }
    names.extend(["GC assist wait", "GC sweep wait", "GC scavenge wait"]);
    if !is_new {
        names.extend(transfer_old);
    }
    names.extend(["finalizer wait", "force gc (idle)"]);
    if minor >= 25 {
        names.push("GOMAXPROCS updater (idle)");
    }
    names.extend(["semacquire", "sleep"]);
    if is_new {
        names.extend(channels_old);
        names.extend(["select (no cases)", "select", "chan receive", "chan send"]);
    }
    names.extend([
        "sync.Cond.Wait",
        "sync.Mutex.Lock",
        "sync.RWMutex.RLock",
        "sync.RWMutex.Lock",
    ]);
    if minor >= 24 {
        names.push("sync.WaitGroup.Wait");
    }
    names.extend([
        "trace reader (blocked)",
        "wait for GC cycle",
        "GC worker (idle)",
    ]);
    names.extend([
        "GC worker (active)",
        "preempted",
        "debug call",
        "GC mark termination",
    ]);
    names.push("stopping the world");
    if minor >= 22 {
        names.extend([
            "flushing proc caches",
            "trace goroutine status",
            "trace proc status",
        ]);
        names.extend(["page trace flush", "coroutine"]);
    }
    if minor >= 23 {
        names.push("GC weak to strong wait");
    }
    if minor >= 24 {
        names.extend(["synctest.Run", "synctest.Wait"]);
        names.extend(match minor {
            24 => [
                "chan receive (synctest)",
                "chan send (synctest)",
                "select (synctest)",
            ],
            _ => [
                "chan receive (durable)",
                "chan send (durable)",
                "select (durable)",
            ],
        });
    }
    if minor >= 25 {
        names.extend(["sync.WaitGroup.Wait (durable)", "cleanup wait"]);
    }
    names.into_iter().map(Arc::from).collect()
}
