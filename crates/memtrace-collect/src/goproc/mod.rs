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
//! its memory is read. Afterwards it is as it was: registers, signal masks, timers and
//! interrupted system calls. What cannot be hidden is what `SIGSTOP` and `SIGCONT` show
//! too: a call that the kernel never takes up again (`epoll_wait`, signal(7) has the
//! list) gives `EINTR`.
//!
//! While the copy lives, each page that the target writes is kept twice, on the account
//! of the target's control group: read quickly, then [`Frozen::thaw`].
//!
//! Not in the copy: mappings under `MADV_DONTFORK`; zero in it: under
//! `MADV_WIPEONFORK`; not frozen: memory that the target shares with other processes.

mod elfcore;
mod guard;
mod inject;
mod maps;
mod sys;
pub mod tags;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memtrace_formats::goheap::{Memory, Region, Registers, Thread, Unreadable};
use memtrace_model::Time;

use crate::proc;
use guard::{Fault, Request};
use sys::RawRegisters;

pub use elfcore::{open_core, write_core};

/// Executables and their debug information, at most.
const MAX_EXECUTABLE: u64 = 4 << 30;

/// How the bytes are made to stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A copy; where there can be none, [`Method::Direct`] if the process is small.
    #[default]
    Auto,
    /// A copy made by an injected `clone`: the pause is that of `fork`.
    Clone,
    /// No copy: the target stands still until the thaw.
    Direct,
}

/// How to freeze.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`Method`].
    pub method: Method,
    /// All threads must stop within this time, or they are let go.
    pub stop_within: Duration,
    /// A target without copy is held at most this long; what is read later fails.
    pub hold: Duration,
    /// [`Method::Auto`] holds a target itself only up to this many bytes of anonymous
    /// resident memory; `u64::MAX` where the user agrees to the pause.
    pub direct_limit: u64,
    /// Share of the anonymous resident memory that must be free below the limit of the
    /// target's control group, for what the target writes while the copy lives.
    pub headroom: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::Auto,
            stop_within: Duration::from_millis(500),
            hold: Duration::from_secs(10),
            direct_limit: 64 << 20,
            headroom: 0.1,
        }
    }
}

/// Why a process could not be frozen, or a core not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// The user named a process that does not exist.
    #[error("no process with pid {pid}")]
    NoSuchProcess {
        /// The pid.
        pid: u32,
    },
    /// It ended.
    #[error("process {pid} ended")]
    Gone {
        /// The pid.
        pid: u32,
    },
    /// The user lacks a right.
    #[error("process {pid} may not be traced: {missing}")]
    Permission {
        /// The pid.
        pid: u32,
        /// What is missing, and how to get it.
        missing: String,
    },
    /// Another tracer has it.
    #[error("process {pid} is traced by process {tracer}: only one debugger at a time")]
    Traced {
        /// The pid.
        pid: u32,
        /// Pid of the tracer.
        tracer: u32,
    },
    /// A thread did not stop in time (it waits for a disk, say). All were let go.
    #[error("process {pid}: thread {tid} did not stop within {limit:?}; try again")]
    Slow {
        /// The pid.
        pid: u32,
        /// The thread.
        tid: u32,
        /// [`Options::stop_within`].
        limit: Duration,
    },
    /// There can be no copy, and holding the process for the whole reading was not
    /// agreed to.
    #[error(
        "process {pid} cannot be copied ({reason}); reading {mib} MiB with the process held \
         takes about {seconds} s"
    )]
    WouldPause {
        /// The pid.
        pid: u32,
        /// Why there is no copy.
        reason: String,
        /// Anonymous resident memory.
        mib: u64,
        /// At 1 GiB a second.
        seconds: u64,
    },
    /// The copy could bring the target over the limit of its control group.
    #[error(
        "process {pid}: {free_mib} MiB are free below the memory limit of its control group, \
         a copy needs {needed_mib} MiB"
    )]
    WouldExceedLimit {
        /// The pid.
        pid: u32,
        /// Bytes below the limit.
        free_mib: u64,
        /// Bytes that the copy may cost.
        needed_mib: u64,
    },
    /// This system or program is of another kind.
    #[error("{what}")]
    Unsupported {
        /// What is not supported.
        what: String,
    },
    /// The file is no core of a 64-bit Linux program, or a damaged one.
    #[error("{path}: {what}")]
    Core {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The system did not do it.
    #[error("process {pid}: {what}: {reason}")]
    Io {
        /// The pid.
        pid: u32,
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: String,
    },
}

