//! A process at one moment: a frozen copy of a live one, or an ELF core.
//!
//! What this module hides: how the copy is made without harm, and where the bytes come
//! from. What comes out is a [`Memory`], registers and mappings.
//!
//! ```text
//! pid ──freeze──▶ Frozen ──Memory, threads, regions──▶ formats::goheap
//! core ─open_core─▶  │
//!                    └──write_core──▶ ELF core for gdb, delve
//! ```
//!
//! The target stands still while the kernel copies its page tables (`clone`), not while
//! its memory is read. Where a copy is too dear (no room in its control group, say), a small
//! target stands still while its memory is taken instead. Afterwards it is as it was:
//! registers, signal masks, timers and interrupted system calls. What cannot be hidden is what
//! `SIGSTOP` and `SIGCONT` show too: a call that the kernel never takes up again
//! (`epoll_wait`, signal(7) has the list) gives `EINTR`.
//!
//! While the copy lives, each page that the target writes is kept twice, on the account
//! of the target's control group: read quickly, then [`Frozen::thaw`]. Where the group runs
//! short, the copy is let go at once (see `budget`), and what was read of it counts for
//! nothing: only [`Frozen::thaw`] and [`Frozen::whole`] prove that it was whole.
//!
//! Not in the copy: mappings under `MADV_DONTFORK`; zero in it: under
//! `MADV_WIPEONFORK`; not frozen: memory that the target shares with other processes.

mod budget;
mod elfcore;
mod error;
mod guard;
mod inject;
mod maps;
mod starter;
mod sys;
pub mod tags;
mod taken;
mod target;
mod words;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memtrace_formats::goheap::{Memory, Region, Registers, Thread, Unreadable};
use memtrace_model::Time;

use crate::proc;
use budget::{Budget, Short};
use guard::{End, Fault, How, Inside, Request};
use sys::RawRegisters;
use taken::Taken;
use target::Target;

pub use elfcore::{open_core, write_core};
pub use error::FreezeError;
pub use starter::prepare;
pub use sys::bound_allocator;

/// Executables and their debug information, at most.
const MAX_EXECUTABLE: u64 = 4 << 30;

/// A copy lives no longer than some times what reading it takes on a machine at rest.
const LIFE_AT_LEAST: Duration = Duration::from_secs(15);
const LIFE_PER_GIB: Duration = Duration::from_secs(30);
/// How often all is tried where a thread may not be stopped.
const TRIES: u32 = 4;
/// How long what a killed guard left is waited for.
const SWEEP: Duration = Duration::from_secs(2);
/// Another copy of the same process is waited for.
const BUSY: Duration = Duration::from_secs(30);

/// How the bytes are made to stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A copy; where there can be none, [`Method::Direct`] if that is quick enough.
    #[default]
    Auto,
    /// A copy made by an injected `clone`: the pause is that of `fork`.
    Clone,
    /// No copy: the target stands still while its memory is taken.
    Direct,
}

/// What may be stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Programs {
    /// What is proved to be a Go program, from its executable.
    #[default]
    Go,
    /// Any program.
    Any,
}

/// How to freeze.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Method`].
    pub method: Method,
    /// See [`Programs`].
    pub programs: Programs,
    /// No thread of the target stands still for longer, from the first that is stopped; what
    /// cannot be done within is not begun, or given up.
    pub max_pause: Duration,
    /// Bytes that memtrace itself may use for the memory that it takes.
    pub max_memory: u64,
    /// Share of the anonymous resident memory that must be free below the limit of the
    /// target's control group, for what the target writes while the copy lives.
    pub headroom: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::Auto,
            programs: Programs::Go,
            max_pause: Duration::from_millis(100),
            max_memory: u64::MAX,
            headroom: 0.1,
        }
    }
}

/// A process that does not change.
///
/// Dropping it ends the copy.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
    start_ticks: u64,
    taken: Time,
    pause: Duration,
    threads: Vec<Thread>,
    raw: Vec<RawRegisters>,
    regions: Vec<Region>,
    absent: Vec<Region>,
    auxv: Vec<u8>,
    name: String,
    command: String,
    executable: Option<PathBuf>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Copy(Copy),
    Taken(Taken),
    Core(elfcore::Core),
}

