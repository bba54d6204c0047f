//! The kernel's side of freezing a process: ptrace, `process_vm_readv`, `fork`.
//!
//! Why unsafe: these calls have no safe form in the standard library. Each function
//! here is safe to call with any argument; what they do to a *target* is the business
//! of the callers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Words of `struct user_regs_struct`.
pub(super) const REGISTER_WORDS: usize = 27;

/// All general registers of a thread in the kernel's order (`user_regs_struct`).
pub(super) type RawRegisters = [u64; REGISTER_WORDS];

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_EVENT_STOP: i32 = 128;

pub(super) const O_TRACESYSGOOD: u64 = libc::PTRACE_O_TRACESYSGOOD as u64;
pub(super) const O_TRACECLONE: u64 = libc::PTRACE_O_TRACECLONE as u64;
pub(super) const O_EXITKILL: u64 = libc::PTRACE_O_EXITKILL as u64;
pub(super) const O_SUSPEND_SECCOMP: u64 = libc::PTRACE_O_SUSPEND_SECCOMP as u64;

/// Why a traced thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// By `PTRACE_INTERRUPT`, a group stop, or as the first stop of a new process.
    Event,
    /// After the `clone` that made a new process.
    Clone,
    /// At the entry or the exit of a system call.
    Syscall,
    /// Before this signal is delivered.
    Signal(i32),
    /// There is no thread any more.
    Gone,
}

fn ptrace(request: libc::c_uint, tid: u32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: `data` is a number, or the address of a live buffer of the size that the
    // request writes; the callers below see to it.
    let result = unsafe { libc::ptrace(request, tid as libc::pid_t, address, data) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn seize(tid: u32, options: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, options)
}

pub(super) fn set_options(tid: u32, options: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options)
}

pub(super) fn interrupt(tid: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread run; where it stopped before a signal, this one is delivered,
/// none with 0.
pub(super) fn resume(tid: u32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as u64)
}

/// Lets a stopped thread run to the next entry or exit of a system call.
pub(super) fn resume_to_syscall(tid: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, 0)
}

/// Lets a stopped thread go.
pub(super) fn detach(tid: u32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, 0)
}

/// The pid of the process that the `clone` of a [`Stop::Clone`] made.
pub(super) fn event_message(tid: u32) -> io::Result<u64> {
    let mut message = 0_u64;
    ptrace(
        libc::PTRACE_GETEVENTMSG,
        tid,
        0,
        std::ptr::addr_of_mut!(message) as u64,
    )?;
    Ok(message)
}

pub(super) fn registers(tid: u32) -> io::Result<RawRegisters> {
    let mut words: RawRegisters = [0; REGISTER_WORDS];
    let mut into = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: size_of::<RawRegisters>(),
    };
    ptrace(
        libc::PTRACE_GETREGSET,
        tid,
        libc::NT_PRSTATUS as u64,
        std::ptr::addr_of_mut!(into) as u64,
    )?;
    if into.iov_len != size_of::<RawRegisters>() {
        // A program of 32 bits has fewer.
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(words)
}

pub(super) fn set_registers(tid: u32, words: &RawRegisters) -> io::Result<()> {
    let mut words = *words;
    let mut from = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: size_of::<RawRegisters>(),
    };
    ptrace(
        libc::PTRACE_SETREGSET,
        tid,
        libc::NT_PRSTATUS as u64,
        std::ptr::addr_of_mut!(from) as u64,
    )
}

/// The signals that a stopped thread blocks, one bit each.
pub(super) fn signal_mask(tid: u32) -> io::Result<u64> {
    let mut mask = 0_u64;
    ptrace(
        PTRACE_GETSIGMASK,
        tid,
        8,
        std::ptr::addr_of_mut!(mask) as u64,
    )?;
    Ok(mask)
}

pub(super) fn set_signal_mask(tid: u32, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    ptrace(
        PTRACE_SETSIGMASK,
        tid,
        8,
        std::ptr::addr_of_mut!(mask) as u64,
    )
}

/// Processors of the machine that are on.
pub(super) fn processors() -> u64 {
    // SAFETY: takes a number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(count).unwrap_or(1).max(1)
}

