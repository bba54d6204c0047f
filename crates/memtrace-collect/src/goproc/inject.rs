//! A system call run by a thread of another process (amd64).
//!
//! The thread is in a ptrace stop. Its registers are set to a `syscall; ret` of the
//! target's own code, and it is let run over the call and stopped again before the
//! next instruction. Nothing of the target's code is written.
//!
//! Were the tracer killed in between, the thread would go on with foreign registers.
//! So the stack below the thread's own holds a frame as a signal handler's, and the
//! `ret` leads to the code that returns from a signal: the thread finds its way back
//! by itself, at whatever point: the registers lead to the frame before anything else of the
//! thread is changed, and until all else is as it was. A process that `clone` makes gets a frame
//! that leads to `exit`.
//!
//! ```text
//!  rsp ──▶ in use
//!          red zone, 128 bytes
//!          frame of the thread:  sigreturn │ ucontext: registers, signal mask
//!          frame of a new process: sigreturn │ ucontext: exit_group(0)
//! ```

use std::io;
use std::time::{Duration, Instant};

use super::maps::Gadgets;
use super::sys::{self, REGISTER_WORDS, RawRegisters, Stop};

// Order of `user_regs_struct`.
pub(super) const R15: usize = 0;
pub(super) const R14: usize = 1;
pub(super) const R13: usize = 2;
pub(super) const R12: usize = 3;
pub(super) const RBP: usize = 4;
pub(super) const RBX: usize = 5;
pub(super) const R11: usize = 6;
pub(super) const R10: usize = 7;
pub(super) const R9: usize = 8;
pub(super) const R8: usize = 9;
pub(super) const RAX: usize = 10;
pub(super) const RCX: usize = 11;
pub(super) const RDX: usize = 12;
pub(super) const RSI: usize = 13;
pub(super) const RDI: usize = 14;
pub(super) const ORIG_RAX: usize = 15;
pub(super) const RIP: usize = 16;
pub(super) const CS: usize = 17;
pub(super) const EFLAGS: usize = 18;
pub(super) const RSP: usize = 19;
pub(super) const SS: usize = 20;
pub(super) const FS_BASE: usize = 21;

pub(super) const SYS_CLONE: u64 = 56;
pub(super) const SYS_WAIT4: u64 = 61;
pub(super) const SYS_FUTEX: u64 = 202;
const SYS_PRCTL: u64 = 157;
const SYS_EXIT_GROUP: u64 = 231;
pub(super) const SYS_CLOSE_RANGE: u64 = 436;
pub(super) const SYS_CLOSE: u64 = 3;

/// What the kernel leaves in rax of a system call that it means to run again.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

const RED_ZONE: u64 = 128;
/// A frame without the siginfo, which the return does not read.
const FRAME: usize = 312;
/// Both frames, and room to align them.
const SCRATCH: usize = 2 * FRAME + 16;
/// How often somebody looks whether a call should go on.
const LOOK: Duration = Duration::from_millis(3);

/// A thread that was made to run system calls.
pub(super) struct Host<'a> {
    tid: u32,
    gadgets: Gadgets,
    original: RawRegisters,
    mask: u64,
    scratch: u64,
    /// The frame that the thread goes on with when nobody stops it.
    stack: u64,
    /// What the scratch held.
    held: Vec<u8>,
    /// A SIGSTOP came in between: it cannot be blocked, and must not be lost.
    pub(super) stopped_by_signal: bool,
    /// Threads that stand still meanwhile, and until when at most.
    waiting: Option<(Instant, Vec<u32>)>,
    overdue: bool,
    /// Called every few milliseconds while a call runs.
    look: Option<Box<dyn FnMut() + 'a>>,
}

/// How well a stopped thread serves, the best first; `None` where it must not be used.
pub(super) fn fitness(registers: &RawRegisters) -> Option<u32> {
    // 64-bit code only.
    if registers[CS] != 0x33 {
        return None;
    }
    // In its own code it has more than these registers to lose, were the tracer killed.
    let call = registers[ORIG_RAX];
    if (call as i64) < 0 {
        return None;
    }
    // Waiting in the kernel; the kernel runs the call again as if nothing had been.
    Some(match (registers[RAX] as i64, call) {
        (ERESTARTSYS | ERESTARTNOHAND | ERESTARTNOINTR, SYS_FUTEX) => 0,
        (ERESTARTSYS | ERESTARTNOHAND | ERESTARTNOINTR, _) => 1,
        (ERESTART_RESTARTBLOCK, _) => 3,
        _ => 2,
    })
}

