//! The runtime's variables in a stripped program.
//!
//! The table of functions keeps its names, and the code of a function tells the
//! addresses of the variables that it uses, relative to itself. For each variable there
//! are some functions that have no other in common: what most of them refer to is
//! looked at, and counts where the memory there is what the variable must be.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use iced_x86::{Decoder, DecoderOptions, MemorySize, Mnemonic};

use super::Layout;
use super::elf::Elf;
use crate::Error;
use crate::goexe::Program;
use crate::goheap::memory::Window;

/// A variable and how it is found. Names of functions are without `runtime.` where it is
/// theirs; some exist in some releases only.
struct Rule {
    name: &'static str,
    /// Functions that use it.
    used_by: &'static [&'static str],
    /// Functions that do not, but use what the others use as well.
    not_by: &'static [&'static str],
    /// How it is accessed: any way, or read and written as one word.
    is_word: bool,
    /// Of several that can be it, the first.
    is_first: bool,
    check: fn(&Place<'_, '_>) -> Option<bool>,
}

const ANY: Rule = Rule {
    name: "",
    used_by: &[],
    not_by: &[],
    is_word: false,
    is_first: false,
    check: |_| Some(true),
};

/// What nearly every function that stores a pointer looks at: `writeBarrier`.
const BARRIER: &str = "getitab";

const RULES: &[Rule] = &[
    Rule {
        name: "mheap_",
        used_by: &[
            "getempty.func1",
            "gcMarkTermination.func5",
            "(*pageAlloc).enableChunkHugePages",
            "allocmcache.func1",
            "(*mcentral).grow",
            "sweepone.func1",
            "stackpoolalloc",
            "stackpoolfree",
            "freeStackSpans",
            "(*mcache).allocLarge",
        ],
        check: is_heap,
        ..ANY
    },
    Rule {
        name: "allgs",
        used_by: &["forEachG", "allgadd"],
        check: is_goroutines,
        ..ANY
    },
    Rule {
        name: "allgptr",
        used_by: &["forEachGRace", "allgadd"],
        check: |p| is_goroutine(p, p.word(0)?).map(|_| true),
        ..ANY
    },
    Rule {
        name: "allglen",
        used_by: &["forEachGRace", "allgadd"],
        check: |p| Some((1..1 << 32).contains(&p.word(0)?)),
        ..ANY
    },
    Rule {
        name: "allm",
        used_by: &["mcommoninit", "mexit", "schedtrace"],
        check: is_threads,
        ..ANY
    },
    Rule {
        name: "allp",
        used_by: &[
            "flushmcache",
            "preemptall",
            "gcMarkTinyAllocs",
            "(*gcCPULimiterState).updateLocked",
        ],
        check: is_processors,
        ..ANY
    },
    Rule {
        name: "mbuckets",
        used_by: &[
            "mProf_FlushLocked",
            "stkbucket",
            "memProfileInternal",
            "MemProfile",
        ],
        check: is_buckets,
        ..ANY
    },
    Rule {
        name: "mProfCycle",
        used_by: &[
            "mProf_Free",
            "mProf_Flush",
            "mProf_PostSweep",
            "mProf_Malloc",
            "gcSweep",
        ],
        ..ANY
    },
    Rule {
        name: "gcController",
        used_by: &[
            "gcinit",
            "gcControllerCommit",
            "gcTrigger.test",
            "gcMark",
            "gcStart",
            "findRunnable",
            "readmemstats_m",
        ],
        check: is_controller,
        ..ANY
    },
    Rule {
        name: "memstats",
        used_by: &[
            "(*pageAlloc).scavengeOne",
            "(*mheap).grow",
            "(*mheap).freeSpanLocked",
            "(*mheap).allocSpan",
            "(*mcache).releaseAll",
            "readmemstats_m",
        ],
        ..ANY
    },
    Rule {
        name: "MemProfileRate",
        used_by: &[
            "allocmcache",
            "profilealloc",
            "schedinit",
            "runtime/pprof.writeHeapInternal",
        ],
        check: |p| Some(p.word(0)? < 1 << 48),
        ..ANY
    },
    Rule {
        name: "semtable",
        used_by: &["semrelease1", "semacquire1"],
        check: is_semaphores,
        ..ANY
    },
    Rule {
        name: "waitReasonStrings",
        used_by: &[
            "waitReason.String",
            "(*waitReason).String",
            "goroutineheader",
        ],
        check: is_reasons,
        ..ANY
    },
    Rule {
        name: "finq",
        used_by: &["queuefinalizer", "runfinq", "runFinalizers"],
        not_by: &[BARRIER],
        is_word: true,
        // The other is the list of free blocks.
        is_first: true,
        check: is_finalizers,
    },
    Rule {
        name: "allfin",
        used_by: &["queuefinalizer", "markroot"],
        not_by: &[BARRIER],
        is_word: true,
        check: is_finalizers,
        ..ANY
    },
    Rule {
        name: "gcCleanups",
        used_by: &["runCleanups", "(*activeSweep).end", "freeSpecial"],
        check: |p| Some(p.layout.sizes.contains_key("cleanupQueue")),
        ..ANY
    },
    Rule {
        name: "itabTable",
        used_by: &["itabAdd", "getitab", "iterate_itabs"],
        not_by: &["queuefinalizer"],
        is_word: true,
        check: is_itabs,
        ..ANY
    },
    Rule {
        name: "sched",
        used_by: &["oneNewExtraM", "newproc1"],
        not_by: &[BARRIER],
        check: is_scheduler,
        ..ANY
    },
    Rule {
        name: "work",
        used_by: &[
            "putfull",
            "trygetfull",
            "prepareFreeWorkbufs",
            "gcDrain",
            "gcDrainN",
            "endCheckmarks",
        ],
        ..ANY
    },
    Rule {
        name: "gcphase",
        used_by: &[
            "freeSomeWbufs",
            "GC",
            "gcWaitOnMark",
            "gcTrigger.test",
            "addfinalizer",
            "gcSweep",
            "stackfree",
        ],
        check: |p| Some(p.memory.u32(p.address).ok()? <= 2),
        ..ANY
    },
    Rule {
        name: "zerobase",
        used_by: &["os.runtime_args", "syscall.runtime_envs", "growslice"],
        ..ANY
    },
    Rule {
        name: "emptymspan",
        used_by: &["allocmcache", "(*mcache).releaseAll", "(*mcache).refill"],
        ..ANY
    },
    Rule {
        name: "sync.allPools",
        used_by: &["sync.poolCleanup", "sync.(*Pool).pinSlow"],
        not_by: &[BARRIER],
        is_first: true,
        check: is_slice,
        ..ANY
    },
    Rule {
        name: "sync.oldPools",
        used_by: &["sync.poolCleanup"],
        not_by: &[BARRIER, "sync.(*Pool).pinSlow"],
        is_first: true,
        check: is_slice,
        ..ANY
    },
];

