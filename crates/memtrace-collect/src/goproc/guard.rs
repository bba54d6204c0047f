//! The process that stops the target and makes the copy.
//!
//! A process of its own, because whoever traces must live until the target is as it
//! was: it is in another session than memtrace, which a `kill -9` of memtrace or of its
//! group does not reach. It learns of memtrace's end from their socket, and then does
//! what it always does in the end: the copy is killed and reaped.
//!
//! ```text
//! memtrace ──fork──▶ guard: seize, interrupt all threads; registers
//!    │                 │    clone in one of them, or take the memory; let them go
//!    │ ◀──── report ───┤
//!    │ reads the copy  │    looks every few milliseconds whether the target can spare it
//!    ├───── done ─────▶│
//!    │ ◀───── end ─────┤    was the copy whole all the time?
//!    │                 │    kill the copy, reap
//! ```
//!
//! **Nothing stays behind.** The copy is a child of the target, without a signal at its end,
//! and nobody there waits for it: one of the target's threads is made to, in an injected
//! `wait4`. Left to itself an orphan would go to whoever declared itself a subreaper, and
//! that one may reap none but its own. What a guard that was killed left is reaped by the
//! next (see [`leftovers`]).
//!
//! **Nobody waits for nobody.** A thread that becomes another program (`execve`) waits for all
//! others to end, and a seized one has ended only when its tracer has heard of it; who seizes
//! another thread meanwhile waits for the `execve`. So the guard ends where a seizure takes
//! longer than a pause may, and whatever it had seized is free.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Budget, Short};
use super::inject::{self, Host};
use super::maps::{self, Gadgets};
use super::sys::{self, RawRegisters, Shared};
use super::{Programs, target, words};

/// Threads of a process, at most.
const MAX_THREADS: usize = 1 << 20;
/// A thread that has not stopped by then is looked at: one that waits in the kernel for a
/// disk or a child will not stop, and nobody waits for it.
const SOON: Duration = Duration::from_millis(3);
/// How long it takes to let a thread go.
const LETTING_GO: Duration = Duration::from_micros(5);
/// How often the target's limits are looked at while the copy lives.
const LOOK: Duration = Duration::from_millis(3);
/// What the copy calls itself, where processes are listed.
pub(super) const COPY_NAME: &str = "memtrace-copy";
/// Bytes taken between two looks at the clock.
const PIECE: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// What the guard is to do.
pub(super) struct Request {
    pub(super) pid: u32,
    /// The target's `status`, read before.
    pub(super) status: String,
    /// No thread may stand still for longer.
    pub(super) max_pause: Duration,
    /// Of this, what making the copy takes once all threads stand still.
    pub(super) clone_takes: Duration,
    pub(super) how: How,
    pub(super) inside: Inside,
    /// The copy lives no longer.
    pub(super) life: Duration,
    /// Zombies that an earlier guard left in the target.
    pub(super) left: Vec<u32>,
}

/// How a thread of the target is had to do something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inside {
    pub(super) pid: u32,
    /// When it started, ticks after the boot: nobody else with its number is touched.
    pub(super) start_ticks: u64,
    /// What may be stopped.
    pub(super) programs: Programs,
    /// Its executable, and where its instructions were.
    pub(super) executable: Option<(u64, u64)>,
    pub(super) gadgets: Option<Gadgets>,
}

#[derive(Clone)]
pub(super) enum How {
    /// By a copy, made through these instructions.
    Copy(Gadgets),
    /// The target stands still while its writable memory is taken into this one.
    Take(Arc<Shared>),
}

/// What it did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Whose memory to read: the copy's, or the target's own where that cannot change.
    pub(super) memory: u32,
    /// The longest that a thread stood still, from its interruption until it was let go.
    pub(super) pause: Duration,
    pub(super) threads: Vec<(u32, RawRegisters)>,
    pub(super) taken: Option<TakenMemory>,
}

/// The memory that was taken while the target stood still.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TakenMemory {
    /// `/proc/PID/maps` at that moment.
    pub(super) maps: String,
    /// Whole mappings that may change, ascending: start, end. What of them is in no run is
    /// zero.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Address and bytes, ascending; one lies behind the other in the buffer.
    pub(super) runs: Vec<(u64, u64)>,
}