/// A process that does not change.
///
/// Dropping it ends the copy, or lets the target go where that is held.
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
    Live(Live),
    Core(elfcore::Core),
}

/// A copy, or the target itself, in the hands of a guard.
#[derive(Debug)]
struct Live {
    /// Whose memory is read.
    pid: u32,
    /// Of the target itself, up to this moment.
    held: Option<Held>,
    memory: Option<File>,
    guard: u32,
    socket: UnixStream,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: Instant,
    until: Instant,
}

/// A process has one tracer: who wants another copy, or to look at a process, waits for the
/// few milliseconds that the first takes.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Freezes a live process.
///
/// The process is stopped for as long as `fork` takes (tens of milliseconds for a GB),
/// or, where it cannot be copied and `options` allow it, until the thaw.
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
    let _turn = turn();
    let target = Target::look(pid)?;
    let mut regions = target.regions()?;
    let refused = match options.method {
        Method::Direct => Some(FreezeError::Unsupported {
            what: String::new(),
        }),
        _ => target.refusal(options),
    };
    let gadgets = match refused {
        Some(_) => None,
        None => maps::gadgets(pid, &regions),
    };
    let hold = match options.method {
        Method::Direct => true,
        Method::Auto => target.anonymous <= options.direct_limit,
        Method::Clone => false,
    };
    if gadgets.is_none() && !hold {
        return Err(refused
            .unwrap_or_else(|| target.would_pause("no code in it through which to make a copy")));
    }
    let request = Request {
        pid,
        stop_within: options.stop_within,
        gadgets,
        hold: hold.then_some(options.hold),
        orphan: target.has_init_of_the_host(),
        filtered: target.filtered,
    };
    let (mut ours, mut theirs) =
        UnixStream::pair().map_err(|e| io_error(pid, "make a socket", &e))?;
    // The guard's clock begins later: what is read before ours ends is of one moment.
    let until = Instant::now() + options.hold;
    let guard = sys::spawn(theirs.as_raw_fd(), || guard::run(&request, &mut theirs))
        .map_err(|e| io_error(pid, "start a process", &e))?;
    drop(theirs);
    let heard = guard::receive(&mut ours);
    let report = match heard {
        Some(Ok(report)) => report,
        failed => {
            drop(ours);
            sys::reap(guard);
            let fault = failed.and_then(Result::err).unwrap_or(Fault::Other(0));
            return Err(target.explain(fault, options));
        }
    };
    let now = Instant::now();
    let live = Live {
        pid: report.memory,
        held: report.held.then(|| Held {
            since: now,
            until: until.max(now),
        }),
        memory: File::open(format!("/proc/{}/mem", report.memory)).ok(),
        guard,
        socket: ours,
    };
    let mut absent = Vec::new();
    if !report.held
        && let Ok(text) = read_text(report.memory, "maps", maps::MAX_MAPS)
    {
        let copied = maps::parse(&text);
        let before = std::mem::replace(&mut regions, copied);
        absent = missing(&before, &regions, &target.regions().unwrap_or_default());
    }
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
        source: Source::Live(live),
    })
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
    /// go. While the target itself is held: until now.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match &self.source {
            Source::Live(Live {
                held: Some(held), ..
            }) => held.since.elapsed().min(held.until - held.since),
            _ => self.pause,
        }
    }

    /// The target itself is held: it stands still until the thaw.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(&self.source, Source::Live(live) if live.held.is_some())
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

    /// Ends the copy, or lets the target go. Returns when the guard is done.
    pub fn thaw(self) {
        drop(self);
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
            Source::Live(live) => live.read(address, into),
            Source::Core(core) => core.read(address, into),
        }
    }
}