/// The variables that are sought in a release with this layout.
pub(super) fn names(layout: &Layout) -> impl Iterator<Item = &'static str> {
    let has = |name| name != "gcCleanups" || layout.sizes.contains_key("cleanupQueue");
    RULES.iter().map(|r| r.name).filter(move |n| has(*n))
}

/// Finds what it can.
pub(super) fn variables(
    elf: &Elf<'_>,
    bias: u64,
    memory: &Window<'_>,
    layout: &Layout,
) -> Result<HashMap<String, u64>, Error> {
    let mut found = HashMap::new();
    if !elf.is_amd64() {
        return Ok(found);
    }
    let references = references(elf, bias)?;
    for rule in RULES {
        let votes = votes(rule, &references);
        let passed = votes.iter().filter(|(address, _)| {
            let place = Place {
                address: **address,
                memory,
                layout,
                votes: &votes,
            };
            (rule.check)(&place) == Some(true)
        });
        let passed: Vec<(u64, usize)> = passed.map(|(a, n)| (*a, *n)).collect();
        let Some(most) = passed.iter().map(|(_, n)| *n).max() else {
            continue;
        };
        let mut best = passed.iter().filter(|(_, n)| *n == most);
        if let Some((address, _)) = best.next()
            && (rule.is_first || best.next().is_none())
        {
            found.insert(rule.name.to_owned(), *address);
        }
    }
    Ok(found)
}

/// An address that code refers to, and whether as one word of memory.
type References = HashMap<String, BTreeMap<u64, bool>>;