/// Why it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The kernel's `errno`.
    Seize(i32),
    Gone,
    /// A thread that waits in the kernel and does not stop.
    Stuck(u32),
    /// Time ran out; a thread that had not stopped, 0 where all had.
    Late(u32),
    /// `errno` of the injected clone, 0 where no thread would serve.
    Clone(i32),
    /// Its memory has more bytes than there is room for, or time.
    Large(u64),
    Other(i32),
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was whole when memtrace was done. Its life, and bytes that the target wrote
    /// meanwhile, which were kept twice.
    Whole { life: Duration, written: u64 },
    /// Somebody killed it.
    Killed,
    /// The target has ended: nothing of it may be left.
    Gone,
    /// The target, or its machine, could not spare it any longer.
    Short(Short),
    /// It lived for too long.
    Late(Duration),
}

/// A word from memtrace: is the copy whole so far?
pub(super) const ASK: u8 = 1;

/// The guard's life.
pub(super) fn run(request: &Request, socket: &mut UnixStream) {
    // The target stands still while this process works: it waits for no other, and later it
    // must not come too late to let the copy go.
    sys::hurry();
    sys::lock_memory();
    let mut target = Target::default();
    let budget = Budget::of(request.pid, &request.status);
    let process = Process::of(request.inside);
    let frozen = match process.has_ended() {
        true => Err(Fault::Gone),
        false => target.freeze(request),
    };
    let began = Instant::now();
    target.release();
    let copy = match &frozen {
        Ok(report) if report.taken.is_none() => Some(report.memory),
        _ => None,
    };
    for made in target.made.iter().filter(|made| copy != Some(**made)) {
        sys::kill_and_free(*made);
        sys::reap(*made);
    }
    let said = words::report(&frozen);
    if let Some(copy) = copy {
        let mut life = Life {
            copy,
            began,
            most: request.life,
            budget: &budget,
            target: &process,
            lost: None,
        };
        if let (Some(seal), How::Copy(gadgets)) = (&target.seal, &request.how) {
            seal.close(*gadgets, &mut life);
        }
        life.tell(socket, &said);
        let end = life.keep(socket);
        sys::kill_and_free(copy);
        let _ = socket.write_all(&words::end(&end));
        sys::reap(copy);
    } else {
        let _ = socket.write_all(&said);
    }
    let zombies = request.left.iter().chain(&target.made).copied();
    let zombies: Vec<u32> = zombies.collect();
    // A thread that is held until this process ends must not be held for longer.
    if !target.holds {
        process.reap(&zombies);
    }
}

/// The life of one that only cleans up after a guard that was killed.
pub(super) fn sweep(inside: Inside, zombies: &[u32]) {
    sys::hurry();
    Process::of(inside).reap(zombies);
}

/// The target as a process, and no other that takes over its number.
struct Process {
    inside: Inside,
    /// Not every kernel has them.
    handle: Option<OwnedFd>,
}

impl Process {
    fn of(inside: Inside) -> Self {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let pid = i32::try_from(inside.pid).ok().and_then(Pid::from_raw);
        let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Asked after it was opened: if it is the right one now, it was the right one then.
        let is_the_one = started(inside.pid) == Some(inside.start_ticks);
        let handle = handle.filter(|_| is_the_one);
        Self { inside, handle }
    }

    fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(handle) = &self.handle else {
            return started(self.inside.pid) != Some(self.inside.start_ticks);
        };
        let mut asked = [PollFd::new(handle, PollFlags::IN)];
        poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

/// When a process that runs was started, in ticks after the boot.
fn started(pid: u32) -> Option<u64> {
    let stat = super::read_text(pid, "stat", 4096).ok()?;
    let stat = Stat::parse(&stat)?;
    (!matches!(stat.state, 'Z' | 'X' | 'x')).then_some(stat.started)
}

/// The life of a copy, from when the target goes on.
struct Life<'a> {
    copy: u32,
    began: Instant,
    most: Duration,
    budget: &'a Budget,
    target: &'a Process,
    /// Why it was let go.
    lost: Option<End>,
}

