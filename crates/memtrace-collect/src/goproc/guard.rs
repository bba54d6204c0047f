//! The process that stops the target and makes the copy.
//!
//! A process of its own, because whoever traces must live until the target is as it
//! was: it is in another session than memtrace, which a `kill -9` of memtrace or of its
//! group does not reach. It learns of memtrace's end from their socket, and then does
//! what it always does in the end: the copy is killed and reaped.
//!
//! ```text
//! memtrace ──fork──▶ guard: seize, interrupt all threads; registers
//!    │                 │    clone in one of them; let them go
//!    │ ◀──── report ───┤
//!    │ reads the copy  │
//!    ├───── thaw ─────▶│    kill the copy, reap
//! ```
//!
//! **Nothing stays behind.** The copy would be a child of the target, which nobody there
//! waits for. So the child makes, before the target goes on, another process that shares
//! its memory, and ends; the target reaps it in an injected `wait4`. The other one is an
//! orphan, which init reaps whoever kills it. In a container, where the target may be
//! init itself, the child is the copy, and the target reaps it at the thaw.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::inject::{self, Host};
use super::maps::{self, Gadgets};
use super::sys::{self, RawRegisters};

/// Threads of a process, at most.
const MAX_THREADS: usize = 1 << 20;

/// What the guard is to do.
pub(super) struct Request {
    pub(super) pid: u32,
    /// Stop all threads within this time, or give up.
    pub(super) stop_within: Duration,
    /// For a copy; without, the target itself is held.
    pub(super) gadgets: Option<Gadgets>,
    /// Hold the target itself, at most this long, where there can be no copy.
    pub(super) hold: Option<Duration>,
    /// Leave the copy to init.
    pub(super) orphan: bool,
    /// The target filters system calls: take the filter off for the injected ones.
    pub(super) filtered: bool,
}

/// What it did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Whose memory to read.
    pub(super) memory: u32,
    /// The target itself is held, for want of a copy.
    pub(super) held: bool,
    /// From the first thread that was interrupted to the last let go; 0 while held.
    pub(super) pause: Duration,
    pub(super) threads: Vec<(u32, RawRegisters)>,
}

/// Why it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The kernel's `errno`.
    Seize(i32),
    Gone,
    /// A thread that did not stop in time.
    Slow(u32),
    /// `errno` of the injected clone, 0 where no thread would serve.
    Clone(i32),
    Other(i32),
}

/// The guard's life.
pub(super) fn run(request: &Request, socket: &mut UnixStream) {
    let mut target = Target::default();
    // The target stands still while this process works: it waits for no other.
    sys::hurry(true);
    let frozen = target.freeze(request);
    sys::hurry(false);
    let copy = match frozen {
        Ok(report) => {
            let copy = (!report.held).then_some(report.memory);
            let _ = socket.write_all(&encode(&Ok(report)));
            copy
        }
        Err(fault) => {
            target.release();
            let _ = socket.write_all(&encode(&Err(fault)));
            None
        }
    };
    if target.held {
        // Zero would mean for ever.
        let hold = request.hold.map(|h| h.max(Duration::from_millis(1)));
        let _ = socket.set_read_timeout(hold);
    }
    // A word, the end of memtrace, or the end of the time.
    let _ = socket.read(&mut [0]);
    target.release();
    if let Some(copy) = copy {
        sys::kill(copy, libc::SIGKILL);
        sys::reap(copy);
    }
    if let (Some(child), Some(gadgets)) = (target.child, request.gadgets) {
        reap_inside(request, child, gadgets);
    }
}

/// The threads of the target that are traced.
#[derive(Default)]
struct Target {
    threads: Vec<u32>,
    stopped: Vec<u32>,
    held: bool,
    /// The copy's number in the target's own eyes, where it is to be reaped there.
    child: Option<u64>,
}