/// What each of the functions refers to in writable memory, by addresses of the process.
fn references(elf: &Elf<'_>, bias: u64) -> Result<References, Error> {
    /// Longer than any of the functions.
    const LIMIT: u64 = 64 << 10;
    let wanted = |name: &str| {
        let own = name.strip_prefix("runtime.").unwrap_or(name);
        RULES
            .iter()
            .any(|r| r.used_by.contains(&own) || r.not_by.contains(&own))
    };
    let writable: Vec<(u64, u64)> = elf
        .segments()
        .filter(|s| s.rwx[1])
        .map(|s| (s.address, s.address.saturating_add(s.memory)))
        .collect();
    let mut program = Program::read(Cursor::new(elf.bytes()))?;
    let mut references = References::new();
    for (name, address, code) in program.code_of(wanted, LIMIT)? {
        let own = name.strip_prefix("runtime.").unwrap_or(&name);
        let found = references.entry(own.to_owned()).or_default();
        for instruction in Decoder::with_ip(64, &code, address, DecoderOptions::NONE) {
            if !instruction.is_ip_rel_memory_operand() {
                continue;
            }
            let target = instruction.ip_rel_memory_address();
            if writable
                .iter()
                .any(|(from, to)| (*from..*to).contains(&target))
            {
                let is_word = instruction.mnemonic() != Mnemonic::Lea
                    && matches!(
                        instruction.memory_size(),
                        MemorySize::UInt64 | MemorySize::Int64
                    );
                *found.entry(target.wrapping_add(bias)).or_default() |= is_word;
            }
        }
    }
    Ok(references)
}

/// How many of the functions that use a variable refer to each address.
fn votes(rule: &Rule, references: &References) -> BTreeMap<u64, usize> {
    let mut votes = BTreeMap::new();
    for function in rule.used_by {
        for (address, is_word) in references.get(*function).into_iter().flatten() {
            if *is_word || !rule.is_word {
                *votes.entry(*address).or_default() += 1;
            }
        }
    }
    for function in rule.not_by {
        for address in references
            .get(*function)
            .into_iter()
            .flat_map(BTreeMap::keys)
        {
            votes.remove(address);
        }
    }
    votes
}

/// Where a variable may be.
struct Place<'p, 'm> {
    address: u64,
    memory: &'p Window<'m>,
    layout: &'p Layout,
    votes: &'p BTreeMap<u64, usize>,
}

impl Place<'_, '_> {
    fn word(&self, offset: u64) -> Option<u64> {
        self.memory.u64(self.address.checked_add(offset)?).ok()
    }

    /// A field of a structure at an address.
    fn field(&self, address: u64, field: &str) -> Option<u64> {
        let at = address.checked_add(self.layout.find(field)?)?;
        self.memory.u64(at).ok()
    }
}

/// How many of the elements of a table are looked at.
const LOOKED_AT: u64 = 16;

/// The words that a slice at an address holds, the first of them.
fn elements(place: &Place<'_, '_>, address: u64) -> Option<Vec<u64>> {
    let (at, length, capacity) = place.memory.slice(address).ok()?;
    if length > capacity || capacity >= 1 << 40 {
        return None;
    }
    (0..length.min(LOOKED_AT))
        .map(|i| place.memory.u64(at.checked_add(8 * i)?).ok())
        .collect()
}

fn is_heap(place: &Place<'_, '_>) -> Option<bool> {
    const PAGE: u64 = 8 << 10;
    let all = place
        .address
        .checked_add(place.layout.find("mheap.allspans")?)?;
    let spans = elements(place, all)?;
    for span in &spans {
        let start = place.field(*span, "mspan.startAddr")?;
        let pages = place.field(*span, "mspan.npages")?;
        let state = span.checked_add(place.layout.find("mspan.state")?)?;
        let is_span = start != 0
            && start % PAGE == 0
            && (1..1 << 35).contains(&pages)
            && place.memory.u8(state).ok()? <= 2;
        if !is_span {
            // A span that was given back keeps no promise but its state.
            let is_dead = place.memory.u8(state).ok()? == 0;
            if !is_dead {
                return None;
            }
        }
    }
    Some(!spans.is_empty())
}

/// `None` where there is no goroutine at an address.
fn is_goroutine(place: &Place<'_, '_>, address: u64) -> Option<()> {
    let low = place.field(address, "g.stack.lo")?;
    let high = place.field(address, "g.stack.hi")?;
    let id = place.field(address, "g.goid")?;
    (low <= high && id < 1 << 48).then_some(())
}

