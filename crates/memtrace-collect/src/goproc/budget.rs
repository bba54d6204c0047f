//! What a target and its machine can spare while a copy of it lives.
//!
//! A copy costs the target's control group page tables at once, and a page for each that the
//! target writes meanwhile; and it takes a place among the processes of its group, its user
//! and the machine. Each of them is looked at before the copy is made, and every few
//! milliseconds while it lives, since the target spends of the same.

use std::path::{Path, PathBuf};

use super::sys;
use crate::proc::{self, Groups};

/// Left alone in a group's memory, whatever the target: room for what is charged between two
/// looks, and while the copy ends.
const MEMORY_FLOOR: u64 = 32 << 20;
/// The same for each processor that the target can keep busy: at most that much is written
/// between two looks, at 2 GB a second.
const MEMORY_FLOOR_EACH: u64 = 8 << 20;
/// Page tables: 8 bytes for each page of 4 KiB, and half as much again for the upper levels
/// and the kernel's own records of a process.
const TABLES_SHARE: u64 = 340;
const TABLES: u64 = 2 << 20;
/// Places for processes and threads that are left alone: a runtime that grows busy starts
/// some dozens of threads at once.
const PIDS_FLOOR: u64 = 64;
/// As many again must be free before a copy is made.
const PIDS_NEEDED: u64 = 2 * PIDS_FLOOR;
/// Scheduling entities of the machine between two exact counts of a user's processes.
const LARGE: u64 = 64 << 10;

/// What ran short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// Bytes free below the limit of the control group, or on the machine, and needed.
    Memory { group: bool, free: u64, needed: u64 },
    /// Processes and threads that may still be started, and needed.
    Pids { free: u64, needed: u64 },
}

/// The limits of one target.
#[derive(Debug)]
pub(super) struct Budget {
    memory: Option<Groups>,
    pids: Option<Groups>,
    user: Option<User>,
    machine: Option<u64>,
    /// Bytes that it asked for, where the machine promises no more than it has.
    promised: Option<u64>,
    /// The kernel ends all of the group when it ends one.
    as_one: bool,
    floor: u64,
}

/// The user whose processes count against a limit.
#[derive(Clone, Copy, Debug)]
struct User {
    id: u32,
    limit: u64,
    /// When it was counted: processes and threads of the user and of the machine.
    counted: (u64, u64),
}

impl Budget {
    /// Finds the limits that hold for a process. `status` is that of `/proc`.
    pub(super) fn of(pid: u32, status: &str) -> Self {
        let root = Path::new("/proc");
        let threads = super::number(status, "Threads").unwrap_or(1);
        let allowed = super::field(status, "Cpus_allowed").map_or(1, processors);
        let processors = allowed.min(sys::processors());
        let memory = Groups::of(root, pid, "memory");
        Self {
            as_one: memory.as_ref().is_some_and(Groups::dies_as_one),
            promised: promises().and_then(|_| proc::kib_field(status, "VmData")),
            memory,
            pids: Groups::of(root, pid, "pids"),
            user: User::of(pid, status),
            machine: most_tasks(),
            floor: MEMORY_FLOOR + MEMORY_FLOOR_EACH * threads.min(processors),
        }
    }

    /// What is lacking for a copy of a process of so many bytes of anonymous memory, of which
    /// the target may write `share` meanwhile.
    pub(super) fn lacks(&self, anonymous: u64, share: f64) -> Option<Short> {
        let written = (anonymous as f64 * share.clamp(0.0, 1.0)) as u64;
        let needed = anonymous / TABLES_SHARE + TABLES + written + self.floor;
        // A copy is promised all at once that the target was promised.
        let promise = self.promised.map(|bytes| bytes + self.floor);
        self.short(needed, promise, PIDS_NEEDED)
    }

    /// What is running short while a copy lives.
    pub(super) fn runs_short(&self) -> Option<Short> {
        self.short(self.floor, self.promised.map(|_| self.floor), PIDS_FLOOR)
    }