/// A copy in the hands of a guard.
#[derive(Debug)]
struct Copy {
    pid: u32,
    target: u32,
    memory: Option<File>,
    guard: u32,
    socket: UnixStream,
    /// Told once.
    lost: Mutex<Option<FreezeError>>,
    inside: Inside,
    _place: Place,
}

/// What a copy cost, once it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How long the copy lived; nothing where there was none.
    pub life: Duration,
    /// Bytes that the target wrote meanwhile, which its control group had twice.
    pub written: u64,
}

/// A process has one tracer: who wants another copy, or to look at a process, waits for the
/// few milliseconds that the first takes.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to have a copy of a process: one at a time, so that a target pays for one only.
#[derive(Debug)]
struct Place(u32);

static PLACES: Mutex<Option<HashSet<u32>>> = Mutex::new(None);
static FREED: Condvar = Condvar::new();

impl Place {
    fn of(pid: u32) -> Option<Self> {
        let until = Instant::now() + BUSY;
        let mut taken = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        while !taken.get_or_insert_default().insert(pid) {
            let left = until.checked_duration_since(Instant::now())?;
            let waited = FREED.wait_timeout(taken, left);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Self(pid))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get_or_insert_default().remove(&self.0);
        FREED.notify_all();
    }
}

/// Cleans up after a guard of ours that was killed: its copy dies with it, and waits to be
/// reaped. A thread that was just about to make one makes it when it gets a processor.
fn sweep(inside: Inside) {
    let until = Instant::now() + SWEEP;
    loop {
        let (zombies, living) = guard::leftovers(inside.pid, true);
        if !living && !zombies.is_empty() {
            let nothing = -1;
            let work = move || guard::sweep(inside, &zombies);
            if let Ok(guard) = starter::spawn(nothing, Box::new(work)) {
                sys::reap(guard);
            }
            return;
        }
        if Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Freezes a live process.
///
/// The process is stopped for as long as `fork` takes (tens of milliseconds for a GB),
/// or, where it should not be copied and it is quick, for as long as its memory takes; never
/// for longer than `options` allow.
///
/// # Errors
/// See [`FreezeError`]; the process is then as it was.
pub fn freeze(pid: u32, options: &Options) -> Result<Frozen, FreezeError> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(FreezeError::Unsupported {
            what: "a process is frozen on Linux on amd64 only; read its core file".to_owned(),
        });
    }
    if pid == std::process::id() {
        return Err(FreezeError::Unsupported {
            what: "memtrace cannot freeze itself".to_owned(),
        });
    }
    let mut place = Some(Place::of(pid).ok_or(FreezeError::Busy { pid })?);
    let mut options = options.clone();
    let mut tries = 0;
    loop {
        tries += 1;
        match freeze_once(pid, &options, &mut place) {
            Err(FreezeError::Stuck { .. } | FreezeError::Changing { .. }) if tries < TRIES => {
                std::thread::sleep(Duration::from_millis(20) * tries);
            }
            // It stood still for nothing: once more, but not at once.
            Err(FreezeError::Late { .. }) if tries < 2 => {
                std::thread::sleep(2 * options.max_pause);
            }
            // The machine may be less busy soon.
            Err(FreezeError::WouldPause { reason, .. }) if reason.is_empty() && tries < TRIES => {
                std::thread::sleep(Duration::from_millis(50) * tries);
            }
            // A process that is becoming another program seems to belong to nobody.
            Err(FreezeError::Permission { .. }) if tries < 2 => {
                std::thread::sleep(Duration::from_millis(20));
            }
            // It cannot be copied: the other way, where there is one.
            Err(FreezeError::WouldPause { reason, .. })
                if options.method == Method::Auto && !reason.is_empty() =>
            {
                options.method = Method::Direct;
            }
            done => return done,
        }
    }
}

