//! Thousands of snapshots of many kinds of process, in turn.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::invariants::{Baseline, Strangers, own_faults, quick_faults};
use super::shot::{Memtrace, Taken};
use super::targets::{Busy, Kind, Target};
use super::{Options, process};
use crate::tools::Outcome;

/// The deadline of each hold, ms: what `memtrace snapshot` promises.
const DEADLINE_MS: f64 = 100.0;

/// A gap that the target sees may exceed the deadline by so many times what another process saw
/// at the same time: a busy machine makes everybody wait.
const OWN_GAP: f64 = 3.0;

/// How long something may be there after a snapshot: a target's own children live for less.
const SOON_GONE: Duration = Duration::from_secs(2);

/// Targets that run side by side.
const AT_ONCE: usize = 2;

/// With these any snapshot may be refused: there was no time.
const ALWAYS: &[&str] = &["try again"];

/// Of a kind that need not be refused, so many of a thousand may be where nothing else runs.
const REFUSED_OF_1000: usize = 20;

/// Of so many, where nothing else runs, one is taken of any kind.
const ENOUGH: usize = 10;

/// All snapshots of one kind.
struct Account {
    target: Target,
    baseline: Baseline,
    /// Still to take: quietly, and beside busy loops.
    left: [u32; 2],
    taken: u32,
    quiet: Measure,
    busy: Measure,
    refused: BTreeMap<String, usize>,
    refused_quiet: usize,
    warnings: BTreeMap<String, usize>,
    faults: Vec<String>,
    interrupted: i64,
    over: bool,
}

/// Pauses of one kind in one condition, ms.
#[derive(Default)]
struct Measure {
    pauses: Vec<f64>,
    /// As the target itself saw it, at worst.
    gap: f64,
    late: f64,
}

impl Measure {
    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.pauses.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len().saturating_sub(1) as f64 * q).ceil() as usize;
        sorted.get(at).copied().unwrap_or(0.0)
    }
}

