use memtrace_model::{Frame, Pattern, SampleKind};

use super::code::{Code, allocates_in_c, is_cgo};
use super::{Cause, Site, symbols};

/// Memory that the Go heap does not know of: C's malloc, mappings of the program's own.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Process {
        return None;
    }
    let caller = cgo_caller(site);
    let mut evidence = Vec::new();
    let place = match caller {
        Some((function, stack)) => {
            let seen = if stack.is_some() {
                "and what it allocates in Go grows along"
            } else {
                "alone of the program's own code"
            };
            evidence.push(format!("{function} allocates in C, {seen}"));
            format!("what {function} gets from C")
        }
        None => {
            let callers = site.code().into_iter().flat_map(own_callers);
            let some: Vec<&str> = callers.take(MOST_NAMED).collect();
            if !some.is_empty() {
                evidence.push(format!("allocate in C: {}", some.join(", ")));
            }
            "what is got from C (C.malloc, C.CString) or mmap".to_owned()
        }
    };
    Some(Cause {
        pattern: Pattern::NativeGrowth,
        evidence,
        advice: format!(
            "Release {place} with its counterpart (C.free, munmap) on every path: an explicit Close with defer, \
             not a finalizer. A heap profile of Go cannot show this memory; jemalloc's or tcmalloc's profile of \
             the C side can."
        ),
        stack: caller.and_then(|(_, stack)| Some(stack?.to_vec())),
    })
}

/// Functions that are named where it may be any.
const MOST_NAMED: usize = 5;

/// The function of the program's own code that allocates in C: one on a stack that
/// grows in Go at the same time, else the only one there is.
fn cgo_caller<'a>(site: &Site<'a>) -> Option<(&'a str, Option<&'a [Frame]>)> {
    let code = site.code()?;
    for stack in site.heap_growing_along() {
        let own = stack.iter().filter(|f| !symbols::is_standard(&f.function));
        let mut calls = own.filter(|f| code.callee(&f.function, allocates_in_c).is_some());
        if let Some(caller) = calls.find(|f| !is_cgo(&f.function)) {
            return Some((&caller.function, Some(stack)));
        }
    }
    let mut callers = own_callers(code);
    let only = callers.next().filter(|_| callers.next().is_none())?;
    Some((only, None))
}

/// Own functions that allocate in C; not the wrappers that cgo wrote.
fn own_callers(code: &Code) -> impl Iterator<Item = &str> {
    code.callers(allocates_in_c).filter(|c| !is_cgo(c))
}
