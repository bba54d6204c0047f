//! `memtrace watch`: the main job. The engine sends updates; one of three views
//! shows them: a live table on a terminal, plain lines in a pipe, JSON lines.

mod lines;
mod screen;
mod words;

use std::io;
use std::path::Path;
use std::time::Duration;

use memtrace_collect::Target;
use memtrace_model::{Finding, Status, Tier};
use memtrace_watch::{Ended, Plan, Snapshots, Update};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{FailOn, WatchArgs};
use crate::failure::Failure;
use crate::out::{self, Out, note};

/// No service is asked more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Shows updates as they come.
trait View {
    /// One update of the engine.
    fn update(&mut self, update: &Update) -> io::Result<()>;
    /// Draws what is to be drawn now and reads keys; true when the user wants to leave.
    fn refresh(&mut self) -> io::Result<bool> {
        Ok(false)
    }
    /// Gives the terminal back and says the last words.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn run(args: WatchArgs) -> Result<(), Failure> {
    check(&args)?;
    crate::source::step_back();
    // A profile is large for a moment; a watch goes on for days.
    memtrace_collect::goproc::bound_allocator();
    allow_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting", error))?;
    let fail_on_leak = args.fail_on == Some(FailOn::Leak);
    let mut view: Box<dyn View> = if args.json {
        Box::new(JsonLines)
    } else if out::is_terminal() {
        Box::new(screen::Screen::open()?)
    } else {
        Box::new(lines::Lines)
    };
    let plan = plan(args);
    let targets = plan.targets.len();
    let ended = runtime.block_on(drive(plan, view.as_mut(), fail_on_leak));
    let finished = view.finish();
    // A store's last write must not hold the user up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    let ended = ended?;
    finished?;
    verdict(ended, targets, fail_on_leak)
}

/// Opens as many files as it may: each target takes some five, and hundreds may be watched.
fn allow_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With as many as before, the last targets tell what they lack.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How a watch ends: a leak comes before a target that could not be read, and that before
/// what the store could not keep. What does not decide is told as well.
fn verdict(ended: Ended, targets: usize, fail_on_leak: bool) -> Result<(), Failure> {
    let mut failures = Vec::new();
    if let Some(unkept) = &ended.unkept {
        failures.push(Failure::Failed(unkept.to_string()));
    }
    let unread = &ended.never_read;
    if targets > 1 && !unread.is_empty() {
        for (target, reason) in unread {
            let own = format!("{target}: ");
            let reason = reason.strip_prefix(&own).unwrap_or(reason);
            note(format_args!("{target}: never read: {reason}"));
        }
        let line = format!("{} of {targets} targets were never read", unread.len());
        failures.push(Failure::TargetLost(line));
    } else {
        let reason = unread.first().map(|(_, reason)| reason.clone());
        failures.extend(ended.lost.or(reason).map(Failure::TargetLost));
    }
    if fail_on_leak && ended.leaking > 0 {
        failures.push(Failure::LeakFound);
    }
    let last = failures.pop();
    for line in failures.iter().filter_map(Failure::line) {
        note(format_args!("{line}"));
    }
    last.map_or(Ok(()), Err)
}

/// What a service could not bear, or what would say nothing.
fn check(args: &WatchArgs) -> Result<(), Failure> {
    if args.interval < SHORTEST_INTERVAL {
        return Err(Failure::Usage(format!(
            "--interval must be at least {SHORTEST_INTERVAL:?}: the service comes first"
        )));
    }
    if let Some(file) = args.target.iter().find(|t| Path::new(t).is_file()) {
        return Err(Failure::Usage(format!(
            "{file} is a file, not a service; `memtrace top` reads it"
        )));
    }
    // Of several, one that can be no target would be told of at the end only.
    for target in &args.target {
        Target::parse(target).map_err(|error| crate::source::target_failure(&error))?;
    }
    if args.settle.is_some_and(|s| s < 8 * args.interval) {
        return Err(Failure::Usage(
            "--settle must be at least 8 times --interval: fewer profiles show no trend".into(),
        ));
    }
    Ok(())
}

fn plan(args: WatchArgs) -> Plan {
    let mut access = crate::source::access(&args.access);
    // Repeats end within an interval, but a slow answer gets its time.
    access.interval = args.interval.clamp(Duration::from_secs(5), access.interval);
    access.max_bytes = memtrace_collect::WATCH_BYTES;
    let is_asked = args.snapshots.is_some() || !args.snapshot_on.is_empty();
    let snapshots = is_asked.then(|| Snapshots {
        verdicts: args.snapshots.is_some(),
        dir: args.snapshots.unwrap_or_else(|| ".".into()),
        cycle: args.cycle,
        marks: args.snapshot_on,
        every: args.snapshot_every,
    });
    Plan {
        freeze: args.pause.options(),
        tags: args.tags,
        snapshots,
        targets: args.target,
        interval: args.interval,
        duration: args.duration,
        settle: args.settle,
        with_strings: args.with_strings,
        limit: args.limit,
        store: args.store,
        access,
    }
}

/// Runs the engine and shows what it says until it ends, the user interrupts, or
/// a leak was found and one was waited for.
async fn drive(plan: Plan, view: &mut dyn View, stop_at_leak: bool) -> Result<Ended, Failure> {
    let (engine, mut updates) =
        memtrace_watch::start(plan).map_err(crate::source::watch_failure)?;
    let mut redraw = tokio::time::interval(std::time::Duration::from_millis(100));
    redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Once for all: a signal between two listeners would be lost.
    let listen = |kind| signal(kind).map_err(|error| Failure::failed("signals", error));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut stopped = false;
    let mut gone = None;
    loop {
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { break };
                let leak = matches!(&update, Update::Finding(f) if is_leak(f));
                if leak && stop_at_leak {
                    stopped = true;
                }
                if let Err(error) = view.update(&update) {
                    // Whoever reads us has gone; what was read is still to be kept.
                    gone = gone.or(Some(error));
                    stopped = true;
                }
            }
            _ = redraw.tick() => stopped |= view.refresh()?,
            _ = interrupt.recv() => stopped = true,
            _ = terminate.recv() => stopped = true,
        }
        if stopped {
            engine.stop();
        }
    }
    let ended = engine.ended().await.map_err(crate::source::watch_failure)?;
    match gone {
        // The reader that went away has seen the leak that it waited for. Who went away before
        // anything was read is told that nothing was.
        Some(error) if ended.never_read.is_empty() && !(stop_at_leak && ended.leaking > 0) => {
            Err(error.into())
        }
        _ => Ok(ended),
    }
}

fn is_leak(finding: &Finding) -> bool {
    finding.tier == Tier::Leaking && finding.status == Status::Open
}

/// The contract for scripts: findings, and events with the field `event`.
struct JsonLines;

impl View for JsonLines {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        let mut out = Out::open();
        match update {
            Update::Finding(finding) => out.json(finding)?,
            // What is open at the end, with its newest numbers.
            Update::Summary(s) => {
                for finding in &s.findings {
                    out.json(finding)?;
                }
            }
            Update::Event { target, event } => {
                let mut line = serde_json::to_value(event)?;
                line["schema"] = json!("memtrace.event/1");
                line["target"] = json!(target);
                out.json(&line)?;
            }
            Update::Store(unkept) => note(format_args!("{unkept}")),
            Update::Attached(_) | Update::Point(_) => {}
        }
        out.done()
    }
}