fn is_goroutines(place: &Place<'_, '_>) -> Option<bool> {
    let all = elements(place, place.address)?;
    for goroutine in &all {
        is_goroutine(place, *goroutine)?;
    }
    Some(!all.is_empty())
}

fn is_threads(place: &Place<'_, '_>) -> Option<bool> {
    let first = place.word(0)?;
    let own = place.field(first, "m.g0")?;
    Some(place.field(own, "g.m")? == first)
}

fn is_processors(place: &Place<'_, '_>) -> Option<bool> {
    let all = elements(place, place.address)?;
    for (number, processor) in all.iter().enumerate() {
        let id = processor.checked_add(place.layout.find("p.id")?)?;
        if u64::from(place.memory.u32(id).ok()?) != number as u64 {
            return None;
        }
    }
    Some(!all.is_empty())
}

fn is_buckets(place: &Place<'_, '_>) -> Option<bool> {
    const OF_MEMORY: u64 = 1;
    match place.word(0)? {
        0 => Some(true),
        first => Some(place.field(first, "bucket.typ")? == OF_MEMORY),
    }
}

fn is_controller(place: &Place<'_, '_>) -> Option<bool> {
    let field = |name: &str| place.field(place.address, &format!("gcControllerState.{name}"));
    let percent = (field("gcPercent")? & 0xffff_ffff) as u32 as i32;
    let (marked, in_use) = (field("heapMarked")?, field("heapInUse")?);
    Some(
        (-1..1 << 20).contains(&percent)
            && (1..=i64::MAX as u64).contains(&field("memoryLimit")?)
            && marked < 1 << 48
            && marked.is_multiple_of(8)
            && (1..1 << 48).contains(&in_use)
            && in_use.is_multiple_of(8 << 10)
            && field("totalFree")? <= field("totalAlloc")?,
    )
}

fn is_semaphores(place: &Place<'_, '_>) -> Option<bool> {
    const ROOTS: u64 = 251;
    let stride = place.layout.sizes.get("semTable").copied()? / ROOTS;
    let root = place
        .address
        .checked_add(place.layout.find("semaRoot.treap")?)?;
    for i in 0..ROOTS {
        let waiting = place.memory.u64(root.checked_add(i * stride)?).ok()?;
        if waiting != 0 {
            place.field(waiting, "sudog.elem")?;
        }
    }
    Some(true)
}

fn is_reasons(place: &Place<'_, '_>) -> Option<bool> {
    // The first is empty; those after it are words.
    for reason in 1..8 {
        let (at, length) = (place.word(16 * reason)?, place.word(16 * reason + 8)?);
        let text = place.memory.bytes(at, length, 128).ok()?;
        if text.is_empty() || text.iter().any(|b| !(b' '..=b'~').contains(b)) {
            return None;
        }
    }
    Some(true)
}

fn is_finalizers(place: &Place<'_, '_>) -> Option<bool> {
    let block = place.word(0)?;
    Some(block == 0 || (block % 8 == 0 && place.memory.u64(block).is_ok()))
}

fn is_itabs(place: &Place<'_, '_>) -> Option<bool> {
    let table = place.word(0)?;
    let size = place.field(table, "itabTableType.size")?;
    let count = place.field(table, "itabTableType.count")?;
    Some(size.is_power_of_two() && count <= size)
}

fn is_scheduler(place: &Place<'_, '_>) -> Option<bool> {
    let threads = place.field(place.address, "schedt.mnext")?;
    let most = place.layout.find("schedt.maxmcount")?;
    let most = place.memory.u32(place.address.checked_add(most)?).ok()?;
    let ids = place.field(place.address, "schedt.goidgen")?;
    Some((1..1 << 32).contains(&threads) && (1..1 << 31).contains(&most) && ids < 1 << 48)
}

/// Code that takes a slice over uses its three words.
fn is_slice(place: &Place<'_, '_>) -> Option<bool> {
    let (_, length, capacity) = place.memory.slice(place.address).ok()?;
    let uses = |offset| {
        place
            .votes
            .contains_key(&place.address.wrapping_add(offset))
    };
    Some(uses(8) && uses(16) && length <= capacity && capacity < 1 << 32)
}
