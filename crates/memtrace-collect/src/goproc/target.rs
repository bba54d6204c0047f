//! What must be known of a process before it is touched: whether it may be stopped at all,
//! and what that would cost it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memtrace_formats::goexe;
use memtrace_formats::goheap::Region;

use super::budget::{self, Budget, Short};
use super::guard::{self, Fault};
use super::maps;
use super::sys::Shared;
use super::{FreezeError, Options, field, io_error, number, per_gib, read_text};
use crate::proc;

/// How long the copying of page tables takes for each GiB (measured: 17 to 25 ms), and the
/// injected calls beside it.
const CLONE_PER_GIB: Duration = Duration::from_millis(25);
const CLONE_AT_LEAST: Duration = Duration::from_millis(5);
/// How long the memory itself takes (measured: 2 to 4 GiB a second).
const TAKE_PER_GIB: Duration = Duration::from_millis(700);
/// The same where it is swapped out: a tenth of a millisecond for each page.
const TAKE_SWAPPED_PER_GIB: Duration = Duration::from_secs(26);
/// A thread that waits for a disk or a child is waited for outside of any pause.
const SETTLE: Duration = Duration::from_secs(1);

/// What must be known of a target before it is touched.
pub(super) struct Target {
    pub(super) pid: u32,
    pub(super) process: proc::Process,
    pub(super) status: String,
    /// Anonymous memory, resident or swapped out, bytes.
    pub(super) anonymous: u64,
    /// Of this, what is swapped out.
    swapped: u64,
}

impl Target {
    pub(super) fn look(pid: u32) -> Result<Self, FreezeError> {
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
        let resident = proc::kib_field(&status, "RssAnon");
        let resident = resident.or_else(|| proc::kib_field(&status, "VmRSS"));
        let swapped = proc::kib_field(&status, "VmSwap").unwrap_or(0);
        let target = Self {
            anonymous: resident.unwrap_or(0) + swapped,
            swapped,
            pid,
            process,
            status,
        };
        match number(&target.status, "TracerPid") {
            Some(tracer @ 1..) => Err(traced(pid, tracer)),
            _ => Ok(target),
        }
    }