impl Life<'_> {
    /// Lets the copy go where the target cannot spare it any longer.
    fn look(&mut self) {
        let life = self.began.elapsed();
        let lost = if self.lost.is_some() {
            None
        } else if self.target.has_ended() {
            Some(End::Gone)
        } else if life > self.most {
            Some(End::Late(life))
        } else {
            self.budget.runs_short().map(End::Short)
        };
        if let Some(lost) = lost {
            sys::kill_and_free(self.copy);
            self.lost = Some(lost);
        }
    }

    /// Says something to memtrace, which may be stopped: until then somebody looks.
    fn tell(&mut self, socket: &mut UnixStream, mut said: &[u8]) {
        let _ = socket.set_write_timeout(Some(LOOK));
        while !said.is_empty() && self.lost.is_none() {
            match socket.write(said) {
                Ok(written @ 1..) => said = &said[written..],
                Err(error) if is_soon(&error) => {}
                // memtrace has ended.
                _ => return,
            }
            self.look();
        }
        // What is left of it, and how the copy ended: nobody waits for that any more.
        let _ = socket.set_write_timeout(Some(Duration::from_secs(10)));
        let _ = socket.write_all(said);
    }

    /// Lets the copy live while memtrace reads it: how that ended.
    fn keep(&mut self, socket: &mut UnixStream) -> End {
        let _ = socket.set_read_timeout(Some(LOOK));
        loop {
            let mut word = [0];
            let heard = socket.read(&mut word);
            self.look();
            if let Some(lost) = self.lost {
                return lost;
            }
            if ended(self.copy) {
                return End::Killed;
            }
            let life = self.began.elapsed();
            match heard {
                Ok(1) if word == [ASK] => {
                    let whole = End::Whole { life, written: 0 };
                    if socket.write_all(&words::end(&whole)).is_err() {
                        return whole;
                    }
                }
                Err(error) if is_soon(&error) => {}
                // Done, or memtrace has ended.
                _ => {
                    return End::Whole {
                        life,
                        written: own_memory(self.copy),
                    };
                }
            }
        }
    }
}

