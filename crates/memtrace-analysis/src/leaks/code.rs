//! What the program's machine code tells that no profile shows: which function calls
//! what a leak pattern is made of.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::map_bloat::is_concurrent_map;
use super::symbols;

/// Direct calls of a program's own code that matter to the detectors.
///
/// What the compiler puts into functions of its own (closures, deferred calls) counts
/// for the function that it was written in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    calls: BTreeMap<String, BTreeSet<String>>,
    /// Own functions that hold a function literal.
    with_closures: HashSet<String>,
    /// Pointer types that users of pools refer to.
    types: BTreeMap<String, BTreeSet<String>>,
}

impl Code {
    /// From all function names of a program, and `callers` of those for which
    /// [`Self::matters`] holds: caller → callees.
    #[must_use]
    pub fn new<'a>(
        functions: impl Iterator<Item = &'a str>,
        callers: BTreeMap<String, BTreeSet<String>>,
    ) -> Self {
        let mut calls: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (caller, callees) in callers {
            if !symbols::is_standard(&caller) {
                let caller = symbols::enclosing(&caller).to_owned();
                calls.entry(caller).or_default().extend(callees);
            }
        }
        let with_closures = functions
            .filter(|f| symbols::enclosing(f).len() < f.len() && !symbols::is_standard(f))
            .map(|f| symbols::enclosing(f).to_owned())
            .filter(|f| calls.contains_key(f))
            .collect();
        Self {
            calls,
            with_closures,
            types: BTreeMap::new(),
        }
    }

    /// Own functions that use a `sync.Pool`.
    pub fn pool_users(&self) -> impl Iterator<Item = &str> {
        self.callers(is_pool)
    }

    /// Tells which pointer types each of [`Self::pool_users`] refers to
    /// (`*gcode.Command`): what it takes from the pool and puts back is among them.
    /// One without types counts as unknown.
    #[must_use]
    pub fn with_types(mut self, types: BTreeMap<String, BTreeSet<String>>) -> Self {
        self.types = types;
        self
    }

    /// Names, without their packages, of the own types that may come from the pool which
    /// `user` uses; `None` where they are unknown. Buffers of the library hold nothing
    /// but bytes.
    pub(super) fn pooled_types(&self, user: &str) -> Option<Vec<&str>> {
        let types = self.types.get(symbols::enclosing(user))?;
        let own = types.iter().filter_map(|t| {
            let (package, name) = t.strip_prefix('*')?.rsplit_once('.')?;
            (!["bytes", "strings", "bufio"].contains(&package)).then_some(name)
        });
        Some(own.collect())
    }

    /// Whether it matters who calls this function.
    #[must_use]
    pub fn matters(function: &str) -> bool {
        is_pool(function)
            || sets_finalizer(function)
            || is_cgo(function)
            || is_concurrent_map(function)
            || (registers(function) && !symbols::is_standard(function))
    }

    /// What `function` calls for which `is` holds, the first by name.
    pub(super) fn callee(&self, function: &str, is: fn(&str) -> bool) -> Option<&str> {
        let callees = self.calls.get(symbols::enclosing(function))?;
        callees.iter().map(String::as_str).find(|c| is(c))
    }

    /// Every function that calls one for which `is` holds.
    pub(super) fn callers(&self, is: fn(&str) -> bool) -> impl Iterator<Item = &str> {
        self.calls
            .iter()
            .filter(move |(_, callees)| callees.iter().any(|c| is(c)))
            .map(|(caller, _)| caller.as_str())
    }

    /// Whether a function literal is written in `function`.
    pub(super) fn has_closure(&self, function: &str) -> bool {
        self.with_closures.contains(symbols::enclosing(function))
    }
}

/// Whether this takes an object from a `sync.Pool` or puts it back. A build with a
/// profile (PGO) may have inlined `Get` and `Put`, and calls what they call.
pub(super) fn is_pool(function: &str) -> bool {
    function.starts_with("sync.(*Pool).") || function.starts_with("sync.(*poolChain).")
}

/// Whether this has something done when an object is collected.
pub(super) fn sets_finalizer(function: &str) -> bool {
    function == "runtime.SetFinalizer" || function.starts_with("runtime.AddCleanup")
}

