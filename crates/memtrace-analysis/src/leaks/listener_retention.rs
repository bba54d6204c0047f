use memtrace_model::{Frame, Pattern, SampleKind};

use super::code::registers;
use super::map_bloat::assigns_to_map;
use super::slice_growth::grows_slice;
use super::{Cause, Site, symbols};

/// Callbacks that are registered and never removed, and keep what they captured.
///
/// Told from the names of functions (`Subscribe`, `OnChange`), and one of: the list of
/// callbacks grows and a request is among what grows along; or the code of the
/// function whose allocations grow holds a function literal and registers one.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let (owner, registering) = by_list(site).or_else(|| by_code(site))?;
    let request = site.stacks().flatten().any(serves_request);
    let captured = if request {
        "copy the few fields that the callback needs instead of capturing the *http.Request and its body"
    } else {
        "copy the few fields that the callback needs instead of capturing whole objects (an *http.Request keeps its body and buffers)"
    };
    Some(Cause {
        pattern: Pattern::ListenerRetention,
        evidence: vec![format!(
            "{owner} registers a callback by {registering}, and what it allocates for it stays{}",
            if request {
                ": a request and what belongs to it"
            } else {
                ""
            }
        )],
        advice: format!(
            "Keep the function by which {registering}'s registration is undone and call it when the work of \
             {owner} is over (unsubscribe, on every path), or bind the registration to a context; {captured}."
        ),
        stack: None,
    })
}

/// The list of callbacks is seen to grow, and so is what a request is made of.
fn by_list<'a>(site: &Site<'a>) -> Option<(&'a str, &'a str)> {
    let (registering, owner) = site.stacks().find_map(|stack| {
        symbols::callee_frames(stack)
            .any(|f| grows_slice(f) || assigns_to_map(f))
            .then_some(())?;
        let mut own = stack
            .iter()
            .map(|f| f.function.as_str())
            .filter(|f| !symbols::is_standard(f));
        let registering = own.next().filter(|f| registers(f))?;
        Some((registering, own.next()?))
    })?;
    // Captured by a callback is what the one who registers it has at hand.
    let along = site
        .stacks()
        .filter(|s| symbols::culprit(s).is_some_and(|f| f.function != registering))
        .any(|s| s.iter().any(|f| f.function == owner) || s.iter().any(serves_request));
    (along && site.stacks().flatten().any(serves_request)).then_some((owner, registering))
}

/// The code of the growing function registers something and holds a function literal.
/// A container that it fills itself is the better explanation; and services and metrics
/// are registered too, so that only a name that speaks of events, or a request, will do.
fn by_code<'a>(site: &Site<'a>) -> Option<(&'a str, &'a str)> {
    let code = site.code()?;
    let owner = symbols::culprit(site.main_stack())?.function.as_str();
    let registering = match site.stacks().flatten().any(serves_request) {
        true => code.callee(owner, registers)?,
        false => code.callee(owner, registers_listener)?,
    };
    let fills = |stack: &[Frame]| {
        symbols::culprit(stack).is_some_and(|f| f.function == owner)
            && symbols::callee_frames(stack).any(assigns_to_map)
    };
    (code.has_closure(owner) && !site.stacks().any(fills)).then_some((owner, registering))
}

fn registers_listener(function: &str) -> bool {
    let name = symbols::short(function);
    registers(function)
        && !["Register", "register", "On", "on"]
            .iter()
            .any(|v| name.starts_with(v))
}

/// Whether this frame makes or serves an HTTP request.
fn serves_request(frame: &Frame) -> bool {
    let function = frame.function.as_str();
    function.starts_with("net/http.")
        || function.starts_with("net/textproto.")
        || function.contains(".ServeHTTP")
        || function.starts_with("google.golang.org/grpc.")
}
