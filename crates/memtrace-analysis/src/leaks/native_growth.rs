use memtrace_model::{Frame, Pattern, SampleKind};

use super::code::is_cgo;
use super::{Cause, Site, symbols};

/// Memory that the Go heap does not know of: C's malloc, mappings of the program's own.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Process {
        return None;
    }
    let caller = cgo_caller(site);
    let mut evidence = Vec::new();
    let place = match &caller {
        Some((function, stack)) => {
            evidence.push(if stack.is_some() {
                format!("{function} calls C, and what it allocates in Go grows along")
            } else {
                format!("{function} is the only function of the program's own code that calls C")
            });
            format!("what {function} gets from C")
        }
        None => "what is got from C (C.malloc, C.CString) or mmap".to_owned(),
    };
    Some(Cause {
        pattern: Pattern::NativeGrowth,
        evidence,
        advice: format!(
            "Release {place} with its counterpart (C.free, munmap) on every path: an explicit Close with defer, \
             not a finalizer. A heap profile of Go cannot show this memory; jemalloc's or tcmalloc's profile of \
             the C side can."
        ),
        stack: caller.and_then(|(_, stack)| stack),
    })
}

/// The function of the program's own code that calls C: one on a stack that grows in
/// Go at the same time, else the only one there is.
fn cgo_caller<'a>(site: &Site<'a>) -> Option<(&'a str, Option<Vec<Frame>>)> {
    let code = site.code()?;
    let own = |f: &&Frame| !symbols::is_standard(&f.function) && !is_cgo(&f.function);
    for stack in site.heap_growing_along() {
        let caller = stack
            .iter()
            .filter(own)
            .find(|f| code.callee(&f.function, is_cgo).is_some());
        if let Some(caller) = caller {
            return Some((&caller.function, Some(stack.to_vec())));
        }
    }
    let mut callers = code.callers(is_cgo).filter(|c| !is_cgo(c));
    let only = callers.next().filter(|_| callers.next().is_none())?;
    Some((only, None))
}