/// A goroutine's stack ends among other memory of the program, without a guard page: nothing
/// may be written below it, not even for a moment in which others run. It takes some calls of
/// the system, so that it is asked of the best.
pub(super) fn near_end_of_stack(pid: u32, registers: &RawRegisters) -> bool {
    const NEEDED: u64 = RED_ZONE + SCRATCH as u64 + 16;
    let word = |address: u64| {
        let mut bytes = [0; 8];
        let read = sys::read_memory(pid, address, &mut bytes);
        (read.ok()? == 8).then(|| u64::from_le_bytes(bytes))
    };
    // Where Go keeps the current goroutine, whose first words are the ends of its stack: in
    // r14, and in thread-local storage.
    let kept = word(registers[FS_BASE].wrapping_sub(8));
    let rsp = registers[RSP];
    [Some(registers[R14]), kept]
        .into_iter()
        .flatten()
        .any(|goroutine| {
            let (Some(low), Some(high)) = (word(goroutine), word(goroutine.wrapping_add(8))) else {
                return false;
            };
            low <= rsp && rsp < high && rsp - low < NEEDED
        })
}

impl<'a> Host<'a> {
    /// Prepares a thread that is in an event stop.
    ///
    /// # Errors
    /// What the kernel refuses; the thread is then as it was.
    pub(super) fn new(
        pid: u32,
        tid: u32,
        original: RawRegisters,
        gadgets: Gadgets,
    ) -> io::Result<Self> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let scratch = original[RSP]
            .checked_sub(RED_ZONE + SCRATCH as u64)
            .ok_or_else(bad)?
            & !15;
        let mut held = vec![0; SCRATCH];
        if sys::read_memory(pid, scratch, &mut held)? != SCRATCH {
            return Err(bad());
        }
        let mask = sys::signal_mask(tid)?;
        let host = Self {
            tid,
            gadgets,
            original,
            mask,
            scratch,
            stack: scratch,
            held,
            stopped_by_signal: false,
            waiting: None,
            overdue: false,
            look: None,
        };
        let mut frames = host.frame(&restarted(&original), mask);
        let mut end = [0; REGISTER_WORDS];
        end[RAX] = SYS_EXIT_GROUP;
        end[RIP] = gadgets.call;
        end[RSP] = host.new_stack();
        end[EFLAGS] = 0x202;
        end[CS] = original[CS];
        end[SS] = original[SS];
        frames.extend(host.frame(&end, u64::MAX));
        sys::write_memory(pid, scratch, &frames)?;
        let mut back = host.at(gadgets.sigreturn);
        back[RSP] = scratch + 8;
        let ready =
            sys::set_registers(tid, &back).and_then(|()| sys::set_signal_mask(tid, u64::MAX));
        if let Err(error) = ready {
            let _ = host.restore(pid);
            return Err(error);
        }
        Ok(host)
    }

    /// Registers with which the thread runs from there on the stack of its frame.
    fn at(&self, address: u64) -> RawRegisters {
        let mut registers = self.original;
        // Tells the kernel that no call of the thread's own is to be run again.
        registers[ORIG_RAX] = u64::MAX;
        registers[RIP] = address;
        registers[RSP] = self.stack;
        registers
    }

    /// Stack for a process that `clone` makes: what it runs on its own is its end.
    pub(super) fn new_stack(&self) -> u64 {
        self.scratch + FRAME as u64
    }

    /// A copy of the process, in its first stop: it has the same frames, and its one
    /// thread stands on the one that ends it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn of_copy(tid: u32, gadgets: Gadgets, look: impl FnMut() + 'a) -> io::Result<Self> {
        let original = sys::registers(tid)?;
        Ok(Self {
            tid,
            gadgets,
            original,
            mask: u64::MAX,
            scratch: original[RSP],
            stack: original[RSP],
            held: Vec::new(),
            stopped_by_signal: false,
            waiting: None,
            overdue: false,
            look: Some(Box::new(look)),
        })
    }

    /// Lets other stopped threads go where the calls of this one are not done by then: it may
    /// get no processor for long.
    pub(super) fn let_go_at(&mut self, until: Instant, others: Vec<u32>) {
        self.waiting = Some((until, others));
    }

    /// The others were let go.
    pub(super) fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// The next stop of the thread.
    fn wait(&mut self) -> io::Result<Stop> {
        loop {
            let look = || Instant::now() + LOOK;
            let until = self.waiting.as_ref().map(|w| w.0);
            let until = until.or_else(|| self.look.as_ref().map(|_| look()));
            if let Some(stop) = sys::wait(self.tid, until)? {
                return Ok(stop);
            }
            if let Some((_, others)) = self.waiting.take() {
                self.overdue = true;
                for tid in others {
                    let _ = sys::detach(tid);
                }
            } else if let Some(look) = &mut self.look {
                look();
            }
        }
    }

    /// Runs a system call: its result, and the process that it made, by its number
    /// here. The thread is in an event stop before and after.
    ///
    /// # Errors
    /// The thread is gone, or tracing it is.
    pub(super) fn call(&mut self, number: u64, arguments: &[u64]) -> io::Result<(i64, u32)> {
        let mut registers = self.at(self.gadgets.call);
        registers[RAX] = number;
        for (place, argument) in [RDI, RSI, RDX, R10, R8, R9].into_iter().zip(arguments) {
            registers[place] = *argument;
        }
        // A signal that cannot be blocked makes the call come back unfinished.
        for _ in 0..16 {
            sys::set_registers(self.tid, &registers)?;
            let (result, child) = self.run_over()?;
            if result != ERESTARTNOINTR && result != ERESTARTSYS {
                return Ok((result, child));
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn run_over(&mut self) -> io::Result<(i64, u32)> {
        let mut child = 0;
        let mut entered = false;
        loop {
            sys::resume_to_syscall(self.tid)?;
            match self.wait()? {
                Stop::Syscall if entered => break,
                Stop::Syscall => entered = true,
                Stop::Clone => {
                    child = u32::try_from(sys::event_message(self.tid)?).unwrap_or(0);
                }
                Stop::Signal(libc::SIGSTOP) => self.stopped_by_signal = true,
                Stop::Signal(_) | Stop::Event => {}
                Stop::Gone => return Err(gone()),
            }
        }
        let result = sys::registers(self.tid)?[RAX] as i64;
        // From the exit of the call to a stop at which the kernel looks whether a call
        // is to be run again: registers put back there count as they did.
        sys::interrupt(self.tid)?;
        loop {
            sys::resume(self.tid, 0)?;
            match self.wait()? {
                Stop::Event => return Ok((result, child)),
                Stop::Gone => return Err(gone()),
                stop => {
                    self.stopped_by_signal |= stop == Stop::Signal(libc::SIGSTOP);
                    // Any stop ends an interruption.
                    sys::interrupt(self.tid)?;
                }
            }
        }
    }

    /// Gives a copy of the process a name of its own.
    pub(super) fn set_name(&mut self, copy: u32, name: &str) -> io::Result<()> {
        const PR_SET_NAME: u64 = 15;
        let mut text = [0; 16];
        let length = name.len().min(15);
        text[..length].copy_from_slice(&name.as_bytes()[..length]);
        let mut held = [0; 16];
        if sys::read_memory(copy, self.scratch, &mut held)? != held.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        sys::write_memory(copy, self.scratch, &text)?;
        let named = self.call(SYS_PRCTL, &[PR_SET_NAME, self.scratch]);
        // What is read of the copy must be the target's own.
        sys::write_memory(copy, self.scratch, &held)?;
        named.map(|_| ())
    }

    /// Puts back signal mask, registers and stack.
    pub(super) fn restore(&self, pid: u32) -> io::Result<()> {
        let mask = sys::set_signal_mask(self.tid, self.mask);
        sys::set_registers(self.tid, &self.original)?;
        // Of a thread that is no more: another program may be there now.
        self.restore_stack(pid)?;
        mask
    }

    fn restore_stack(&self, pid: u32) -> io::Result<()> {
        sys::write_memory(pid, self.scratch, &self.held)
    }

    /// Where the stack was written below what is in use, and what it held: a copy of the process
    /// has the same.
    pub(super) fn held_stack(self) -> (u64, Vec<u8>) {
        (self.scratch, self.held)
    }

    /// `struct rt_sigframe`: the address that `ret` takes, then the `ucontext`.
    fn frame(&self, registers: &RawRegisters, mask: u64) -> Vec<u8> {
        // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        let flags = 6;
        // A mode of the alternate stack that does not exist: it is left as it is.
        let no_alternate_stack = 0xff;
        let mut words = vec![self.gadgets.sigreturn, flags, 0, 0, no_alternate_stack, 0];
        words.extend(
            [
                R8, R9, R10, R11, R12, R13, R14, R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP,
                EFLAGS,
            ]
            .map(|place| registers[place]),
        );
        // cs, gs, fs, ss of 16 bits; err, trapno, oldmask, cr2.
        words.extend([registers[CS] & 0xffff | registers[SS] << 48, 0, 0, 0, 0]);
        // No floating point state: it begins anew, as calls leave it undefined anyway.
        words.extend([0; 9]);
        words.push(mask);
        debug_assert_eq!(words.len() * 8, FRAME);
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// Registers with which the thread runs its interrupted call again, or finds it
/// interrupted, without the kernel's help.
fn restarted(registers: &RawRegisters) -> RawRegisters {
    let mut registers = *registers;
    if registers[ORIG_RAX] as i64 >= 0 {
        match registers[RAX] as i64 {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                registers[RAX] = registers[ORIG_RAX];
                registers[RIP] = registers[RIP].wrapping_sub(2);
            }
            ERESTART_RESTARTBLOCK => registers[RAX] = i64::from(-libc::EINTR) as u64,
            _ => {}
        }
    }
    registers
}

/// Waits for the event stop of a thread that was interrupted, at most until `until`:
/// whether it came. Signals on the way are delivered.
pub(super) fn await_stop(tid: u32, until: Instant) -> io::Result<bool> {
    loop {
        match sys::wait(tid, Some(until))? {
            None => return Ok(false),
            Some(Stop::Event) => return Ok(true),
            Some(Stop::Gone) => return Err(gone()),
            Some(Stop::Signal(signal)) => {
                // Any stop ends an interruption: ask again, then deliver.
                sys::interrupt(tid)?;
                sys::resume(tid, signal)?;
            }
            Some(Stop::Clone | Stop::Syscall) => {
                sys::interrupt(tid)?;
                sys::resume(tid, 0)?;
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}
