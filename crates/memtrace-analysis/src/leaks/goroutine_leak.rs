use memtrace_model::{Frame, Pattern, SampleKind};

use super::{Cause, Site, symbols};

/// Goroutines that pile up at one blocked stack; or, before a profile of goroutines has told
/// which, what the runtime has of each.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    match site.kind {
        SampleKind::Goroutine => {}
        SampleKind::Heap => return descriptors(site),
        _ => return None,
    }
    let stack = site.main_stack();
    let reason = symbols::wait_reason(stack);
    let at = symbols::culprit(stack)
        .or(stack.first())
        .map_or("?", |f| f.function.as_str());
    let entry = site.goroutine_entry().unwrap_or("?");
    let mut evidence = vec![format!(
        "{} goroutines started as {entry} stand at {at}{}; {:.0} more every minute",
        site.live_objects,
        reason.map_or(String::new(), |r| format!(" ({r})")),
        site.objects_per_min,
    )];
    if reason.is_none() {
        evidence.push("their stack does not show what they wait for".into());
    }
    if symbols::is_standard(entry) {
        return Some(Cause {
            pattern: Pattern::GoroutineLeak,
            evidence,
            advice: format!(
                "{entry} belongs to the library and ends when what started it is closed: look for a \
                 response body, connection, ticker or watcher that is opened and never closed \
                 (defer resp.Body.Close())."
            ),
            stack: None,
        });
    }
    let way_out = match reason {
        Some("chan send") => {
            "give the channel room for one value, or select on ctx.Done() beside the send"
        }
        Some("chan receive" | "select" | "select (no cases)") => {
            "select on ctx.Done() beside the receive, and cancel the context when the caller gives up (defer cancel())"
        }
        Some("IO wait") => "set a deadline on the connection, or close it when the caller gives up",
        Some("sync.Mutex.Lock" | "sync.RWMutex" | "semacquire") => {
            "find who holds the lock without releasing it; never wait for I/O under a lock"
        }
        Some("sync.WaitGroup.Wait" | "sync.Cond.Wait") => {
            "make sure that every path calls Done/Signal (defer it), also the ones that time out"
        }
        _ => "give the goroutine a context and a way to end when its caller is gone",
    };
    Some(Cause {
        pattern: Pattern::GoroutineLeak,
        evidence,
        advice: format!("{entry} never ends once its caller has gone: {way_out}."),
        stack: None,
    })
}

/// Whether a stack allocates what the runtime has of a goroutine. It is kept for the next one
/// when a goroutine ends: it grows where ever more of them live at a time.
#[must_use]
pub fn makes_goroutines(stack: &[Frame]) -> bool {
    let has = |function| stack.iter().any(|f| f.function == function);
    // Each thread has one as well.
    has("runtime.malg") && !has("runtime.allocm")
}

fn descriptors(site: &Site<'_>) -> Option<Cause> {
    makes_goroutines(site.main_stack()).then(|| Cause {
        pattern: Pattern::GoroutineLeak,
        evidence: vec![format!(
            "{} descriptors of goroutines more every minute: ever more goroutines live at a time",
            site.objects_per_min.round()
        )],
        advice: "Goroutines are started that do not end. Which ones, the next goroutine profiles will tell (memtrace \
                 asks for one a minute); memtrace report PID tells at once."
            .to_owned(),
        stack: None,
    })
}