fn freeze_once(
    pid: u32,
    options: &Options,
    place: &mut Option<Place>,
) -> Result<Frozen, FreezeError> {
    let _turn = turn();
    let target = Target::look(pid)?;
    let mut regions = target.regions()?;
    if options.programs == Programs::Go {
        target.is_go()?;
    }
    if options.method != Method::Direct {
        target.may_be_ended()?;
    }
    let (left, busy) = guard::leftovers(pid, false);
    if busy {
        return Err(FreezeError::Busy { pid });
    }
    let refused = match options.method {
        Method::Direct => None,
        Method::Auto | Method::Clone => target.refusal(options),
    };
    let take = match (options.method, &refused) {
        (Method::Direct, _) => true,
        (Method::Auto, Some(_)) => target.take_takes() <= options.max_pause,
        _ => false,
    };
    let gadgets = maps::gadgets(pid, &regions);
    let buffer = match (take, gadgets) {
        (true, _) => Some(target.room(options)?),
        (false, None) => {
            return Err(target.would_pause("no code in it through which to make a copy", options));
        }
        (false, Some(_)) => None,
    };
    if let (Some(refused), None) = (refused, &buffer) {
        return Err(refused);
    }
    let how = match (&buffer, gadgets) {
        (Some(buffer), _) => How::Take(buffer.clone()),
        (None, Some(gadgets)) => How::Copy(gadgets),
        (None, None) => return Err(target.explain(Fault::Other(0), options)),
    };
    // Before the target stands still: what it maps then, and later, can be read through it.
    let own_memory = File::open(format!("/proc/{pid}/mem")).ok();
    target.settle()?;
    let request = Request {
        pid,
        status: target.status.clone(),
        max_pause: options.max_pause,
        clone_takes: target.clone_takes(),
        how,
        inside: Inside {
            pid,
            start_ticks: target.process.start_ticks(),
            programs: options.programs,
            executable: guard::executable(pid),
            gadgets,
        },
        life: LIFE_AT_LEAST + per_gib(LIFE_PER_GIB, target.anonymous),
        left,
    };
    let (mut ours, mut theirs) =
        UnixStream::pair().map_err(|e| io_error(pid, "make a socket", &e))?;
    let inside = request.inside;
    let keep = theirs.as_raw_fd();
    let guard = starter::spawn(keep, Box::new(move || guard::run(&request, &mut theirs)))
        .map_err(|e| io_error(pid, "start a process", &e))?;
    let heard = words::hear_report(&mut ours);
    let report = match heard {
        Some(Ok(report)) => report,
        failed => {
            drop(ours);
            let ended = sys::reap(guard);
            return Err(match failed.and_then(Result::err) {
                Some(fault) => target.explain(fault, options),
                // It was held up by an execve, and had done nothing yet.
                None if ended.is_some_and(|e| e.signal() == Some(libc::SIGALRM)) => {
                    FreezeError::Changing { pid }
                }
                None => {
                    sweep(inside);
                    FreezeError::GuardLost { pid }
                }
            });
        }
    };
    let mut absent = Vec::new();
    let source = match (report.taken, buffer) {
        (Some(taken), Some(buffer)) => {
            sys::reap(guard);
            regions = maps::parse(&taken.maps);
            Source::Taken(Taken::new(&taken, buffer, own_memory))
        }
        _ => {
            let copy = Copy {
                pid: report.memory,
                target: pid,
                memory: File::open(format!("/proc/{}/mem", report.memory)).ok(),
                guard,
                socket: ours,
                lost: Mutex::default(),
                inside,
                _place: match place.take() {
                    Some(place) => place,
                    None => return Err(FreezeError::Busy { pid }),
                },
            };
            if let Ok(text) = read_text(report.memory, "maps", maps::MAX_MAPS) {
                let copied = maps::parse(&text);
                let before = std::mem::replace(&mut regions, copied);
                absent = missing(&before, &regions, &target.regions().unwrap_or_default());
            }
            Source::Copy(copy)
        }
    };
    Ok(Frozen {
        pid,
        start_ticks: target.process.start_ticks(),
        taken: crate::now(),
        pause: report.pause,
        threads: report.threads.iter().map(thread).collect(),
        raw: report.threads.iter().map(|t| t.1).collect(),
        regions,
        absent,
        auxv: proc::read_bytes(Path::new(&format!("/proc/{pid}/auxv")), 64 << 10)
            .unwrap_or_default(),
        name: target.process.name().to_owned(),
        command: target.process.command().to_owned(),
        // The copy's: it lives as long as this does.
        executable: Some(PathBuf::from(format!("/proc/{}/exe", report.memory))),
        source,
    })
}