/// Nothing yet: a read or write with a limit.
fn is_soon(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// A copy is no more, or about to end: its memory goes before the system says so, while from
/// the moment it is killed it is not in its stop any longer.
fn ended(copy: u32) -> bool {
    sys::registers(copy).is_err()
}

/// Bytes that the copy has for itself: what the target has written since.
fn own_memory(copy: u32) -> u64 {
    let text = super::read_text(copy, "smaps_rollup", 64 << 10).unwrap_or_default();
    crate::proc::kib_field(&text, "Private_Dirty").unwrap_or(0)
}

/// The threads of the target that are traced.
#[derive(Default)]
struct Target {
    threads: Vec<u32>,
    /// In the order in which they were interrupted, in which they are let go, too.
    stopped: Vec<Stopped>,
    /// Children that it was made to make: copies, to be reaped in it.
    made: Vec<u32>,
    seal: Option<Seal>,
    /// A thread that was interrupted and could not be let go.
    holds: bool,
}

struct Stopped {
    tid: u32,
    since: Instant,
    registers: RawRegisters,
}

impl Target {
    fn freeze(&mut self, request: &Request) -> Result<Report, Fault> {
        let pid = request.pid;
        let mut taking = match &request.how {
            How::Copy(_) => None,
            How::Take(buffer) => Some(Taking::open(pid, buffer)?),
        };
        // Seizing does not stop: all of them first, then the clock runs.
        let mut known = BTreeSet::new();
        self.seize(request, &mut known, request.max_pause)?;
        if self.threads.is_empty() {
            return Err(Fault::Gone);
        }
        let began = Instant::now();
        // Letting many go takes its time, too.
        let letting_go = LETTING_GO * u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
        let until = began + request.max_pause.saturating_sub(letting_go);
        let stopped_by = until - request.clone_takes.min(until - began);
        self.stop_all(request, &mut known, stopped_by)?;
        let mut report = Report {
            memory: pid,
            ..Report::default()
        };
        let stopped = self.stopped.iter().map(|s| (s.tid, s.registers));
        report.threads = stopped.collect();
        match (&request.how, &mut taking) {
            (How::Copy(gadgets), _) => {
                report.memory = self.copy(request, *gadgets, until)?;
            }
            (_, Some(taking)) => taking.take(until)?,
            (How::Take(_), None) => return Err(Fault::Other(0)),
        }
        report.pause = self.release();
        report.taken = taking.map(|t| t.taken);
        Ok(report)
    }

    /// Interrupts all threads, also those that come meanwhile, and waits for them.
    fn stop_all(
        &mut self,
        request: &Request,
        known: &mut BTreeSet<u32>,
        until: Instant,
    ) -> Result<(), Fault> {
        let in_time = || match Instant::now() < until {
            true => Ok(()),
            false => Err(Fault::Late(0)),
        };
        loop {
            let mut fresh = Vec::new();
            for tid in &self.threads[self.stopped.len()..] {
                in_time()?;
                let since = Instant::now();
                let _ = sys::interrupt(*tid);
                fresh.push((*tid, since));
            }
            for (tid, since) in fresh {
                in_time()?;
                match self.await_stop(request.pid, tid, until)? {
                    // While others still come to their stop.
                    true => self.stopped.push(Stopped {
                        tid,
                        since,
                        registers: sys::registers(tid).map_err(other)?,
                    }),
                    // It ended by itself.
                    false => self.threads.retain(|t| *t != tid),
                }
            }
            // A thread that was stopped late may have started others before.
            self.seize(
                request,
                known,
                until.saturating_duration_since(Instant::now()),
            )?;
            if self.threads.len() == self.stopped.len() {
                return Ok(());
            }
        }
    }

    /// Whether the thread stopped; false where it has ended.
    fn await_stop(&self, pid: u32, tid: u32, until: Instant) -> Result<bool, Fault> {
        let soon = until.min(Instant::now() + SOON);
        match inject::await_stop(tid, soon) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(_) => return Ok(false),
        }
        match state(pid, tid) {
            Some('D') => return Err(Fault::Stuck(tid)),
            None | Some('Z' | 'X' | 'x') => return Ok(false),
            Some(_) => {}
        }
        match inject::await_stop(tid, until) {
            Ok(true) => Ok(true),
            Ok(false) => Err(Fault::Late(tid)),
            Err(_) => Ok(false),
        }
    }

    /// Seizes the threads that are not known yet. This process ends where one of them takes
    /// longer than `limit`.
    fn seize(
        &mut self,
        request: &Request,
        known: &mut BTreeSet<u32>,
        limit: Duration,
    ) -> Result<(), Fault> {
        let pid = request.pid;
        for tid in threads(pid).ok_or(Fault::Gone)? {
            if known.len() >= MAX_THREADS || !known.insert(tid) {
                continue;
            }
            sys::end_within(Some(limit));
            let seized = sys::seize(tid, 0);
            sys::end_within(None);
            match seized {
                Ok(()) => self.threads.push(tid),
                Err(_) if matches!(state(pid, tid), None | Some('Z' | 'X' | 'x')) => {}
                Err(error) => return Err(Fault::Seize(error.raw_os_error().unwrap_or(0))),
            }
        }
        Ok(())
    }

    /// Has the target make its copy: the copy's pid, before its first stop. The target's
    /// threads are as before, and still stopped.
    fn copy(&mut self, request: &Request, gadgets: Gadgets, until: Instant) -> Result<u32, Fault> {
        let pid = request.pid;
        if !maps::confirm(pid, &gadgets) {
            return Err(Fault::Clone(0));
        }
        let mut ranked: Vec<(u32, usize)> = (self.stopped.iter().enumerate())
            .filter_map(|(i, s)| Some((inject::fitness(&s.registers)?, i)))
            .collect();
        if ranked.is_empty() {
            // None waits in the kernel at this moment; a little later one will.
            return Err(Fault::Late(0));
        }
        ranked.sort_unstable();
        let mut stopped = ranked.into_iter().map(|(_, i)| &self.stopped[i]);
        let best = stopped.find(|s| !inject::near_end_of_stack(pid, &s.registers));
        let (tid, registers) = best.map(|s| (s.tid, s.registers)).ok_or(Fault::Clone(0))?;
        set_up(pid, tid, 0).map_err(clone_fault)?;
        let mut host = Host::new(pid, tid, registers, gadgets).map_err(clone_fault)?;
        // A thread that gets no processor must not hold the others.
        let others = self.stopped.iter().map(|s| s.tid).filter(|t| *t != tid);
        host.let_go_at(until, others.collect());
        let cloned = host.call(inject::SYS_CLONE, &[0, host.new_stack(), 0, 0, 0]);
        if let Ok((_, child @ 1..)) = cloned {
            self.made.push(child);
        }
        let restored = host.restore(pid);
        if host.stopped_by_signal {
            // Comes again once the thread is let go.
            sys::kill(pid, libc::SIGSTOP);
        }
        if host.is_overdue() {
            // The others went on, perhaps before the copy was made: it is of no one moment.
            self.stopped.retain(|s| s.tid == tid);
            self.threads.retain(|t| *t == tid);
            return Err(Fault::Late(0));
        }
        let (number, child) = cloned.map_err(clone_fault)?;
        if number <= 0 || child == 0 {
            return Err(Fault::Clone(i32::try_from(-number).unwrap_or(0)));
        }
        restored.map_err(|_| Fault::Gone)?;
        self.seal = Some(Seal {
            copy: child,
            stack: host.held_stack(),
        });
        Ok(child)
    }

    /// Lets all threads go: the longest that one stood still.
    fn release(&mut self) -> Duration {
        let mut longest = Duration::ZERO;
        let mut let_go = BTreeSet::new();
        for stopped in self.stopped.drain(..) {
            let _ = sys::detach(stopped.tid);
            let_go.insert(stopped.tid);
            longest = longest.max(stopped.since.elapsed());
        }
        // Others may have been interrupted. One that has not stopped yet is let go by the end of this
        // process.
        for tid in self.threads.drain(..).filter(|tid| !let_go.contains(tid)) {
            self.holds |= sys::detach(tid).is_err();
        }
        longest
    }
}