    /// Whether the end of one process for want of memory is the end of all of its group.
    pub(super) fn dies_as_one(&self) -> bool {
        self.as_one
    }

    /// Bytes of memory that are free for this process; `None` where nobody tells.
    pub(super) fn free_memory(&self) -> Option<u64> {
        let in_group = self.memory.as_ref().and_then(|g| g.memory_room(u64::MAX));
        [in_group, available()].into_iter().flatten().min()
    }

    fn short(&self, memory: u64, promise: Option<u64>, pids: u64) -> Option<Short> {
        let in_group = self.memory.as_ref().and_then(|g| g.memory_room(memory));
        let rooms = [
            (true, in_group, memory),
            (false, available(), memory),
            (
                false,
                promise.and_then(|_| promises()),
                promise.unwrap_or(0),
            ),
        ];
        for (group, free, needed) in rooms {
            if let Some(free) = free.filter(|free| *free < needed) {
                return Some(Short::Memory {
                    group,
                    free,
                    needed,
                });
            }
        }
        let tasks = tasks();
        let rooms = [
            self.pids.as_ref().and_then(Groups::pids_room),
            self.user.and_then(|u| u.room(tasks?)),
            self.machine
                .zip(tasks)
                .map(|(most, now)| most.saturating_sub(now)),
        ];
        let free = rooms.into_iter().flatten().min()?;
        (free < pids).then_some(Short::Pids { free, needed: pids })
    }
}

impl User {
    /// `None` where no limit holds: for root, and for who may exceed it.
    fn of(pid: u32, status: &str) -> Option<Self> {
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        const CAP_SYS_RESOURCE: u64 = 1 << 24;
        let users = super::field(status, "Uid")?;
        let id: u32 = users.split_ascii_whitespace().next()?.parse().ok()?;
        let capabilities = super::field(status, "CapEff")?;
        let capabilities = u64::from_str_radix(capabilities, 16).ok()?;
        if id == 0 || capabilities & (CAP_SYS_ADMIN | CAP_SYS_RESOURCE) != 0 {
            return None;
        }
        let limits = super::read_text(pid, "limits", 64 << 10).ok()?;
        let limits = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max processes"))?;
        let limit = limits.split_ascii_whitespace().next()?.parse().ok()?;
        let mut user = Self {
            id,
            limit,
            counted: (0, 0),
        };
        let tasks = tasks()?;
        // Where all processes of the machine would fit, nobody need count.
        user.counted = match tasks.saturating_add(LARGE) < limit {
            true => (tasks, tasks),
            false => (user.count(), tasks),
        };
        Some(user)
    }

    /// Its processes and threads.
    fn count(&self) -> u64 {
        let listed = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = listed.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let of = |pid| {
            let status = super::read_text(pid, "status", 64 << 10).ok()?;
            let user = super::field(&status, "Uid")?
                .split_ascii_whitespace()
                .next()?;
            (user.parse() == Ok(self.id)).then(|| super::number(&status, "Threads"))?
        };
        pids.filter_map(of).sum()
    }

    /// How many it may still start when the machine has so many tasks: what the machine has
    /// more than when they were counted may all be its own.
    fn room(&self, tasks: u64) -> Option<u64> {
        let (own, all) = self.counted;
        let now = own.saturating_add(tasks.saturating_sub(all));
        Some(self.limit.saturating_sub(now))
    }
}

/// Processes and threads of the machine.
fn tasks() -> Option<u64> {
    entities().map(|(_, all)| all)
}

/// Processes and threads that run or wait for a processor, and all.
fn entities() -> Option<(u64, u64)> {
    let text = proc::read_text(Path::new("/proc/loadavg"), 4096).ok()?;
    let (running, all) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
    Some((running.parse().ok()?, all.parse().ok()?))
}

/// How many times longer than on a machine at rest a thread takes for its work: how many there
/// are for each processor.
pub(super) fn crowding() -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    // One of them is the thread that asks.
    let running = entities().map_or(0, |(running, _)| running.saturating_sub(1));
    (running as f64 / processors as f64).max(1.0)
}

