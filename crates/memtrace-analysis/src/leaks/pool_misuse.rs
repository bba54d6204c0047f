use memtrace_model::{Frame, Pattern, SampleKind};

use super::code::is_pool;
use super::map_bloat::assigns_to_map;
use super::slice_growth::grows_slice;
use super::{Cause, Site, symbols};

/// Pooled objects that come back larger than they left: a map or slice grows in the
/// hands of a function that takes objects from a `sync.Pool` and puts them back.
///
/// Pools inside the standard library (fmt, encoding/json) are nobody's fault and do
/// not count; nor does a container of another type that such a function fills.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let (stack, user) = site.stacks().find_map(|s| Some((s, pool_user(site, s)?)))?;
    let filler = symbols::culprit(stack)?.function.as_str();
    let map = symbols::callee_frames(stack).any(assigns_to_map);
    let (kind, reset) = match map {
        true => ("map", "delete all keys of its map, or give it a fresh one"),
        false => ("slice", "cut its slice to length 0"),
    };
    Some(Cause {
        pattern: Pattern::PoolMisuse,
        evidence: vec![format!(
            "a {kind} that {filler} fills keeps growing in objects which {user} takes from a sync.Pool \
             and puts back: whatever is left in them stays"
        )],
        advice: format!(
            "Reset the object in {user} before Put: {reset}. A map keeps its tables, and a slice its array, \
             even when emptied: do not put back an object that has grown beyond a limit."
        ),
        stack: Some(stack.to_vec()),
    })
}

/// Own frames from the one that fills the container up to the user of the pool.
const FEW: usize = 3;

/// The function on this stack that uses the pool from which the growing object comes.
fn pool_user<'a>(site: &Site<'_>, stack: &'a [Frame]) -> Option<&'a str> {
    let map = symbols::callee_frames(stack).any(assigns_to_map);
    // Nearly everything appends to slices; those of the object are appended to by itself.
    let callees = symbols::callee_frames(stack);
    let slice = callees
        .take_while(|f| f.starts_with("runtime."))
        .any(grows_slice);
    let mut own = stack
        .iter()
        .map(|f| f.function.as_str())
        .filter(|f| !symbols::is_standard(f));
    let filler = own.next()?;
    if map && site.calls(filler, is_pool) {
        return Some(filler);
    }
    // A method of the pooled type fills it for the user of the pool, in its package.
    // What belongs to the user's own type (a cache) is not what was taken from the pool.
    let receiver = symbols::receiver(filler);
    if !map && !(slice && receiver.is_some()) {
        return None;
    }
    own.take(FEW).find(|caller| {
        site.calls(caller, is_pool)
            && symbols::package(caller) == symbols::package(filler)
            && (receiver.is_none() || receiver != symbols::receiver(caller))
    })
}
