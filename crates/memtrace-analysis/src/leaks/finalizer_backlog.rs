use memtrace_model::{Frame, Gauge, Pattern, SampleKind, Series};

use super::code::sets_finalizer;
use super::{Cause, Site, symbols};

/// Objects are made faster than their finalizers run: memory outside the Go heap, or
/// the objects themselves, wait for a goroutine that runs one finalizer at a time.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    let busy = busy_finalizer(site);
    let (maker, stack, seen) = match site.kind {
        // Nothing but the finalizer itself links what grows with the objects.
        SampleKind::Process => {
            let busy = busy?;
            let maker = maker_of(site, busy.finalizer);
            // The objects may be too few and small for a sampled profile.
            let made = maker.and_then(|m| site.history.live_stack_at(m));
            let maker = maker.unwrap_or(busy.finalizer);
            (
                maker.to_owned(),
                Some(made.unwrap_or(busy.stack).to_vec()),
                Some(busy),
            )
        }
        SampleKind::Heap => {
            let culprit = symbols::culprit(site.main_stack())?;
            site.code()?.callee(&culprit.function, sets_finalizer)?;
            (culprit.function.clone(), None, busy)
        }
        SampleKind::Goroutine => return None,
    };
    let mut evidence = Vec::new();
    if let Some(busy) = &seen {
        evidence.push(format!(
            "the goroutine that runs finalizers was inside {}{} in {} of the last {} goroutine profiles: \
             the others wait",
            busy.finalizer,
            busy.waits_for.map_or(String::new(), |r| format!(" ({r})")),
            busy.seen,
            busy.of
        ));
    }
    let waiting = site.history.gauge(Gauge::FinalizersWaiting);
    if let Some((_, n)) = waiting.and_then(Series::last).filter(|(_, n)| *n >= 1.0) {
        evidence.push(format!(
            "{n:.0} finalizers and cleanups are due and not yet run (exact, from its SDK)"
        ));
    }
    if site.kind == SampleKind::Heap {
        evidence.push(format!(
            "{maker} sets a finalizer (runtime.SetFinalizer or AddCleanup) on what it allocates, and these \
             objects become more"
        ));
    }
    Some(Cause {
        pattern: Pattern::FinalizerBacklog,
        evidence,
        advice: format!(
            "Give what {maker} makes an explicit Close that releases it at once, and call it (defer x.Close()); \
             a finalizer runs late or never, one at a time. Keep it, better as runtime.AddCleanup, as a safety \
             net only."
        ),
        stack,
    })
}

/// The finalizer goroutine at work.
struct Busy<'a> {
    finalizer: &'a str,
    waits_for: Option<&'static str>,
    /// From the finalizer outwards: what it calls is not to blame.
    stack: &'a [Frame],
    seen: usize,
    of: usize,
}

/// Goroutine profiles that are looked at, and in how many of them at least, the newest
/// among them, a finalizer must run: a finalizer that is quick is seen by chance.
const LAST: usize = 4;
const LEAST: usize = 3;

fn busy_finalizer<'a>(site: &Site<'a>) -> Option<Busy<'a>> {
    let seen = site.history.goroutines_in(LAST, runs_finalizers);
    let at: usize = seen.iter().filter(|s| s.is_some()).count();
    let stack = (*seen.last()?)?;
    let own = |f: &Frame| !symbols::is_standard(&f.function);
    let outermost = stack.iter().rposition(own)?;
    (at >= LEAST.min(seen.len()) && seen.len() >= 2).then_some(Busy {
        finalizer: &stack[outermost].function,
        waits_for: symbols::wait_reason(stack),
        stack: &stack[outermost..],
        seen: at,
        of: seen.len(),
    })
}

/// Whether this is a goroutine of the runtime that runs finalizers or cleanups, and it
/// is inside one that is not the standard library's. Up to Go 1.24 it was `runfinq`.
fn runs_finalizers(stack: &[Frame]) -> bool {
    stack.iter().any(|f| {
        matches!(
            f.function.as_str(),
            "runtime.runFinalizers" | "runtime.runfinq" | "runtime.runCleanups"
        )
    }) && symbols::culprit(stack).is_some()
}

/// Who sets this finalizer: where it is a function literal, the function around it;
/// else the only one in its package that sets any and is no method of the same type,
/// which may undo it.
fn maker_of<'a>(site: &Site<'a>, finalizer: &'a str) -> Option<&'a str> {
    let around = symbols::enclosing(finalizer);
    if around.len() < finalizer.len() {
        return Some(around);
    }
    let package = symbols::package(finalizer);
    let receiver = symbols::receiver(finalizer);
    let other_type = |c: &&str| receiver.is_none() || symbols::receiver(c) != receiver;
    let mut makers = site
        .code()?
        .callers(sets_finalizer)
        .filter(|c| symbols::package(c) == package)
        .filter(other_type);
    makers.next().filter(|_| makers.next().is_none())
}