/// Takes the snapshots: a table for people, and what went wrong.
pub(crate) fn run(
    options: &Options,
    memtrace: &Memtrace,
    kinds: &[Kind],
    folder: &Path,
) -> Outcome<(String, Vec<String>)> {
    let control = if options.full {
        Duration::from_secs(5)
    } else {
        Duration::from_millis(1500)
    };
    let mut rows = String::from(
        "| kind | snapshots | refused | pause p50 | p99 | max | busy p99 | max | own gap without | with | busy | EINTR | faults |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut faults = Vec::new();
    let mut notes = Vec::new();
    let mut total = 0;
    let (mut quiet, mut busy) = (Measure::default(), Measure::default());
    for some in kinds.chunks(AT_ONCE) {
        let kills = process::oom_kills();
        let (accounts, failed) = group(options, memtrace, some, control, folder);
        faults.extend(failed);
        for account in &accounts {
            total += account.taken;
            quiet.pauses.extend(&account.quiet.pauses);
            busy.pauses.extend(&account.busy.pauses);
            rows.push_str(&account.row());
            notes.extend(account.notes());
            let name = account.target.kind.name;
            faults.extend(account.faults.iter().map(|f| format!("{name}: {f}")));
        }
        let now = process::oom_kills();
        if now != kills {
            let more = now - kills;
            faults.push(format!(
                "the kernel ended {more} processes for want of memory"
            ));
        }
    }
    let _ = writeln!(
        rows,
        "\n{total} snapshots of {} kinds. Pause, ms: p50 {:.1}, p99 {:.1}, max {:.1}; under {} busy loops \
         p50 {:.1}, p99 {:.1}, max {:.1} ({} snapshots).",
        kinds.len(),
        quiet.quantile(0.5),
        quiet.quantile(0.99),
        quiet.quantile(1.0),
        options.busy,
        busy.quantile(0.5),
        busy.quantile(0.99),
        busy.quantile(1.0),
        busy.pauses.len(),
    );
    for note in notes {
        let _ = writeln!(rows, "- {note}");
    }
    Ok((rows, faults))
}

/// The snapshots of kinds that run side by side.
fn group(
    options: &Options,
    memtrace: &Memtrace,
    kinds: &[Kind],
    control: Duration,
    folder: &Path,
) -> (Vec<Account>, Vec<String>) {
    let mut failed = Vec::new();
    let mut accounts = Vec::new();
    for kind in kinds {
        match Account::open(*kind, options, control, folder, &memtrace.mark) {
            Ok(account) => accounts.push(account),
            Err(error) => failed.push(format!("{}: {error}", kind.name)),
        }
    }
    let mut witness = match Kind::named("plain").and_then(|plain| Witness::start(plain, folder)) {
        Ok(witness) => witness,
        Err(error) => {
            failed.push(error);
            return (accounts, failed);
        }
    };
    let strangers = Strangers::new();
    // A snapshot cleans up before it ends: the next one must not have to.
    let left_by = |strangers: &Strangers, accounts: &[Account]| {
        let family: Vec<u32> = accounts.iter().flat_map(|a| a.target.family()).collect();
        let left = strangers.left(&family, &memtrace.mark, SOON_GONE);
        left.first().map(ToString::to_string)
    };
    for account in &mut accounts {
        // The start of the others is of no snapshot.
        account.listen(None);
    }
    while accounts.iter().any(|a| a.goes_on(false)) {
        for account in &mut accounts {
            account.next(memtrace, &mut witness, false);
        }
        failed.extend(left_by(&strangers, &accounts));
    }
    if accounts.iter().any(|a| a.goes_on(true)) {
        match Busy::start(options.busy) {
            Ok(_busy) => {
                for account in &mut accounts {
                    account.listen(None);
                }
                while accounts.iter().any(|a| a.goes_on(true)) {
                    for account in &mut accounts {
                        account.next(memtrace, &mut witness, true);
                    }
                    failed.extend(left_by(&strangers, &accounts));
                }
            }
            Err(error) => failed.push(error),
        }
    }
    for account in accounts.iter_mut().filter(|a| !a.over) {
        let patience = Duration::from_secs(5);
        let more = account.baseline.faults(&account.target, patience);
        account.faults.extend(more);
        account.listen(None);
    }
    let family: Vec<u32> = accounts.iter().flat_map(|a| a.target.family()).collect();
    let left = strangers.left(&family, &memtrace.mark, Duration::from_secs(4));
    failed.extend(left.iter().take(5).map(ToString::to_string));
    if left.len() > 5 {
        failed.push(format!(
            "{} processes and zombies are left in all",
            left.len()
        ));
    }
    for account in &mut accounts {
        account.judge();
        eprintln!("{}", account.row().trim());
        for fault in &account.faults {
            eprintln!("  {fault}");
        }
    }
    (accounts, failed)
}

/// A target that no snapshot is taken of: it tells what the machine does to everybody.
struct Witness(Target);

impl Witness {
    fn start(plain: Kind, folder: &Path) -> Outcome<Self> {
        let name = "witness";
        Target::start(plain.called(name), folder, name).map(Self)
    }

    /// Its longest gap since it was asked before.
    fn gap_ms(&mut self) -> f64 {
        self.0.ask().map_or(0.0, |state| state.gap_ms)
    }
}

impl Account {
    fn open(
        kind: Kind,
        options: &Options,
        control: Duration,
        folder: &Path,
        mark: &str,
    ) -> Outcome<Self> {
        let mut target = Target::start(kind, folder, mark)?;
        let baseline = Baseline::of(&mut target, control)?;
        let all = options.count_of(&kind);
        // One beside busy loops takes ten times as long.
        let busy = if options.busy > 0 {
            all.div_ceil(16)
        } else {
            0
        };
        Ok(Self {
            target,
            baseline,
            left: [all - busy, busy],
            taken: 0,
            quiet: Measure::default(),
            busy: Measure::default(),
            refused: BTreeMap::new(),
            refused_quiet: 0,
            warnings: BTreeMap::new(),
            faults: Vec::new(),
            interrupted: 0,
            over: false,
        })
    }

    fn goes_on(&self, is_busy: bool) -> bool {
        !self.over && self.left[usize::from(is_busy)] > 0
    }

    fn measure(&mut self, is_busy: bool) -> &mut Measure {
        if is_busy {
            &mut self.busy
        } else {
            &mut self.quiet
        }
    }

    /// The next snapshot, if there is one to take.
    fn next(&mut self, memtrace: &Memtrace, witness: &mut Witness, is_busy: bool) {
        if !self.goes_on(is_busy) {
            return;
        }
        self.left[usize::from(is_busy)] -= 1;
        self.taken += 1;
        self.listen(None);
        witness.gap_ms();
        let look = process::Look::at(self.target.pid);
        match memtrace.take(&self.target) {
            Ok(Taken::Good { pause_ms, warnings }) => {
                self.measure(is_busy).pauses.push(pause_ms);
                if pause_ms > DEADLINE_MS {
                    self.faults
                        .push(format!("it stood still for {pause_ms:.1} ms"));
                }
                for warning in warnings {
                    *self.warnings.entry(warning).or_default() += 1;
                }
            }
            Ok(Taken::Refused(reason)) => {
                *self.refused.entry(reason).or_default() += 1;
                self.refused_quiet += usize::from(!is_busy);
            }
            Err(fault) => self.faults.push(fault),
        }
        let own = self.listen(Some(is_busy));
        let longest = look.end();
        if let Some(own) = own {
            let seen = witness.gap_ms();
            if own > DEADLINE_MS + OWN_GAP * seen.max(self.baseline.gap_ms) {
                self.faults.push(format!(
                    "a thread of it stood still for {own:.1} ms, one of another process for {seen:.1} ms ({longest})"
                ));
            }
        }
        if self.over {
            return;
        }
        let faults = if self.taken.is_multiple_of(8) {
            let patience = Duration::from_secs(3);
            self.baseline.faults(&self.target, patience)
        } else {
            quick_faults(&self.target)
        };
        self.faults.extend(faults);
    }

    /// What the target says now: its gap, which counts where it was a snapshot's.
    fn listen(&mut self, is_busy: Option<bool>) -> Option<f64> {
        if self.over {
            return None;
        }
        match self.target.ask() {
            Ok(state) => {
                self.interrupted = state.interrupted;
                if let Some(is_busy) = is_busy {
                    let measure = self.measure(is_busy);
                    measure.gap = measure.gap.max(state.gap_ms);
                    measure.late = measure.late.max(state.late_ms);
                }
                if !state.faults.is_empty() {
                    // It says them again each time, and would hide what others do.
                    self.faults.extend(own_faults(&state));
                    self.over = true;
                }
                Some(state.gap_ms)
            }
            Err(error) => {
                self.faults.push(error);
                self.over = true;
                None
            }
        }
    }

    /// What only all snapshots together tell.
    fn judge(&mut self) {
        let kind = &self.target.kind;
        let quiet = self.quiet.pauses.len() + self.refused_quiet;
        if kind.must_succeed() && self.refused_quiet * 1000 > quiet * REFUSED_OF_1000 {
            self.faults.push(format!(
                "{} of {quiet} snapshots were refused",
                self.refused_quiet
            ));
        }
        if quiet >= ENOUGH && self.refused_quiet == quiet {
            self.faults
                .push(format!("all of {quiet} snapshots were refused"));
        }
        for reason in self.refused.keys() {
            let mut known = kind.refusals.iter().chain(ALWAYS);
            let known = known.any(|r| reason.contains(r));
            if !known && !kind.must_succeed() {
                self.faults
                    .push(format!("refused for another reason: {reason}"));
            }
        }
        // No other thread can keep this one from running, but whoever stops it.
        let late = self.quiet.late.max(self.busy.late);
        if late > DEADLINE_MS + self.baseline.late_ms {
            self.faults
                .push(format!("its real-time thread was late by {late:.1} ms"));
        }
    }

    fn row(&self) -> String {
        let (quiet, busy) = (&self.quiet, &self.busy);
        let refused: usize = self.refused.values().sum();
        format!(
            "| {} | {} | {refused} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |\n",
            self.target.kind.name,
            self.taken,
            quiet.quantile(0.5),
            quiet.quantile(0.99),
            quiet.quantile(1.0),
            busy.quantile(0.99),
            busy.quantile(1.0),
            self.baseline.gap_ms,
            quiet.gap,
            busy.gap,
            self.interrupted,
            self.faults.len(),
        )
    }

    /// Reasons, warnings, and what a real-time thread saw.
    fn notes(&self) -> Vec<String> {
        let name = self.target.kind.name;
        let mut notes = Vec::new();
        for (reason, times) in &self.refused {
            notes.push(format!("{name}: refused {times} times: {reason}"));
        }
        for (warning, times) in &self.warnings {
            notes.push(format!("{name}: warned {times} times: {warning}"));
        }
        if self.baseline.late_ms > 0.0 {
            notes.push(format!(
                "{name}: its real-time thread was late by at most {:.2} ms without memtrace, {:.2} ms \
                 with it, {:.2} ms under busy loops",
                self.baseline.late_ms, self.quiet.late, self.busy.late
            ));
        }
        notes
    }
}