/// What makes a child of the target, which shares nothing with it but pages that nobody has
/// written, its copy.
struct Seal {
    copy: u32,
    /// Where the target's stack held something else when it was made, and what it holds again.
    stack: (u64, Vec<u8>),
}

impl Seal {
    /// Brings the copy to its first stop; it holds no file or connection open, and says what it
    /// is. Where that fails it does not live.
    fn close(&self, gadgets: Gadgets, life: &mut Life<'_>) {
        let copy = self.copy;
        // The kernel's choice when memory runs out, before the target; but not where it would end
        // all of the group.
        if !life.budget.dies_as_one() {
            let _ = std::fs::write(format!("/proc/{copy}/oom_score_adj"), "1000");
        }
        let stopped = loop {
            match inject::await_stop(copy, Instant::now() + LOOK) {
                Ok(false) => life.look(),
                stopped => break stopped.is_ok(),
            }
        };
        let (at, held) = &self.stack;
        let sealed = stopped
            && set_up(copy, copy, sys::O_EXITKILL).is_ok()
            && sys::write_memory(copy, *at, held).is_ok();
        if !sealed {
            sys::kill_and_free(copy);
            return;
        }
        let Ok(mut host) = Host::of_copy(copy, gadgets, || life.look()) else {
            return;
        };
        let _ = host.set_name(copy, COPY_NAME);
        let all = [0, u64::from(u32::MAX), 0];
        if matches!(host.call(inject::SYS_CLOSE_RANGE, &all), Ok((0, _))) {
            return;
        }
        // Before Linux 5.9.
        for fd in numbers_in(&format!("/proc/{copy}/fd")).unwrap_or_default() {
            let _ = host.call(inject::SYS_CLOSE, &[u64::from(fd)]);
        }
    }
}