fn per_gib(time: Duration, bytes: u64) -> Duration {
    time.mul_f64(bytes as f64 / (1_u64 << 30) as f64)
}

impl Frozen {
    /// The process, by its number when it was frozen.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in ticks after the boot; with the pid, the process's identity.
    /// 0 for a core.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// The moment of the copy; of a core, when its file was last written.
    #[must_use]
    pub fn taken(&self) -> Time {
        self.taken
    }

    /// How long the threads stood still: from the first that was stopped to the last let
    /// go.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Whether it is a copy of the process; else its memory was taken while it stood still.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        matches!(self.source, Source::Copy(_))
    }

    /// The threads, with their registers at that moment.
    #[must_use]
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// The mappings, ascending.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Mappings of the target that its copy lacks (`MADV_DONTFORK`).
    #[must_use]
    pub fn absent(&self) -> &[Region] {
        &self.absent
    }

    /// Path at which the executable can be read, also that of a container, or one that
    /// was removed meanwhile; `None` for a core whose program is not at hand.
    #[must_use]
    pub fn executable_path(&self) -> Option<&Path> {
        self.executable.as_deref()
    }

    /// The executable.
    ///
    /// # Errors
    /// It is not at hand, or larger than 4 GiB.
    pub fn executable(&self) -> io::Result<Vec<u8>> {
        let path = self.executable.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_EXECUTABLE + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_EXECUTABLE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    /// Proves that all that was read so far is of the copy's one moment.
    ///
    /// # Errors
    /// [`FreezeError::CopyLost`] and [`FreezeError::GuardLost`]: what was read is of no
    /// meaning.
    pub fn whole(&self) -> Result<(), FreezeError> {
        match &self.source {
            Source::Copy(copy) => copy.end_so_far().map(|_| ()),
            Source::Taken(taken) => taken.whole(self.pid),
            Source::Core(_) => Ok(()),
        }
    }

    /// Ends the copy, and proves that all that was read is of its one moment. Returns when the
    /// guard is done.
    ///
    /// # Errors
    /// As [`Frozen::whole`].
    pub fn thaw(self) -> Result<Spent, FreezeError> {
        match &self.source {
            Source::Copy(copy) => {
                let ended = copy.end();
                drop(self);
                ended
            }
            _ => self.whole().map(|()| Spent::default()),
        }
    }
}

/// Now, by the clock that Go's runtime and the kernel's events use (`CLOCK_MONOTONIC`), in
/// nanoseconds.
#[must_use]
pub fn monotonic() -> Option<u64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).ok()?;
    let within = u64::try_from(now.tv_nsec).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(within)
}

/// Bytes of memory that this process may still take before its control group or the machine
/// runs out of it.
#[must_use]
pub fn free_memory() -> u64 {
    let pid = std::process::id();
    let status = read_text(pid, "status", 64 << 10).unwrap_or_default();
    Budget::of(pid, &status).free_memory().unwrap_or(u64::MAX)
}

/// The memory of a process that goes on: for what its runtime never takes back, and
/// without a pause. What is read piece by piece need not be of one moment.
#[derive(Debug)]
pub struct Running {
    regions: Vec<Region>,
    memory: File,
}

/// Opens the memory of a live process, which is not stopped.
///
/// # Errors
/// See [`FreezeError`]: the same rights are needed.
pub fn running(pid: u32) -> Result<Running, FreezeError> {
    let _turn = turn();
    let target = Target::look(pid)?;
    let regions = target.regions()?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => target.permission(libc::EPERM),
        _ => io_error(pid, "open its memory", &error),
    })?;
    Ok(Running { regions, memory })
}