/// Puts this process before all others of the machine; without the right to that, before
/// those of its user as far as that is allowed.
pub(super) fn hurry() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameters are a local that the kernel reads; the rest are numbers.
    unsafe {
        if libc::sched_setscheduler(0, policy, &parameters) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}

/// Has this process wait for no disk while others wait for it: what it has in memory stays
/// there, and its code is fetched now. Without the right to that nothing changes.
pub(super) fn lock_memory() {
    const MCL_ONFAULT: libc::c_int = 4;
    const MADV_POPULATE_READ: libc::c_int = 22;
    // SAFETY: takes flags only. On fault: memory shared with the process that forked this one
    // is not copied.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | MCL_ONFAULT) };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|l| l.contains(" r-xp ")) {
        let ends = line.split(' ').next().and_then(|r| r.split_once('-'));
        let address = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = ends.map(|(a, b)| (address(a), address(b))) {
            // SAFETY: reads pages of a mapping of this process; changes nothing in it.
            unsafe {
                libc::madvise(
                    start as *mut libc::c_void,
                    end.saturating_sub(start),
                    MADV_POPULATE_READ,
                )
            };
        }
    }
}

/// Memory that this process shares with those that it forks.
#[derive(Debug)]
pub(super) struct Shared {
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone, and is written by one process at a time:
// by the guard until it has reported, by nobody afterwards.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Reserves addresses; memory is taken as it is written.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length.max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// Takes memory for the first bytes now.
    pub(super) fn prepare(&self, length: usize) {
        const MADV_POPULATE_WRITE: libc::c_int = 23;
        let length = length.min(self.length);
        // SAFETY: within the mapping; its content stays.
        unsafe { libc::madvise(self.start.cast(), length, MADV_POPULATE_WRITE) };
    }

    /// Fills `length` bytes at `at` from another process: how many there were.
    pub(super) fn fill(
        &self,
        at: usize,
        length: usize,
        pid: u32,
        address: u64,
    ) -> io::Result<usize> {
        let end = at.checked_add(length).filter(|end| *end <= self.length);
        end.ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: within the mapping, which nobody else uses now: see `Sync` above.
        let into = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), length) };
        read_memory(pid, address, into)
    }

    /// Copies the bytes from `at`; false where they are not within.
    pub(super) fn get(&self, at: usize, into: &mut [u8]) -> bool {
        let end = at.checked_add(into.len()).filter(|end| *end <= self.length);
        if end.is_none() {
            return false;
        }
        // SAFETY: within the mapping, which nobody writes any more.
        let held = unsafe { std::slice::from_raw_parts(self.start.add(at), into.len()) };
        into.copy_from_slice(held);
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, once.
        unsafe { libc::munmap(self.start.cast(), self.length.max(1)) };
    }
}

/// Blocks `SIGCHLD`, so that [`wait`] can wait for it with a limit, and ignores what a
/// terminal sends.
pub(super) fn prepare_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        // SAFETY: no handler of ours is installed, only `SIG_IGN`.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: as above; the set is a local that sigemptyset initialises.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Ends this process by `SIGALRM` unless it says otherwise within `limit`: that it is not held up
/// where no call has a limit of its own. `None` says otherwise.
pub(super) fn end_within(limit: Option<Duration>) {
    let limit = limit.map_or(Duration::ZERO, |l| l.max(Duration::from_micros(1)));
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: zero,
        it_value: libc::timeval {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_usec: libc::suseconds_t::from(limit.subsec_micros() as i32),
        },
    };
    // SAFETY: the timer is a local that the kernel reads.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}

/// Waits until a traced thread stops, at most until `until`; `None` when it has not.
pub(super) fn wait(tid: u32, until: Option<Instant>) -> io::Result<Option<Stop>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let got = unsafe {
            libc::waitpid(
                tid as libc::pid_t,
                &mut status,
                libc::__WALL | libc::WNOHANG,
            )
        };
        if got == -1 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(Some(Stop::Gone)),
                _ => return Err(error),
            }
        }
        if got != 0 {
            return Ok(Some(stop(status)));
        }
        let left = match until {
            None => Duration::from_millis(200),
            Some(until) => match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => left.min(Duration::from_millis(200)),
                _ => return Ok(None),
            },
        };
        let limit = libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(left.subsec_nanos() as i32),
        };
        // SAFETY: set and limit are initialised locals; no siginfo is asked for.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            libc::sigtimedwait(&set, std::ptr::null_mut(), &limit);
        }
    }
}