/// What is to be told of a thread that makes calls.
const OPTIONS: u64 = sys::O_TRACESYSGOOD | sys::O_TRACECLONE;
/// A thread that is held makes a few calls: no longer, whatever happens.
const STEP: Duration = Duration::from_secs(2);

/// Says what is to be told of a stopped thread, and takes a filter off its system calls.
fn set_up(pid: u32, tid: u32, more: u64) -> io::Result<()> {
    let options = OPTIONS | more;
    match sys::set_options(tid, options | sys::O_SUSPEND_SECCOMP) {
        // It takes rights that are needed only where there is a filter.
        Err(_) if is_unfiltered(pid, tid) => sys::set_options(tid, options),
        done => done,
    }
}

fn is_unfiltered(pid: u32, tid: u32) -> bool {
    let status = super::read_text(pid, &format!("task/{tid}/status"), 64 << 10);
    status.is_ok_and(|status| super::number(&status, "Seccomp").unwrap_or(0) == 0)
}

/// The memory of a target, taken while it stands still.
struct Taking<'a> {
    pid: u32,
    buffer: &'a Shared,
    /// Opened before the target is stopped, as is all that can be.
    maps: File,
    pages: File,
    taken: TakenMemory,
    filled: usize,
}

impl<'a> Taking<'a> {
    fn open(pid: u32, buffer: &'a Shared) -> Result<Self, Fault> {
        let open = |file| File::open(format!("/proc/{pid}/{file}")).map_err(other);
        Ok(Self {
            pid,
            buffer,
            maps: open("maps")?,
            pages: open("pagemap")?,
            taken: TakenMemory::default(),
            filled: 0,
        })
    }

    /// Takes all that may change: private writable mappings. What is only read, or shared with
    /// other processes, is read later from the target itself.
    fn take(&mut self, until: Instant) -> Result<(), Fault> {
        let mut text = Vec::new();
        (&mut self.maps)
            .take(maps::MAX_MAPS)
            .read_to_end(&mut text)
            .map_err(other)?;
        self.taken.maps = String::from_utf8_lossy(&text).into_owned();
        self.in_time(until)?;
        let private: Vec<_> = maps::private(&self.taken.maps).collect();
        for (range, of_file) in private {
            self.taken.ranges.push((range.start, range.end));
            let whole = vec![(range.start, range.end)];
            let there = match of_file {
                // What nobody has written is not present, but not zero either.
                true => whole,
                false => {
                    let there = maps::present(&self.pages, range.start, range.end, Some(until));
                    there.unwrap_or(whole)
                }
            };
            self.in_time(until)?;
            for (start, end) in there {
                self.piecewise(start, end, until)?;
            }
        }
        Ok(())
    }

    fn piecewise(&mut self, mut at: u64, end: u64, until: Instant) -> Result<(), Fault> {
        while at < end {
            self.in_time(until)?;
            let piece = PIECE.min(end - at);
            match self.buffer.fill(self.filled, piece as usize, self.pid, at) {
                Ok(got @ 1..) => {
                    self.filled += got;
                    match self.taken.runs.last_mut() {
                        Some(last) if last.0 + last.1 == at => last.1 += got as u64,
                        _ => self.taken.runs.push((at, got as u64)),
                    }
                    at += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                    return Err(Fault::Large(self.filled as u64));
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    return Err(Fault::Gone);
                }
                // Not to be read by anybody, such as a device's.
                _ => at += PAGE,
            }
        }
        Ok(())
    }

    fn in_time(&self, until: Instant) -> Result<(), Fault> {
        match Instant::now() < until {
            true => Ok(()),
            false => Err(Fault::Large(self.filled as u64)),
        }
    }
}