impl Running {
    /// The mappings when it was opened, ascending.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl Memory for Running {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let read = self.memory.read_exact_at(into, address);
        read.map_err(|_| Unreadable { address })
    }
}

impl Memory for Frozen {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        match &self.source {
            Source::Copy(copy) => copy.read(address, into),
            Source::Taken(taken) => taken.read(address, into),
            Source::Core(core) => core.read(address, into),
        }
    }
}

impl Copy {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address };
        if into.is_empty() {
            return Ok(());
        }
        match sys::read_memory(self.pid, address, into) {
            Ok(got) if got == into.len() => Ok(()),
            // Also where the call does not exist, and for mappings without access.
            _ => {
                let file = self.memory.as_ref().ok_or(unreadable)?;
                let read = file.read_exact_at(into, address);
                read.map_err(|_| unreadable)
            }
        }
    }

    fn end_so_far(&self) -> Result<Spent, FreezeError> {
        // Where nobody hears it, the answer tells.
        let _ = (&self.socket).write_all(&[guard::ASK]);
        self.hear()
    }

    fn end(&self) -> Result<Spent, FreezeError> {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        self.hear()
    }

    fn hear(&self) -> Result<Spent, FreezeError> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = &*lost {
            return Err(lost.clone());
        }
        let ended = self.hear_now();
        *lost = ended.as_ref().err().cloned();
        ended
    }

    fn hear_now(&self) -> Result<Spent, FreezeError> {
        let pid = self.target;
        let lost = |why, short| Err(FreezeError::CopyLost { pid, why, short });
        match words::hear_end(&self.socket) {
            Some(End::Whole { life, written }) => Ok(Spent { life, written }),
            Some(End::Killed) => lost("was killed".to_owned(), false),
            Some(End::Gone) => Err(FreezeError::Gone { pid }),
            Some(End::Short(Short::Memory { group, free, .. })) => {
                let place = if group {
                    "below the memory limit of its control group"
                } else {
                    "on this machine"
                };
                let free = free >> 20;
                lost(
                    format!("was let go, since {free} MiB were left {place}"),
                    true,
                )
            }
            Some(End::Short(Short::Pids { free, .. })) => lost(
                format!(
                    "was let go, since only {free} more processes and threads could be started"
                ),
                true,
            ),
            Some(End::Late(life)) => lost(
                format!(
                    "was let go after {} s: memtrace got too little of the processors to read it",
                    life.as_secs()
                ),
                false,
            ),
            None => Err(FreezeError::GuardLost { pid }),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if !sys::reap(self.guard).is_some_and(|ended| ended.success()) {
            sweep(self.inside);
        }
    }
}

/// Writable mappings from before the copy that the target still has and the copy lacks.
fn missing(before: &[Region], copied: &[Region], after: &[Region]) -> Vec<Region> {
    let overlaps = |all: &[Region], region: &Region| {
        let from = all.partition_point(|r| r.end <= region.start);
        all.get(from).is_some_and(|r| r.start < region.end)
    };
    let lost = |r: &&Region| r.rwx[1] && !overlaps(copied, r) && overlaps(after, r);
    before.iter().filter(lost).cloned().collect()
}

fn thread((tid, raw): &(u32, RawRegisters)) -> Thread {
    use inject::{
        FS_BASE, R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RIP, RSI, RSP,
    };
    let order = [
        RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15,
    ];
    Thread {
        tid: *tid,
        registers: Registers {
            pc: raw[RIP],
            sp: raw[RSP],
            frame: raw[RBP],
            goroutine: raw[R14],
            tls: raw[FS_BASE],
            general: order.iter().map(|place| raw[*place]).collect(),
        },
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn number(status: &str, name: &str) -> Option<u64> {
    field(status, name)?.parse().ok()
}

fn read_text(pid: u32, file: &str, limit: u64) -> io::Result<String> {
    let bytes = proc::read_bytes(Path::new(&format!("/proc/{pid}/{file}")), limit)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn io_error(pid: u32, what: &'static str, error: &io::Error) -> FreezeError {
    FreezeError::Io {
        pid,
        what,
        reason: error.to_string(),
    }
}