/// Whether this calls C: the runtime's door to it, or a wrapper that cgo wrote.
pub(super) fn is_cgo(function: &str) -> bool {
    function == "runtime.cgocall"
        || symbols::short(function).starts_with("_Cfunc_")
        || symbols::short(function).starts_with("_cgo_")
}

/// Whether this allocates in C, as far as its name tells.
pub(super) fn allocates_in_c(function: &str) -> bool {
    const WORDS: [&str; 5] = ["alloc", "cstring", "cbytes", "strdup", "mmap"];
    let name = symbols::short(function).to_lowercase();
    is_cgo(function) && WORDS.iter().any(|w| name.contains(w))
}

/// Whether the name says that a callback is kept: `Subscribe`, `AddListener`,
/// `OnChange`.
pub(super) fn registers(function: &str) -> bool {
    /// Names that say it by themselves, at the front. `Watch`, `Notify`, `Observe` and
    /// the like more often do what a callback is there for.
    const VERBS: [&str; 3] = ["Subscribe", "Register", "On"];
    /// What is added, set or appended.
    const NOUNS: [&str; 8] = [
        "Listener",
        "Handler",
        "Callback",
        "Observer",
        "Hook",
        "Watcher",
        "Subscriber",
        "Subscription",
    ];
    let name = symbols::short(function);
    let mut letters = name.chars();
    let capital: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(letters)
        .collect();
    let word_follows = |rest: &str| !rest.starts_with(|c: char| c.is_lowercase());
    VERBS
        .iter()
        .any(|v| capital.strip_prefix(v).is_some_and(word_follows))
        || (["Add", "Append", "Set", "Use"]
            .iter()
            .any(|v| capital.starts_with(v))
            && NOUNS.iter().any(|n| capital.contains(n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registering_functions_are_known_by_their_names() {
        for name in [
            "cnc/internal/events.(*Bus).Subscribe",
            "a.(*Bus).subscribe",
            "a.(*Bus).SubscribeAll",
            "a.RegisterCallback",
            "a.(*T).OnChange",
            "a.(*T).On",
            "a.(*T).AddListener",
            "a.(*T).addEventHandler",
        ] {
            assert!(registers(name), "{name}");
        }
        for name in [
            "cnc/internal/gcode.(*Cache).Lookup",
            "a.(*T).Online",
            "a.OnceFunc",
            "a.(*Server).watch",
            "a.(*Histogram).Observe",
            "a.Listening",
            "a.(*T).Add",
            "a.(*T).Unsubscribe",
            "a.(*Registry).Get",
            "",
        ] {
            assert!(!registers(name), "{name}");
        }
    }

    #[test]
    fn allocation_in_c() {
        for name in [
            "m._cgo_cmalloc",
            "m._Cfunc_CString",
            "m._Cfunc_av_frame_alloc",
        ] {
            assert!(allocates_in_c(name), "{name}");
        }
        for name in [
            "m._Cfunc_free",
            "runtime.mallocgc",
            "runtime.cgocall",
            "m.alloc",
        ] {
            assert!(!allocates_in_c(name), "{name}");
        }
    }

    #[test]
    fn calls_of_closures_count_for_their_function() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let callers = BTreeMap::from([
            ("m.parse.deferwrap1".to_owned(), set(&["sync.(*Pool).Put"])),
            ("m.parse".to_owned(), set(&["sync.(*Pool).Get"])),
            ("fmt.Fprintf".to_owned(), set(&["sync.(*Pool).Put"])),
            (
                "m.New".to_owned(),
                set(&["runtime.AddCleanup[go.shape.int]"]),
            ),
        ]);
        let functions = ["m.parse", "m.parse.deferwrap1", "m.New", "m.other.func1"];
        let code = Code::new(functions.into_iter(), callers);
        assert_eq!(
            code.callee("m.parse", |c| c.ends_with("Put")),
            Some("sync.(*Pool).Put")
        );
        assert_eq!(
            code.callee("m.parse.func3", is_pool),
            Some("sync.(*Pool).Get")
        );
        assert_eq!(code.callee("fmt.Fprintf", is_pool), None);
        assert_eq!(code.callers(sets_finalizer).collect::<Vec<_>>(), ["m.New"]);
        assert!(code.has_closure("m.parse") && !code.has_closure("m.New"));
    }
}
