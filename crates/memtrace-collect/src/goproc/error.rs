//! Why a process could not be frozen: what to tell who asked.

use std::path::PathBuf;
use std::time::Duration;

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
    #[error(
        "process {pid} is traced by {tracer_name} (pid {tracer}): a process has one tracer at a \
         time; end that one first"
    )]
    Traced {
        /// The pid.
        pid: u32,
        /// Pid of the tracer.
        tracer: u32,
        /// Its name.
        tracer_name: String,
    },
    /// A copy of it is being read by another memtrace.
    #[error("process {pid}: another memtrace is reading a copy of it; try again")]
    Busy {
        /// The pid.
        pid: u32,
    },
    /// It is becoming another program.
    #[error("process {pid} is ending, or becoming another program (execve); try again")]
    Changing {
        /// The pid.
        pid: u32,
    },
    /// It was not proved to be a program that memtrace can read; it was not stopped.
    #[error("process {pid} is {what}; it was not stopped")]
    Foreign {
        /// The pid.
        pid: u32,
        /// What it is.
        what: String,
    },
    /// A thread waits in the kernel and cannot be stopped. All were let go.
    #[error(
        "process {pid}: thread {tid} waits in the kernel, for a disk or a child process (state \
         D), and cannot be stopped; the process goes on; try again"
    )]
    Stuck {
        /// The pid.
        pid: u32,
        /// The thread.
        tid: u32,
    },
    /// What had to be done took too long. All threads were let go.
    #[error(
        "process {pid}: {what} within {} ms, so it was let go; try again, or allow a longer \
         pause (--max-pause)", limit.as_millis()
    )]
    Late {
        /// The pid.
        pid: u32,
        /// What was not done.
        what: String,
        /// [`Options::max_pause`].
        limit: Duration,
    },
    /// It would stand still for longer than allowed. It was not stopped.
    #[error(
        "process {pid} has {mib} MiB to read{}; it would be paused for about {} ms, and {} ms \
         are allowed (--max-pause)",
        because(reason), estimate.as_millis(), limit.as_millis()
    )]
    WouldPause {
        /// The pid.
        pid: u32,
        /// Why there is no copy; empty where a copy itself would take so long.
        reason: String,
        /// Anonymous resident memory.
        mib: u64,
        /// The pause.
        estimate: Duration,
        /// [`Options::max_pause`].
        limit: Duration,
    },
    /// The copy could bring the target, or the machine, to the end of its memory.
    #[error(
        "process {pid}: {free_mib} MiB are free {}, a copy needs {needed_mib} MiB; to read it \
         without a copy, allow a pause of {} ms (--max-pause)",
        if *group { "below the memory limit of its control group" } else { "on this machine" },
        estimate.as_millis()
    )]
    WouldExceedLimit {
        /// The pid.
        pid: u32,
        /// In the control group; else on the whole machine.
        group: bool,
        /// Bytes below the limit.
        free_mib: u64,
        /// Bytes that the copy may cost.
        needed_mib: u64,
        /// How long taking its memory would take.
        estimate: Duration,
    },
    /// The copy could take the place of a process or thread that the target is about to start.
    #[error(
        "process {pid}: {free} more processes and threads may be started below the limits that \
         hold for it, and {needed} must be free for a copy; to read it without one, allow a \
         pause of {} ms (--max-pause)", estimate.as_millis()
    )]
    WouldExceedPids {
        /// The pid.
        pid: u32,
        /// How many may be started.
        free: u64,
        /// How many should be free.
        needed: u64,
        /// How long taking its memory would take.
        estimate: Duration,
    },
    /// memtrace itself would need too much memory.
    #[error(
        "process {pid}: memtrace needs {needed_mib} MiB of its own to read it, and {free_mib} \
         MiB are allowed or free (--max-memory)"
    )]
    TooLarge {
        /// The pid.
        pid: u32,
        /// What it needs.
        needed_mib: u64,
        /// What it may have.
        free_mib: u64,
    },
    /// The copy ended before all was read: what was read counts for nothing.
    #[error("the copy of process {pid} {why}; what was read of it was thrown away")]
    CopyLost {
        /// The pid.
        pid: u32,
        /// What became of the copy.
        why: String,
        /// The target could not spare it.
        short: bool,
    },
    /// memtrace's own helper process was killed.
    #[error(
        "memtrace's guard, which holds the copy of process {pid}, was killed; the process goes \
         on, and what was read was thrown away"
    )]
    GuardLost {
        /// The pid.
        pid: u32,
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

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(" and cannot be copied ({reason})"),
    }
}