/// Zombies that guards left in a process when they were killed with their memtrace, and
/// whether a copy lives in it, which another memtrace reads.
///
/// A copy is a child that sends no signal when it ends, which no Go program makes by itself.
/// It has its own name, but for the first moment of its life.
///
/// Where a guard of our own was killed just now, so that one without its name is its copy, `any`
/// is true; else such a one must be older than any program waits for its children.
pub(super) fn leftovers(pid: u32, any: bool) -> (Vec<u32>, bool) {
    const OLD_TICKS: u64 = 50;
    let mut zombies = Vec::new();
    let mut living = false;
    for tid in threads(pid).unwrap_or_default() {
        let path = format!("task/{tid}/children");
        // Not every kernel has it.
        let Ok(text) = super::read_text(pid, &path, 1 << 20) else {
            break;
        };
        for child in text.split_ascii_whitespace().filter_map(|n| n.parse().ok()) {
            let Ok(stat) = super::read_text(child, "stat", 4096) else {
                continue;
            };
            let Some(child_stat) = Stat::parse(&stat) else {
                continue;
            };
            let named = child_stat.name == COPY_NAME;
            match child_stat.state {
                'Z' if named => zombies.push(child),
                'Z' if child_stat.exit_signal == 0
                    && (any || child_stat.started + OLD_TICKS < ticks_now()) =>
                {
                    zombies.push(child);
                }
                'Z' | 'X' => {}
                _ => living |= named,
            }
        }
    }
    (zombies, living)
}

struct Stat<'a> {
    name: &'a str,
    state: char,
    /// Clock ticks after the boot.
    started: u64,
    exit_signal: i32,
}

impl<'a> Stat<'a> {
    fn parse(stat: &'a str) -> Option<Self> {
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let name = stat.get(open + 1..close)?;
        let rest: Vec<&str> = stat.get(close + 1..)?.split_ascii_whitespace().collect();
        // Fields as proc(5) numbers them, from the third on.
        let field = |number: usize| rest.get(number - 3);
        Some(Self {
            name,
            state: field(3)?.chars().next()?,
            started: field(22)?.parse().ok()?,
            exit_signal: field(38)?.parse().ok()?,
        })
    }
}

fn ticks_now() -> u64 {
    const TICKS: f64 = 100.0;
    let text = crate::proc::read_text(std::path::Path::new("/proc/uptime"), 4096);
    let seconds = text
        .ok()
        .and_then(|t| t.split(' ').next()?.parse::<f64>().ok());
    seconds.map_or(0, |s| (s * TICKS) as u64)
}

