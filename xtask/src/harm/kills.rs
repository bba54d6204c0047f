//! `kill -9` of memtrace, of its guard, of both, of the copy, at random moments: the target is
//! whole afterwards, and no snapshot is wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::invariants::{Baseline, Strangers, own_faults};
use super::shot::{Memtrace, Shot, Taken};
use super::targets::{Kind, Target};
use super::{Options, process};
use crate::tools::Outcome;

/// Targets of which one is hit after the other: with a heap that takes a while to read, with
/// stacks that have no room, in whose namespace or family nobody reaps.
const KINDS: [&str; 5] = ["larger", "cgo", "stacks", "pidns-init", "of-subreaper"];

/// Kills of each victim.
const FULL: u32 = 500;
const SHORT: u32 = 5;

/// A guard or a kernel that cleans up does it within this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Within this after its guard is there, a snapshot has stopped the target and let it go.
const EARLY: Duration = Duration::from_millis(8);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Memtrace,
    Guard,
    Both,
    Copy,
}

const VICTIMS: [(Victim, &str); 4] = [
    (Victim::Memtrace, "memtrace"),
    (Victim::Guard, "the guard"),
    (Victim::Both, "both"),
    (Victim::Copy, "the copy"),
];

/// What came of all kills of one victim.
#[derive(Default)]
struct Account {
    kills: u32,
    /// There was nobody to kill any more.
    late: u32,
    right: u32,
    /// Killed memtraces that had written their file before.
    written: u32,
    reasons: BTreeMap<String, u32>,
    zombies: usize,
}

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, span: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64;
        span.mul_f64(share)
    }
}

/// Kills each victim: a table for people, and what went wrong.
pub(crate) fn run(
    options: &Options,
    memtrace: &Memtrace,
    folder: &Path,
) -> Outcome<(String, Vec<String>)> {
    let each = options
        .count
        .unwrap_or(if options.full { FULL } else { SHORT });
    let names: Vec<&str> = match &options.kind {
        Some(name) => vec![name],
        None => KINDS.to_vec(),
    };
    let mut accounts: Vec<Account> = VICTIMS.iter().map(|_| Account::default()).collect();
    let mut faults = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let count = names.len() as u32;
        // All together are as many as was asked for.
        let share = each / count + u32::from((at as u32) < each % count);
        let kind = Kind::named(name)?;
        if let Err(error) = of_kind(kind, memtrace, folder, share, &mut accounts, &mut faults) {
            faults.push(format!("{name}: {error}"));
        }
        eprintln!("kills, {name}: done, {} times harm until now", faults.len());
    }
    let mut table = String::from(
        "| killed | times | too late | right snapshots | written before | refused | zombies, until the next snapshot |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut reasons = String::new();
    for ((_, name), account) in VICTIMS.iter().zip(&accounts) {
        let refused: u32 = account.reasons.values().sum();
        let _ = writeln!(
            table,
            "| {name} | {} | {} | {} | {} | {refused} | {} |",
            account.kills, account.late, account.right, account.written, account.zombies
        );
        for (reason, times) in &account.reasons {
            let _ = writeln!(reasons, "- {name}: {times} times: {reason}");
        }
    }
    let _ = write!(table, "\n{reasons}");
    Ok((table, faults))
}