/// The most that it may have.
fn most_tasks() -> Option<u64> {
    let limits = ["threads-max", "pid_max"].map(|name| {
        let path = PathBuf::from("/proc/sys/kernel").join(name);
        proc::read_text(&path, 4096)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    });
    limits.into_iter().flatten().min()
}

/// Bytes that the machine may still promise, where it promises no more than it has
/// (`vm.overcommit_memory` is 2): who asks for more is refused, and a runtime ends then.
fn promises() -> Option<u64> {
    let read = |path: &str| proc::read_text(Path::new(path), 64 << 10).ok();
    if read("/proc/sys/vm/overcommit_memory")?.trim() != "2" {
        return None;
    }
    // What the kernel keeps for its administrator, and for a user to end a program.
    let kept = ["admin_reserve_kbytes", "user_reserve_kbytes"].map(|name| {
        let kib = read(&format!("/proc/sys/vm/{name}"));
        kib.and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    });
    let left = promises_left(&read("/proc/meminfo")?)?;
    Some(left.saturating_sub(kept.iter().sum::<u64>() << 10))
}

fn promises_left(meminfo: &str) -> Option<u64> {
    let limit = proc::kib_field(meminfo, "CommitLimit")?;
    Some(limit.saturating_sub(proc::kib_field(meminfo, "Committed_AS")?))
}

/// Processors in a mask of `/proc/PID/status`.
fn processors(mask: &str) -> u64 {
    let bits = mask.chars().filter_map(|c| c.to_digit(16));
    bits.map(|digit| u64::from(digit.count_ones()))
        .sum::<u64>()
        .max(1)
}

/// Bytes that the machine can give without swapping.
fn available() -> Option<u64> {
    let text = proc::read_text(Path::new("/proc/meminfo"), 64 << 10).ok()?;
    proc::kib_field(&text, "MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(user: Option<User>, machine: Option<u64>) -> Budget {
        Budget {
            memory: None,
            pids: None,
            user,
            machine,
            promised: None,
            as_one: false,
            floor: MEMORY_FLOOR,
        }
    }

    #[test]
    fn a_machine_or_user_without_room() {
        let tasks = tasks().unwrap();
        assert_eq!(budget(None, Some(tasks + 1_000_000)).lacks(0, 0.1), None);
        let full = budget(None, Some(tasks)).lacks(0, 0.1);
        assert!(
            matches!(
                full,
                Some(Short::Pids {
                    needed: PIDS_NEEDED,
                    ..
                })
            ),
            "{full:?}"
        );
        let user = |limit| User {
            id: 1,
            limit,
            counted: (10, tasks),
        };
        assert_eq!(budget(Some(user(1_000_000)), None).runs_short(), None);
        assert!(budget(Some(user(20)), None).runs_short().is_some());
    }

    #[test]
    fn more_than_the_machine_has() {
        let short = budget(None, None).lacks(1 << 50, 1.0);
        assert!(
            matches!(short, Some(Short::Memory { group: false, .. })),
            "{short:?}"
        );
    }

    #[test]
    fn promises_and_processors() {
        let meminfo = "MemTotal: 9 kB\nCommitLimit:    1000 kB\nCommitted_AS:    400 kB\n";
        assert_eq!(promises_left(meminfo), Some(600 << 10));
        assert_eq!(
            promises_left("CommitLimit: 1 kB\nCommitted_AS: 4 kB\n"),
            Some(0)
        );
        assert_eq!(processors("3"), 2);
        assert_eq!(processors("ffffffff,0000000f"), 36);
    }

    #[test]
    fn what_the_machine_starts_may_be_the_users() {
        let user = User {
            id: 1,
            limit: 100,
            counted: (30, 500),
        };
        assert_eq!(user.room(500), Some(70));
        assert_eq!(user.room(560), Some(10));
        assert_eq!(user.room(900), Some(0));
        assert_eq!(user.room(10), Some(70));
    }
}