impl Process {
    /// Has the target reap children of its that have ended.
    fn reap(&self, zombies: &[u32]) {
        let pid = self.inside.pid;
        let numbers = zombies.iter().filter_map(|z| number_inside(pid, *z));
        let numbers: Vec<u64> = numbers.collect();
        if numbers.is_empty() {
            return;
        }
        // Threads come and go, and not each one serves at each moment.
        for _ in 0..50 {
            let Some(listed) = threads(pid).filter(|_| !self.has_ended()) else {
                return;
            };
            // One that runs or waits for a disk is left alone. Best is one that waits for a lock,
            // which does not notice, while other calls may give EINTR; all may have been stopped.
            let mut able: Vec<(char, bool, u32)> = (listed.into_iter())
                .filter_map(|tid| {
                    let state = state(pid, tid).filter(|s| matches!(s, 'S' | 'T'))?;
                    Some((state, !waits_for_lock(pid, tid), tid))
                })
                .collect();
            able.sort_unstable();
            if let Some(gadgets) = self.gadgets_now() {
                for (_, _, tid) in able {
                    if self.reap_in_thread(tid, gadgets, &numbers).is_some() {
                        return;
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where its instructions are. It may have become another program meanwhile, which is left
    /// alone where it may not be stopped.
    fn gadgets_now(&self) -> Option<Gadgets> {
        let inside = &self.inside;
        let pid = inside.pid;
        let same = inside.executable.is_some() && executable(pid) == inside.executable;
        if let Some(gadgets) = inside.gadgets.filter(|g| same && maps::confirm(pid, g)) {
            return Some(gadgets);
        }
        if inside.programs == Programs::Go && !target::is_go(pid) {
            return None;
        }
        let text = super::read_text(pid, "maps", maps::MAX_MAPS).ok()?;
        maps::gadgets(pid, &maps::parse(&text))
    }

    /// This process ends where that takes too long: an `execve` may wait for it.
    fn reap_in_thread(&self, tid: u32, gadgets: Gadgets, numbers: &[u64]) -> Option<()> {
        /// Also for a thread that gets no processor. It is not given up: once it stops, somebody
        /// must let it go.
        const MOST: Duration = Duration::from_secs(5);
        let pid = self.inside.pid;
        sys::end_within(Some(MOST));
        // Refused where it may not be used, before anything is stopped.
        let seized = match sys::seize(tid, OPTIONS | sys::O_SUSPEND_SECCOMP) {
            Err(_) if is_unfiltered(pid, tid) => sys::seize(tid, OPTIONS),
            done => done,
        };
        let done = seized.ok().and_then(|()| {
            let _ = sys::interrupt(tid);
            if !inject::await_stop(tid, Instant::now() + 2 * MOST).ok()? {
                return None;
            }
            sys::end_within(Some(STEP));
            let done = wait_in_thread(pid, tid, gadgets, numbers);
            if sys::detach(tid).is_err() {
                // It has ended, and its end must be heard of.
                let _ = sys::wait(tid, Some(Instant::now() + STEP));
            }
            done
        });
        sys::end_within(None);
        done
    }
}

/// Has a stopped thread wait for children that have ended.
fn wait_in_thread(pid: u32, tid: u32, gadgets: Gadgets, numbers: &[u64]) -> Option<()> {
    let registers = sys::registers(tid).ok()?;
    inject::fitness(&registers)?;
    if inject::near_end_of_stack(pid, &registers) || !maps::confirm(pid, &gadgets) {
        return None;
    }
    let mut host = Host::new(pid, tid, registers, gadgets).ok()?;
    let mut all = Some(());
    for number in numbers {
        let waited = host.call(inject::SYS_WAIT4, &wait_for(*number));
        all = waited.ok().and(all);
    }
    let _ = host.restore(pid);
    if host.stopped_by_signal {
        sys::kill(pid, libc::SIGSTOP);
    }
    all
}

/// Device and inode of the executable.
pub(super) fn executable(pid: u32) -> Option<(u64, u64)> {
    let found = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((found.dev(), found.ino()))
}

fn waits_for_lock(pid: u32, tid: u32) -> bool {
    super::read_text(pid, &format!("task/{tid}/syscall"), 4096)
        .is_ok_and(|text| text.split(' ').next() == Some(&inject::SYS_FUTEX.to_string()))
}

/// The number of a child in the eyes of its parent, which may be in a container.
fn number_inside(pid: u32, child: u32) -> Option<u64> {
    let numbers = |pid| {
        let status = super::read_text(pid, "status", 64 << 10).ok()?;
        let Some(numbers) = super::field(&status, "NSpid") else {
            // Before Linux 4.1.
            return Some(vec![u64::from(child)]);
        };
        let numbers = numbers.split_ascii_whitespace().map(|n| n.parse().ok());
        numbers.collect::<Option<Vec<u64>>>()
    };
    let (parent, child) = (numbers(pid)?, numbers(child)?);
    child.get(parent.len().checked_sub(1)?).copied()
}

fn wait_for(child: u64) -> [u64; 4] {
    let flags = (libc::__WALL | libc::WNOHANG) as u32;
    [child, 0, u64::from(flags), 0]
}

/// The threads of a process; `None` where there is none.
pub(super) fn threads(pid: u32) -> Option<Vec<u32>> {
    numbers_in(&format!("/proc/{pid}/task"))
}

fn numbers_in(folder: &str) -> Option<Vec<u32>> {
    let listed = std::fs::read_dir(folder).ok()?;
    Some(
        listed
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .collect(),
    )
}

/// The state of a thread, as `/proc` writes it: `R`, `S`, `D` …; `None` where it is no more.
pub(super) fn state(pid: u32, tid: u32) -> Option<char> {
    let text = super::read_text(pid, &format!("task/{tid}/stat"), 4096).ok()?;
    text.get(text.rfind(')')? + 2..)?.chars().next()
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