impl Target {
    fn freeze(&mut self, request: &Request) -> Result<Report, Fault> {
        let pid = request.pid;
        // Seizing does not stop: all of them first, then the clock runs.
        let mut known = BTreeSet::new();
        self.seize(request, &mut known)?;
        if self.threads.is_empty() {
            return Err(Fault::Gone);
        }
        let began = Instant::now();
        let until = began + request.stop_within;
        loop {
            let fresh = self.threads[self.stopped.len()..].to_vec();
            for tid in &fresh {
                let _ = sys::interrupt(*tid);
            }
            for tid in fresh {
                match inject::await_stop(tid, until) {
                    Ok(true) => self.stopped.push(tid),
                    Ok(false) => return Err(Fault::Slow(tid)),
                    // It ended by itself.
                    Err(_) => self.threads.retain(|t| *t != tid),
                }
            }
            // A thread that was stopped late may have started others before.
            self.seize(request, &mut known)?;
            if self.threads.len() == self.stopped.len() {
                break;
            }
        }
        let mut report = Report {
            memory: pid,
            ..Report::default()
        };
        for tid in &self.stopped {
            let registers = sys::registers(*tid).map_err(other)?;
            report.threads.push((*tid, registers));
        }
        match self.copy(request, &report.threads) {
            Ok(copy) => report.memory = copy,
            Err(Fault::Clone(_)) if request.hold.is_some() => {
                self.held = true;
                report.held = true;
                return Ok(report);
            }
            Err(fault) => return Err(fault),
        }
        self.release();
        report.pause = began.elapsed();
        // What follows concerns the copy alone.
        close_files(report.memory, request.gadgets);
        Ok(report)
    }

    /// Seizes the threads that are not known yet.
    fn seize(&mut self, request: &Request, known: &mut BTreeSet<u32>) -> Result<(), Fault> {
        let pid = request.pid;
        let gone = |_| Fault::Gone;
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)? {
            let Some(tid) = entry
                .ok()
                .and_then(|e| e.file_name().to_str()?.parse::<u32>().ok())
            else {
                continue;
            };
            if known.len() >= MAX_THREADS || !known.insert(tid) {
                continue;
            }
            match sys::seize(tid, 0) {
                Ok(()) => self.threads.push(tid),
                Err(_) if ended(pid, tid) => {}
                Err(error) => return Err(Fault::Seize(error.raw_os_error().unwrap_or(0))),
            }
        }
        Ok(())
    }

    /// Has the target make its copy: the copy's pid. The target's threads are as
    /// before, and still stopped.
    fn copy(&mut self, request: &Request, threads: &[(u32, RawRegisters)]) -> Result<u32, Fault> {
        let pid = request.pid;
        let gadgets = request.gadgets.ok_or(Fault::Clone(0))?;
        if !maps::confirm(pid, &gadgets) {
            return Err(Fault::Clone(0));
        }
        let fit = |(tid, registers): &(u32, RawRegisters)| {
            Some((inject::fitness(pid, *tid, registers)?, *tid, *registers))
        };
        let best = threads.iter().filter_map(fit).min_by_key(|found| found.0);
        let (_, tid, registers) = best.ok_or(Fault::Clone(0))?;
        sys::set_options(tid, options(request)).map_err(clone_fault)?;
        let mut host = Host::new(pid, tid, registers, gadgets).map_err(clone_fault)?;
        let made = self.clone_with(request, &mut host, gadgets);
        let restored = host.restore(pid);
        if host.stopped_by_signal {
            // Comes again once the thread is let go.
            sys::kill(pid, libc::SIGSTOP);
        }
        let copy = made?;
        if restored.is_err() || host.restore_stack(copy).is_err() {
            sys::kill(copy, libc::SIGKILL);
            sys::reap(copy);
            return Err(Fault::Gone);
        }
        Ok(copy)
    }

    fn clone_with(
        &mut self,
        request: &Request,
        host: &mut Host,
        gadgets: Gadgets,
    ) -> Result<u32, Fault> {
        let (number, child) = host
            .call(inject::SYS_CLONE, &[0, host.new_stack(), 0, 0, 0])
            .map_err(clone_fault)?;
        if number <= 0 || child == 0 {
            return Err(Fault::Clone(i32::try_from(-number).unwrap_or(0)));
        }
        let number = number as u64;
        let kept = options(request) | sys::O_EXITKILL;
        let until = Instant::now() + Duration::from_secs(5);
        let ready = inject::await_stop(child, until).is_ok_and(|stopped| stopped)
            && sys::set_options(child, kept).is_ok();
        // The kernel's choice when memory runs out, before the target.
        let _ = std::fs::write(format!("/proc/{child}/oom_score_adj"), "1000");
        let copy = match ready {
            true if request.orphan => second(host.new_stack(), child, gadgets),
            true => {
                self.child = Some(number);
                return Ok(child);
            }
            false => None,
        };
        if copy.is_none() {
            sys::kill(child, libc::SIGKILL);
        }
        sys::reap(child);
        let waited = host.call(inject::SYS_WAIT4, &wait_for(number));
        match copy {
            Some(copy) if waited.is_ok() => Ok(copy),
            Some(copy) => {
                sys::kill(copy, libc::SIGKILL);
                sys::reap(copy);
                Err(Fault::Gone)
            }
            None => Err(Fault::Clone(0)),
        }
    }

    /// Lets all threads go.
    fn release(&mut self) {
        for tid in self.stopped.drain(..) {
            let _ = sys::detach(tid);
        }
        // One that never stopped is let go when it stops or this process ends.
        self.threads.clear();
    }
}