    pub(super) fn regions(&self) -> Result<Vec<Region>, FreezeError> {
        let mut text = read_text(self.pid, "maps", maps::MAX_MAPS);
        // A process that becomes another program has none for a moment.
        let until = Instant::now() + SETTLE;
        while text.as_ref().is_ok_and(String::is_empty)
            && std::fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok()
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(5));
            text = read_text(self.pid, "maps", maps::MAX_MAPS);
        }
        match text {
            Ok(text) if !text.is_empty() => Ok(maps::parse(&text)),
            Ok(_) => Err(FreezeError::Unsupported {
                what: format!(
                    "process {} has no memory: it is a thread of the kernel, or is ending",
                    self.pid
                ),
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(self.permission(libc::EPERM))
            }
            Err(error) => Err(io_error(self.pid, "read its mappings", &error)),
        }
    }

    /// Why there should be no copy of it.
    pub(super) fn refusal(&self, options: &Options) -> Option<FreezeError> {
        if number(&self.status, "Seccomp") == Some(1) {
            return Some(self.would_pause(
                "it may make no system calls: seccomp's strict mode",
                options,
            ));
        }
        if field(&self.status, "x86_Thread_features").is_some_and(|f| f.contains("shstk")) {
            return Some(self.would_pause("it runs on a shadow stack", options));
        }
        let budget = Budget::of(self.pid, &self.status);
        if let Some(short) = budget.lacks(self.anonymous, options.headroom) {
            return Some(self.lacks(short));
        }
        let takes = self.clone_takes();
        (takes > options.max_pause).then(|| FreezeError::WouldPause {
            pid: self.pid,
            reason: String::new(),
            mib: self.anonymous >> 20,
            estimate: takes,
            limit: options.max_pause,
        })
    }

    /// That memtrace may end what runs under its user: tracing alone does not give that right.
    pub(super) fn may_be_ended(&self) -> Result<(), FreezeError> {
        use rustix::process::{Pid, test_kill_process};
        let pid = self.pid;
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        match number.map(test_kill_process) {
            Some(Err(rustix::io::Errno::PERM)) => Err(FreezeError::Permission {
                pid,
                missing: "memtrace could not end a copy of it; give it CAP_KILL, too \
                          (setcap cap_sys_ptrace,cap_kill+ep)"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn lacks(&self, short: Short) -> FreezeError {
        let (pid, estimate) = (self.pid, self.take_takes());
        match short {
            Short::Memory {
                group,
                free,
                needed,
            } => FreezeError::WouldExceedLimit {
                pid,
                group,
                free_mib: free >> 20,
                needed_mib: needed >> 20,
                estimate,
            },
            Short::Pids { free, needed } => FreezeError::WouldExceedPids {
                pid,
                free,
                needed,
                estimate,
            },
        }
    }

    /// How long it stands still while it is copied: by one of its own threads, which has to
    /// share the processors with others.
    pub(super) fn clone_takes(&self) -> Duration {
        (CLONE_AT_LEAST + per_gib(CLONE_PER_GIB, self.anonymous)).mul_f64(budget::crowding())
    }

    /// How long it stands still while its memory is taken.
    pub(super) fn take_takes(&self) -> Duration {
        let swapped = per_gib(TAKE_SWAPPED_PER_GIB, self.swapped);
        CLONE_AT_LEAST + per_gib(TAKE_PER_GIB, self.anonymous) + swapped
    }

    pub(super) fn would_pause(&self, reason: &str, options: &Options) -> FreezeError {
        FreezeError::WouldPause {
            pid: self.pid,
            reason: reason.to_owned(),
            mib: self.anonymous >> 20,
            estimate: self.take_takes(),
            limit: options.max_pause,
        }
    }

    /// Memory of our own for that of the target.
    pub(super) fn room(&self, options: &Options) -> Result<Arc<Shared>, FreezeError> {
        let pid = self.pid;
        let estimate = self.take_takes();
        if estimate > options.max_pause {
            return Err(self.would_pause("", options));
        }
        // More may be there by then, and what is private of its files.
        let needed = self.anonymous + self.anonymous / 4 + (16 << 20);
        let free = super::free_memory().min(options.max_memory);
        if free < needed {
            return Err(FreezeError::TooLarge {
                pid,
                needed_mib: needed >> 20,
                free_mib: free >> 20,
            });
        }
        let length = usize::try_from(needed).unwrap_or(usize::MAX);
        let buffer = Shared::new(length).map_err(|e| io_error(pid, "reserve memory", &e))?;
        // The target does not wait for it then.
        buffer.prepare(usize::try_from(self.anonymous).unwrap_or(usize::MAX));
        Ok(Arc::new(buffer))
    }

    /// Waits until no thread waits in the kernel for a disk or a child: it would not stop, and
    /// all others would stand still for nothing.
    pub(super) fn settle(&self) -> Result<(), FreezeError> {
        let pid = self.pid;
        let until = Instant::now() + SETTLE;
        let mut waiting = guard::threads(pid).ok_or(FreezeError::Gone { pid })?;
        loop {
            waiting.retain(|tid| guard::state(pid, *tid) == Some('D'));
            let Some(tid) = waiting.first().copied() else {
                return Ok(());
            };
            if Instant::now() >= until {
                return Err(FreezeError::Stuck { pid, tid });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Proves that it is a Go program, without touching it.
    pub(super) fn is_go(&self) -> Result<(), FreezeError> {
        let pid = self.pid;
        let path = format!("/proc/{pid}/exe");
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => self.permission(libc::EPERM),
            io::ErrorKind::NotFound => FreezeError::Changing { pid },
            _ => io_error(pid, "open its executable", &error),
        })?;
        match look(file) {
            Ok(()) => Ok(()),
            Err(what) => Err(FreezeError::Foreign { pid, what }),
        }
    }

    pub(super) fn explain(&self, fault: Fault, options: &Options) -> FreezeError {
        let pid = self.pid;
        let system = |number: i32| match number {
            0 => "no thread of it can be used".to_owned(),
            number => io::Error::from_raw_os_error(number).to_string(),
        };
        let late = |what: String| FreezeError::Late {
            pid,
            what,
            limit: options.max_pause,
        };
        match fault {
            Fault::Gone => FreezeError::Gone { pid },
            Fault::Stuck(tid) => FreezeError::Stuck { pid, tid },
            Fault::Late(0) => late("it could not be copied".to_owned()),
            Fault::Late(tid) => late(format!("its thread {tid} did not stop")),
            Fault::Large(bytes) => late(format!(
                "no more than {} MiB of its memory could be taken",
                bytes >> 20
            )),
            Fault::Seize(number @ (libc::EPERM | libc::EACCES)) => self.permission(number),
            Fault::Clone(number) => self.would_pause(&system(number), options),
            Fault::Seize(number) | Fault::Other(number) => FreezeError::Io {
                pid,
                what: "stop it",
                reason: system(number),
            },
        }
    }

    /// What is missing to trace it.
    pub(super) fn permission(&self, errno: i32) -> FreezeError {
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
            return traced(pid, tracer);
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
                 user, or give it CAP_SYS_PTRACE and CAP_KILL (setcap cap_sys_ptrace,cap_kill+ep; in a \
                 container --cap-add SYS_PTRACE)",
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

/// Whether a process is a Go program that can be read.
pub(super) fn is_go(pid: u32) -> bool {
    File::open(format!("/proc/{pid}/exe")).is_ok_and(|file| look(file).is_ok())
}

/// Whether an executable is that of a Go program that can be read; else what it is.
fn look(executable: File) -> Result<(), String> {
    let program = goexe::look(io::BufReader::new(executable)).map_err(|e| e.to_string())?;
    match program.architecture {
        goexe::Architecture::Amd64 => Ok(()),
        other => Err(format!("a Go program for another machine ({other:?})")),
    }
}

fn traced(pid: u32, tracer: u64) -> FreezeError {
    let tracer = u32::try_from(tracer).unwrap_or(0);
    let name = read_text(tracer, "comm", 64).unwrap_or_default();
    FreezeError::Traced {
        pid,
        tracer,
        tracer_name: name.trim_end().to_owned(),
    }
}