fn of_kind(
    kind: Kind,
    memtrace: &Memtrace,
    folder: &Path,
    share: u32,
    accounts: &mut [Account],
    faults: &mut Vec<String>,
) -> Outcome {
    let mut target = Target::start(kind, folder, &memtrace.mark)?;
    let baseline = Baseline::of(&mut target, Duration::from_secs(2))?;
    let mut random = Random(share.into());
    let began = Instant::now();
    for _ in 0..3 {
        memtrace.take(&target)?;
    }
    let span = began.elapsed() / 3;
    for round in 0..share {
        for ((victim, name), account) in VICTIMS.iter().zip(accounts.iter_mut()) {
            let strangers = Strangers::new();
            let mut found = Vec::new();
            let shot = memtrace.shoot(target.pid)?;
            let moment = if round % 2 == 0 {
                random.below(EARLY)
            } else {
                random.below(span)
            };
            let (ended, hit) = kill(shot, *victim, &target, moment)?;
            account.kills += u32::from(hit);
            account.late += u32::from(!hit);
            if ended.status.code().is_none() {
                match memtrace.judge_killed(&ended, &target) {
                    Ok(written) => account.written += u32::from(written),
                    Err(fault) => found.push(fault),
                }
            } else {
                match memtrace.judge(&ended, Some(&target)) {
                    Ok(Taken::Good { .. }) => account.right += 1,
                    Ok(Taken::Refused(reason)) => {
                        *account.reasons.entry(reason).or_default() += 1;
                    }
                    Err(fault) => found.push(fault),
                }
            }
            found.extend(baseline.faults(&target, PATIENCE));
            let left = strangers.left(&target.family(), &memtrace.mark, Duration::from_secs(2));
            let (zombies, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|s| s.zombie);
            found.extend(others.iter().map(ToString::to_string));
            if *victim == Victim::Both && !zombies.is_empty() {
                account.zombies += zombies.len();
                // The next one sees to what nobody could see to.
                memtrace.take(&target)?;
                let left = strangers.left(&target.family(), &memtrace.mark, PATIENCE);
                found.extend(
                    left.iter()
                        .map(|s| format!("also after the next snapshot, {s}")),
                );
            } else {
                found.extend(zombies.iter().map(ToString::to_string));
            }
            found.extend(own_faults(&target.ask()?));
            faults.extend(found.into_iter().map(|fault| {
                format!(
                    "{}, {name} killed after {:.1} ms ({}): {fault}",
                    kind.name,
                    moment.as_secs_f64() * 1e3,
                    if round % 2 == 0 { "early" } else { "late" },
                )
            }));
        }
    }
    Ok(())
}

/// Kills a victim of a snapshot, `moment` after its guard is there: how the snapshot ended, and
/// whether there was somebody to kill.
fn kill(
    mut shot: Shot,
    victim: Victim,
    target: &Target,
    moment: Duration,
) -> Outcome<(super::shot::Ended, bool)> {
    let memtrace = shot.child.id();
    let mut over = || !matches!(shot.child.try_wait(), Ok(None));
    let mut guard = None;
    let mut copy = None;
    while !over() {
        guard = process::children(memtrace).first().copied();
        copy = guard.and_then(|g| copy_of(g, target));
        if guard.is_some() && (victim != Victim::Copy || copy.is_some()) {
            break;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    std::thread::sleep(moment);
    // It may be another by now: first there is one that only makes the other.
    copy = guard.and_then(|g| copy_of(g, target)).or(copy);
    let is_there = !over() && guard.is_some_and(|g| process::parent_of(g) == Some(memtrace));
    let victims = match victim {
        Victim::Memtrace => vec![Some(memtrace)],
        Victim::Guard => vec![guard],
        Victim::Both => vec![guard, Some(memtrace)],
        Victim::Copy => vec![copy.filter(|c| is_copy(*c, guard, target))],
    };
    let mut hit = is_there;
    for one in victims {
        hit &= is_there && one.is_some_and(kill_9);
    }
    Ok((shot.end()?, hit))
}

fn kill_9(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// The copy that a guard holds: it was made after the guard.
fn copy_of(guard: u32, target: &Target) -> Option<u32> {
    let candidates = (guard + 1..guard + 64).rev();
    candidates
        .into_iter()
        .find(|pid| is_copy(*pid, Some(guard), target))
}

fn is_copy(pid: u32, guard: Option<u32>, target: &Target) -> bool {
    let traced = process::tracer_of(pid);
    traced.is_some() && traced == guard && process::leader_of(pid) == Some(pid) && pid != target.pid
}