impl Live {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address };
        if into.is_empty() {
            return Ok(());
        }
        let done = match sys::read_memory(self.pid, address, into) {
            Ok(got) if got == into.len() => true,
            // Also where the call does not exist, and for mappings without access.
            _ => {
                let file = self.memory.as_ref().ok_or(unreadable)?;
                file.read_exact_at(into, address).is_ok()
            }
        };
        // What was read after the target went on is of no moment.
        let still = self.held.is_none_or(|held| Instant::now() < held.until);
        (done && still).then_some(()).ok_or(unreadable)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.socket.write_all(&[0]);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        sys::reap(self.guard);
    }
}

/// What must be known of a target before it is touched.
struct Target {
    pid: u32,
    process: proc::Process,
    status: String,
    /// Resident anonymous memory, bytes.
    anonymous: u64,
    /// System calls go through a filter (seccomp).
    filtered: bool,
}

impl Target {
    fn look(pid: u32) -> Result<Self, FreezeError> {
        let process = proc::Process::open(pid).map_err(|error| match error {
            proc::ProcError::NoSuchProcess { .. } => FreezeError::NoSuchProcess { pid },
            proc::ProcError::Gone { .. } => FreezeError::Gone { pid },
            proc::ProcError::Permission { .. } => FreezeError::Permission {
                pid,
                missing: "not even its state may be read; run memtrace as root".to_owned(),
            },
            proc::ProcError::Io { file, reason, .. } => FreezeError::Io {
                pid,
                what: file,
                reason,
            },
        })?;
        let status =
            read_text(pid, "status", 64 << 10).map_err(|e| io_error(pid, "read its status", &e))?;
        let target = Self {
            anonymous: proc::kib_field(&status, "RssAnon")
                .or_else(|| proc::kib_field(&status, "VmRSS"))
                .unwrap_or_default(),
            filtered: number(&status, "Seccomp").is_some_and(|mode| mode != 0),
            pid,
            process,
            status,
        };
        match number(&target.status, "TracerPid") {
            Some(tracer @ 1..) => Err(FreezeError::Traced {
                pid,
                tracer: u32::try_from(tracer).unwrap_or(0),
            }),
            _ => Ok(target),
        }
    }