/// Of the child, a process that shares its memory, files and directory; the child ends.
fn second(stack: u64, child: u32, gadgets: Gadgets) -> Option<u32> {
    let mut inner = Host::of_copy(child, gadgets).ok()?;
    let flags = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS) as u64;
    let (_, copy) = inner
        .call(inject::SYS_CLONE, &[flags, stack, 0, 0, 0])
        .ok()?;
    let until = Instant::now() + Duration::from_secs(5);
    let stopped = copy != 0 && inject::await_stop(copy, until).is_ok_and(|stopped| stopped);
    (stopped && inner.last_call(inject::SYS_EXIT, 0).is_ok()).then_some(copy)
}

/// The copy holds no connection open.
fn close_files(copy: u32, gadgets: Option<Gadgets>) {
    let Some(gadgets) = gadgets else {
        return;
    };
    let Ok(mut host) = Host::of_copy(copy, gadgets) else {
        return;
    };
    let all = [0, u64::from(u32::MAX), 0];
    if matches!(host.call(inject::SYS_CLOSE_RANGE, &all), Ok((0, _))) {
        return;
    }
    // Before Linux 5.9.
    let listed: Vec<u64> = std::fs::read_dir(format!("/proc/{copy}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in listed {
        let _ = host.call(inject::SYS_CLOSE, &[fd]);
    }
}

/// Has the target reap its child.
fn reap_inside(request: &Request, child: u64, gadgets: Gadgets) {
    let pid = request.pid;
    // Threads come and go, and not each one serves at each moment.
    for _ in 0..20 {
        let listed: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        if listed.is_empty() {
            return;
        }
        for tid in listed {
            if reap_in_thread(request, tid, child, gadgets).is_some() {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reap_in_thread(request: &Request, tid: u32, child: u64, gadgets: Gadgets) -> Option<()> {
    let pid = request.pid;
    sys::seize(tid, options(request)).ok()?;
    let until = Instant::now() + Duration::from_secs(1);
    let _ = sys::interrupt(tid);
    if !inject::await_stop(tid, until).ok()? {
        return None;
    }
    let registers = sys::registers(tid).ok();
    let fit = registers.filter(|r| inject::fitness(pid, tid, r).is_some_and(|f| f < 4));
    let done = fit.and_then(|registers| {
        let mut host = Host::new(pid, tid, registers, gadgets).ok()?;
        let result = host.call(inject::SYS_WAIT4, &wait_for(child));
        let _ = host.restore(pid);
        if host.stopped_by_signal {
            sys::kill(pid, libc::SIGSTOP);
        }
        result.ok().map(|_| ())
    });
    let _ = sys::detach(tid);
    done
}

fn wait_for(child: u64) -> [u64; 4] {
    let flags = (libc::__WALL | libc::WNOHANG) as u32;
    [child, 0, u64::from(flags), 0]
}

fn options(request: &Request) -> u64 {
    let filter = if request.filtered {
        sys::O_SUSPEND_SECCOMP
    } else {
        0
    };
    sys::O_TRACESYSGOOD | sys::O_TRACECLONE | filter
}

/// The thread is no more, or a zombie.
fn ended(pid: u32, tid: u32) -> bool {
    let path = PathBuf::from(format!("/proc/{pid}/task/{tid}/stat"));
    let state = std::fs::read_to_string(path).ok().and_then(|text| {
        let close = text.rfind(')')?;
        text.get(close + 2..)?.chars().next()
    });
    matches!(state, None | Some('Z' | 'X' | 'x'))
}

fn other(error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ESRCH) => Fault::Gone,
        number => Fault::Other(number.unwrap_or(0)),
    }
}

fn clone_fault(error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ESRCH) => Fault::Gone,
        number => Fault::Clone(number.unwrap_or(0)),
    }
}

/// Words of 8 bytes: their number, then fault or report.
fn encode(outcome: &Result<Report, Fault>) -> Vec<u8> {
    let mut words = vec![0];
    match outcome {
        Ok(report) => {
            let pause = u64::try_from(report.pause.as_nanos()).unwrap_or(u64::MAX);
            words.extend([0, u64::from(report.memory), u64::from(report.held), pause]);
            for (tid, registers) in &report.threads {
                words.push(u64::from(*tid));
                words.extend(registers);
            }
        }
        Err(fault) => words.extend(match *fault {
            Fault::Seize(number) => [1, number as u64],
            Fault::Gone => [2, 0],
            Fault::Slow(tid) => [3, u64::from(tid)],
            Fault::Clone(number) => [4, number as u64],
            Fault::Other(number) => [5, number as u64],
        }),
    }
    words[0] = words.len() as u64 - 1;
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Reads what the guard says; `None` when it ended without a word.
pub(super) fn receive(socket: &mut UnixStream) -> Option<Result<Report, Fault>> {
    const THREAD: usize = 1 + sys::REGISTER_WORDS;
    let mut next = || {
        let mut word = [0; 8];
        socket.read_exact(&mut word).ok()?;
        Some(u64::from_le_bytes(word))
    };
    let count = usize::try_from(next()?).ok()?;
    if count > 4 + MAX_THREADS * THREAD {
        return None;
    }
    let mut words = Vec::new();
    for _ in 0..count {
        words.push(next()?);
    }
    let number = |at: usize| words.get(at).map(|w| *w as i32);
    Some(match words.first()? {
        0 => {
            let threads = words.get(4..)?.chunks_exact(THREAD).filter_map(|thread| {
                let registers = thread[1..].try_into().ok()?;
                Some((u32::try_from(thread[0]).ok()?, registers))
            });
            Ok(Report {
                memory: u32::try_from(*words.get(1)?).ok()?,
                held: *words.get(2)? != 0,
                pause: Duration::from_nanos(*words.get(3)?),
                threads: threads.collect(),
            })
        }
        1 => Err(Fault::Seize(number(1)?)),
        2 => Err(Fault::Gone),
        3 => Err(Fault::Slow(u32::try_from(*words.get(1)?).ok()?)),
        4 => Err(Fault::Clone(number(1)?)),
        _ => Err(Fault::Other(number(1)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: Result<Report, Fault>) {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(&encode(&outcome)).unwrap();
        assert_eq!(receive(&mut here), Some(outcome));
    }

    #[test]
    fn what_is_said_is_heard() {
        check(Ok(Report {
            memory: 7,
            held: true,
            pause: Duration::from_micros(1234),
            threads: vec![(8, [9; 27]), (10, [u64::MAX; 27])],
        }));
        for fault in [
            Fault::Seize(1),
            Fault::Gone,
            Fault::Slow(77),
            Fault::Clone(-1),
            Fault::Other(5),
        ] {
            check(Err(fault));
        }
    }

    #[test]
    fn an_end_without_a_word() {
        let (mut here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert_eq!(receive(&mut here), None);
    }
}
