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

/// The function on this stack that uses the pool from which the growing object comes:
/// a method of the pooled type fills it, or the user of the pool itself.
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
    let receiver = symbols::receiver(filler);
    let receiver_name = receiver.as_deref().map(symbols::short);
    let pooled = |user: &str| site.code().and_then(|c| c.pooled_types(user));
    if map && site.calls(filler, is_pool) {
        // Its own object may have a map too, beside a pool of buffers.
        let other = |t: &&str| Some(*t) != receiver_name;
        let known = pooled(filler);
        return known
            .is_none_or(|types| types.iter().any(other))
            .then_some(filler);
    }
    if !(map || (slice && receiver.is_some())) {
        return None;
    }
    own.take(FEW).find(|user| {
        site.calls(user, is_pool)
            && match (pooled(user), receiver_name) {
                (Some(types), Some(name)) => types.contains(&name),
                (Some(types), None) => !types.is_empty(),
                // The pooled type is likely in its user's package, and another one.
                (None, _) => {
                    symbols::package(user) == symbols::package(filler)
                        && (receiver.is_none() || receiver != symbols::receiver(user))
                }
            }
    })
}