    fn regions(&self) -> Result<Vec<Region>, FreezeError> {
        match read_text(self.pid, "maps", maps::MAX_MAPS) {
            Ok(text) if !text.is_empty() => Ok(maps::parse(&text)),
            Ok(_) => Err(FreezeError::Unsupported {
                what: format!("process {} has no memory: a thread of the kernel", self.pid),
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(self.permission(libc::EPERM))
            }
            Err(error) => Err(io_error(self.pid, "read its mappings", &error)),
        }
    }

    /// Why there should be no copy of it.
    fn refusal(&self, options: &Options) -> Option<FreezeError> {
        if number(&self.status, "Seccomp") == Some(1) {
            return Some(self.would_pause("it may make no system calls: seccomp's strict mode"));
        }
        if field(&self.status, "x86_Thread_features").is_some_and(|f| f.contains("shstk")) {
            return Some(self.would_pause("it runs on a shadow stack"));
        }
        // Page tables: 8 bytes for each page of 4 KiB. What the target writes meanwhile
        // is twice there.
        let share = (self.anonymous as f64 * options.headroom.clamp(0.0, 1.0)) as u64;
        let needed = self.anonymous / 512 + share + (8 << 20);
        let (usage, limit) = proc::group_memory(self.pid);
        let free = limit?.saturating_sub(usage?);
        (free < needed).then_some(FreezeError::WouldExceedLimit {
            pid: self.pid,
            free_mib: free >> 20,
            needed_mib: needed >> 20,
        })
    }

    fn would_pause(&self, reason: &str) -> FreezeError {
        FreezeError::WouldPause {
            pid: self.pid,
            reason: reason.to_owned(),
            mib: self.anonymous >> 20,
            seconds: 1 + (self.anonymous >> 30),
        }
    }

    /// An orphan of the target goes to the init of the machine, not to one of a
    /// container, which may be the target, or may not reap.
    fn has_init_of_the_host(&self) -> bool {
        const INITIAL: &str = "pid:[4026531836]";
        std::fs::read_link(format!("/proc/{}/ns/pid", self.pid))
            .is_ok_and(|link| link.as_os_str() == INITIAL)
    }

    fn explain(&self, fault: Fault, options: &Options) -> FreezeError {
        let pid = self.pid;
        let system = |number: i32| match number {
            0 => "no thread of it can be used".to_owned(),
            number => io::Error::from_raw_os_error(number).to_string(),
        };
        match fault {
            Fault::Gone => FreezeError::Gone { pid },
            Fault::Slow(tid) => FreezeError::Slow {
                pid,
                tid,
                limit: options.stop_within,
            },
            Fault::Seize(number @ (libc::EPERM | libc::EACCES)) => self.permission(number),
            Fault::Clone(number) => self.would_pause(&system(number)),
            Fault::Seize(number) | Fault::Other(number) => FreezeError::Io {
                pid,
                what: "stop it",
                reason: system(number),
            },
        }
    }

    /// What is missing to trace it.
    fn permission(&self, errno: i32) -> FreezeError {
        const CAP_SYS_PTRACE: u64 = 1 << 19;
        let pid = self.pid;
        let own = read_text(std::process::id(), "status", 64 << 10).unwrap_or_default();
        let capabilities = field(&own, "CapEff").and_then(|v| u64::from_str_radix(v, 16).ok());
        let capable = capabilities.is_some_and(|set| set & CAP_SYS_PTRACE != 0);
        let user = |status: &str| {
            let users = field(status, "Uid")?;
            users.split_ascii_whitespace().next()?.parse::<u32>().ok()
        };
        let (ours, theirs) = (user(&own), user(&self.status));
        // Another tracer was quicker.
        let now = read_text(pid, "status", 64 << 10).unwrap_or_default();
        if let Some(tracer @ 1..) = number(&now, "TracerPid") {
            let tracer = u32::try_from(tracer).unwrap_or(0);
            return FreezeError::Traced { pid, tracer };
        }
        let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .unwrap_or(0);
        let missing = if yama == 3 {
            "the system forbids tracing until it is booted again \
             (kernel.yama.ptrace_scope is 3); read a core file instead"
                .to_owned()
        } else if capable {
            format!(
                "the system says {} although memtrace has CAP_SYS_PTRACE: it is in another user \
                 namespace, or a security module forbids it",
                io::Error::from_raw_os_error(errno)
            )
        } else if ours != theirs {
            format!(
                "it belongs to user {}, memtrace runs as user {}: run memtrace as root or as that \
                 user, or give it CAP_SYS_PTRACE (setcap cap_sys_ptrace+ep; in a container \
                 --cap-add SYS_PTRACE)",
                theirs.map_or("?".to_owned(), |u| u.to_string()),
                ours.map_or("?".to_owned(), |u| u.to_string()),
            )
        } else if yama > 0 {
            format!(
                "kernel.yama.ptrace_scope is {yama}: memtrace needs CAP_SYS_PTRACE \
                 (run it as root, or setcap cap_sys_ptrace+ep; in a container \
                 --cap-add SYS_PTRACE)"
            )
        } else {
            "it has more rights than memtrace, or does not let itself be dumped \
             (prctl PR_SET_DUMPABLE): memtrace needs CAP_SYS_PTRACE"
                .to_owned()
        };
        FreezeError::Permission { pid, missing }
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