fn stop(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone;
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        PTRACE_EVENT_STOP => Stop::Event,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
            Stop::Clone
        }
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    }
}

/// Bytes of another process, as many as are there in a row: fewer than asked where
/// the rest is not mapped.
pub(super) fn read_memory(pid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: into.len(),
    };
    // SAFETY: `local` is the exclusive buffer `into`; `remote` is an address of the
    // other process, which the kernel checks.
    let got = unsafe { libc::process_vm_readv(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes all of `bytes` into another process.
pub(super) fn write_memory(pid: u32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    // SAFETY: `local` is only read; `remote` is an address of the other process, which
    // the kernel checks.
    let put = unsafe { libc::process_vm_writev(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
    match usize::try_from(put) {
        Ok(put) if put == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

pub(super) fn kill(pid: u32, signal: i32) {
    // SAFETY: takes numbers only. A pid of 0 or below would mean a group: never sent.
    if let Ok(pid @ 1..) = libc::pid_t::try_from(pid) {
        unsafe { libc::kill(pid, signal) };
    }
}

/// Kills a process and frees its memory now, not when its turn on a processor comes.
pub(super) fn kill_and_free(pid: u32) {
    let Ok(number @ 1..) = libc::pid_t::try_from(pid) else {
        return;
    };
    // SAFETY: numbers; the descriptor is closed here. Kernels that lack a call refuse it, and
    // the process ends at its own pace.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, number, 0);
        libc::kill(number, libc::SIGKILL);
        if descriptor >= 0 {
            libc::syscall(libc::SYS_process_mrelease, descriptor, 0);
            libc::close(descriptor as RawFd);
        }
    }
}

/// Waits for the end of a child, or of what is traced: how it ended, `None` where there is none.
pub(super) fn reap(pid: u32) -> Option<ExitStatus> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let got = unsafe { libc::waitpid(pid as libc::pid_t, &mut status, libc::__WALL) };
        if got == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            continue;
        }
        if got == -1 || !libc::WIFSTOPPED(status) {
            return (got != -1).then(|| ExitStatus::from_raw(status));
        }
    }
}

/// Starts a process that runs `work` and ends; gives its pid. It has none of our files
/// but `keep`, a session of its own, and no signal of a terminal reaches it.
///
/// `work` runs in a copy of this process that has one thread: it must not wait for
/// anything that another thread would have done.
pub(super) fn spawn(keep: RawFd, work: impl FnOnce()) -> io::Result<u32> {
    // SAFETY: the child touches only what `work` owns and the allocator, which the C
    // library makes usable after fork; it never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: numbers, and one string that ends in zero.
            unsafe {
                libc::setsid();
                libc::prctl(libc::PR_SET_NAME, c"memtrace-guard".as_ptr());
            }
            prepare_signals();
            only_file(keep);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends this process without running what other threads registered.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => Ok(pid as u32),
    }
}

/// Closes all files but one; the standard ones lead nowhere.
fn only_file(keep: RawFd) {
    // SAFETY: descriptors are numbers. Nothing in this process uses the closed ones: it
    // is the fresh copy that `spawn` made.
    unsafe {
        let nowhere = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for standard in 0..3 {
            if standard != keep && nowhere >= 0 {
                libc::dup2(nowhere, standard);
            }
        }
        let range = |from: u32, to: u32| libc::syscall(libc::SYS_close_range, from, to, 0);
        let keep = u32::try_from(keep).unwrap_or(0).max(3);
        if keep > 3 && range(3, keep - 1) != 0 || range(keep + 1, u32::MAX) != 0 {
            for fd in 3..65536 {
                if fd != keep {
                    libc::close(fd as RawFd);
                }
            }
        }
    }
}

/// Makes this process give memory back that it has freed. The allocator of the C library keeps as much
/// as it ever needed, in a pool of its own for each thread, unless it is told that large
/// blocks (from 256 KiB) are the kernel's and that two pools do.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers; what the allocator does not know it refuses.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}
