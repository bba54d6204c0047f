//! What all text forms have in common: stacks of addresses become a [`Profile`].

use std::collections::HashMap;

use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, Line, Location, LocationId, Mapping, MappingId,
    Profile, StackId, StringId, ValueType,
};

use super::maps::Entry;
use super::{BadLines, MemStats};
use crate::budget::{self, Folded};
use crate::pprof::Parsed;
use crate::{Limits, Warning};

/// A symbolised frame beside its address.
pub(super) struct Frame<'a> {
    pub(super) address: u64,
    pub(super) name: &'a str,
    pub(super) file: &'a str,
    pub(super) line: i64,
}

/// What a location, a function or a stack that is met takes in the tables below, bytes.
const TABLE_ENTRY: usize = 64;
/// Frames that are read before the memory they took is looked at.
const MEASURE_EVERY: usize = 4096;
/// Comparisons of an address with a mapping, a tenth of a second: a hundred thousand
/// addresses in a program of six hundred parts.
const MOST_COMPARISONS: usize = 1 << 26;

#[derive(Default)]
pub(super) struct Builder {
    pub(super) profile: Profile,
    /// Bytes that all of it may take. Beyond, samples are folded: these forms have the
    /// heaviest first.
    max_memory: usize,
    is_full: bool,
    unmeasured: usize,
    folded: Folded,
    by_address: HashMap<u64, LocationId>,
    /// Calls into the runtime that are left out here, but may be shown on a stack that
    /// has nothing else: they stay bare, so that a stack is the same in every reading.
    left_out: HashMap<u64, LocationId>,
    functions: HashMap<Function, FunctionId>,
    full: u64,
}

impl Builder {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max_memory: limits.max_memory,
            ..Self::default()
        }
    }

    /// Whether memory is used up, now that so many frames more are to be taken in.
    pub(super) fn is_full(&mut self, frames: usize) -> bool {
        self.unmeasured += frames + 1;
        if self.unmeasured >= MEASURE_EVERY && !self.is_full {
            self.unmeasured = 0;
            let entries =
                self.by_address.capacity() + self.left_out.capacity() + self.functions.capacity();
            self.is_full = self.profile.memory() + entries * TABLE_ENTRY > self.max_memory;
        }
        self.is_full
    }

    /// A text, cut where it is too long to be a name.
    pub(super) fn intern(&mut self, text: &str) -> StringId {
        self.profile.intern(budget::cut(text))
    }

    pub(super) fn sample_types(&mut self, types: &[(&str, &str)]) {
        for (kind, unit) in types {
            let value_type = ValueType {
                kind: self.profile.intern(kind),
                unit: self.profile.intern(unit),
            };
            self.profile.sample_types.push(value_type);
        }
    }

    /// Adds a sample. Where `frames` are given they are the stack: Go leaves out
    /// what belongs to the runtime, as it does in the protocol buffer. With
    /// `with_runtime` the calls that it leaves out at the leaf stay, as bare addresses.
    pub(super) fn sample(
        &mut self,
        values: &[i64],
        addresses: impl Iterator<Item = u64>,
        frames: &[Frame<'_>],
        labels: &[Label],
        with_runtime: bool,
    ) {
        if self.is_full(addresses.size_hint().0 + frames.len()) {
            self.folded.take(values);
            return;
        }
        let stack: Vec<LocationId> = if let Some(first) = frames.first() {
            let mut addresses = addresses.peekable();
            let mut stack = Vec::new();
            while let Some(a) = addresses.next_if(|&a| with_runtime && a != first.address) {
                stack.push(location(&mut self.profile, &mut self.left_out, a));
            }
            // A shown frame that is no address of the stack: nothing is left out.
            if addresses.peek().is_none() {
                stack.clear();
            }
            let mut rest = frames;
            while let Some(first) = rest.first() {
                // Frames of one address are calls inlined into each other, unless the
                // first of them comes again: no function is inlined into itself.
                let inlined = |f: &&Frame<'_>| f.address == first.address && f.name != first.name;
                let count = 1 + rest[1..].iter().take_while(inlined).count();
                let (calls, outer) = rest.split_at(count);
                stack.push(self.symbolised(calls));
                rest = outer;
            }
            stack
        } else {
            addresses.map(|a| self.location(a)).collect()
        };
        let p = &mut self.profile;
        let (Some(stack), Some(labels)) = (p.stacks.intern(&stack), p.label_sets.intern(labels))
        else {
            self.full += 1;
            return;
        };
        p.sample_stacks.push(StackId(stack));
        p.sample_labels.push(LabelSetId(labels));
        p.values.extend_from_slice(values);
    }

    /// The location of an address.
    pub(super) fn location(&mut self, address: u64) -> LocationId {
        location(&mut self.profile, &mut self.by_address, address)
    }

    fn symbolised(&mut self, calls: &[Frame<'_>]) -> LocationId {
        let id = self.location(calls.first().map_or(0, |c| c.address));
        if self.profile.locations[id.index()].line_count == 0 {
            let first = self.profile.lines.len();
            for call in calls.iter().filter(|c| !c.name.is_empty()) {
                let name = self.intern(call.name);
                let function = Function {
                    name,
                    system_name: name,
                    file: self.intern(call.file),
                    start_line: 0,
                };
                let line = Line {
                    function: self.function(function),
                    line: call.line,
                    column: 0,
                };
                self.profile.lines.push(line);
            }
            let count = self.profile.lines.len() - first;
            if count > 0 {
                let location = &mut self.profile.locations[id.index()];
                location.first_line = first as u32;
                location.line_count = count as u32;
            }
        }
        id
    }

    pub(super) fn function(&mut self, function: Function) -> FunctionId {
        let functions = &mut self.profile.functions;
        *self.functions.entry(function).or_insert_with(|| {
            functions.push(function);
            FunctionId(functions.len() as u32 - 1)
        })
    }

    /// Puts every address into its binary, with pprof's corrections of maps that are
    /// known to be wrong.
    pub(super) fn memory_map(&mut self, entries: Vec<Entry>) {
        let mut entries = merge_adjacent(entries);
        main_binary_first(&mut entries);
        if let [first, second, ..] = &entries[..]
            && first.file.starts_with("/anon_hugepage")
            && first.limit == second.start
        {
            entries.remove(0);
        }
        if let Some(main) = entries.first_mut()
            && main.start.wrapping_sub(main.offset) == 0x40_0000
        {
            main.start = 0x40_0000;
            main.offset = 0;
        }
        // The program itself is the first.
        entries.truncate(MOST_COMPARISONS / self.profile.locations.len().max(1));

        let mut unknown = None;
        for i in 0..self.profile.locations.len() {
            let address = self.profile.locations[i].address;
            if address == 0 {
                continue;
            }
            let within = |e: &Entry| e.start <= address && address < e.limit;
            // Some profilers list only the later part of a binary that is mapped in parts.
            let before = |e: &Entry| {
                e.offset != 0 && e.start.wrapping_sub(e.offset) <= address && address < e.start
            };
            let mapping = if let Some(m) = entries.iter().position(within) {
                m
            } else if let Some(m) = entries.iter().position(before) {
                entries[m].start = entries[m].start.wrapping_sub(entries[m].offset);
                entries[m].offset = 0;
                m
            } else {
                // As pprof does: one mapping without a name for all the others, which is
                // all there is in a profile of Go.
                *unknown.get_or_insert_with(|| {
                    entries.push(Entry {
                        limit: u64::MAX,
                        ..Entry::default()
                    });
                    entries.len() - 1
                })
            };
            self.profile.locations[i].mapping = Some(MappingId(mapping as u32));
        }
        for entry in entries {
            let mapping = Mapping {
                start: entry.start,
                limit: entry.limit,
                offset: entry.offset,
                file: self.intern(&entry.file),
                build_id: self.intern(&entry.build_id),
                ..Mapping::default()
            };
            self.profile.mappings.push(mapping);
        }
        for l in &self.profile.locations {
            if let (Some(m), true) = (l.mapping, l.line_count > 0) {
                let m = &mut self.profile.mappings[m.index()];
                m.has_functions = true;
                m.has_filenames = true;
                m.has_line_numbers = true;
            }
        }
    }

    /// The frames of allocators themselves, which the text forms cannot name: pprof
    /// drops them from these kinds of profiles once they have symbols.
    pub(super) fn legacy_frames(&mut self) {
        const HEAP: [&[&str]; 4] = [
            &["objects", "space"],
            &["inuse_objects", "inuse_space"],
            &["alloc_objects", "alloc_space"],
            &[
                "alloc_objects",
                "alloc_space",
                "inuse_objects",
                "inuse_space",
            ],
        ];
        let p = &mut self.profile;
        let kinds: Vec<&str> = p
            .sample_types
            .iter()
            .map(|t| p.strings.get(t.kind.0))
            .collect();
        let (drop, keep) = if HEAP.contains(&&kinds[..]) {
            (DROP_ALLOCATORS, KEEP_GO_RUNTIME)
        } else {
            (DROP_PROFILERS, "")
        };
        p.drop_frames = p.intern(drop);
        p.keep_frames = p.intern(keep);
    }

    /// The profile, of a text of so many bytes.
    pub(super) fn done(
        mut self,
        bad: &BadLines,
        mem_stats: Option<MemStats>,
        read: usize,
    ) -> Parsed {
        let mut warnings = Vec::new();
        if self.folded.samples > 0 {
            warnings.push(Warning::Folded {
                samples: self.folded.samples,
            });
            std::mem::take(&mut self.folded).add_to(&mut self.profile);
        }
        crate::pprof::lines_in_order(&mut self.profile);
        budget::keep_within(&mut self.profile, read as u64, &mut warnings);
        let mut parsed = Parsed {
            profile: self.profile,
            mem_stats,
            warnings,
        };
        bad.report(&mut parsed.warnings);
        if self.full > 0 {
            parsed.warnings.push(Warning::Dropped {
                what: "samples beyond 2^32",
                count: self.full,
            });
        }
        parsed
    }
}

fn location(
    profile: &mut Profile,
    known: &mut HashMap<u64, LocationId>,
    address: u64,
) -> LocationId {
    let locations = &mut profile.locations;
    *known.entry(address).or_insert_with(|| {
        locations.push(Location {
            address,
            ..Location::default()
        });
        LocationId(locations.len() as u32 - 1)
    })
}

/// Names of allocators: POSIX, tcmalloc, macOS, the C++ library, Go's runtime.
const DROP_ALLOCATORS: &str = "(tc_)?(calloc|cfree|malloc|free|memalign|posix_memalign|pvalloc|\
    valloc|realloc)|do_memalign|__posix_memalign|tcmalloc::.*|\
    tc_(new|newarray)(_nothrow)?|tc_delete(array)?|\
    malloc_zone_(malloc|calloc|valloc|realloc|memalign|free)|runtime\\..*|BaseArena::.*|\
    (::)?do_malloc(_no_errno|_pages)?|DoSampledAllocation|\
    MallocedMemBlock::MallocedMemBlock|_M_allocate|__builtin_(vec_)?(new|delete)|\
    __gnu_cxx::new_allocator::allocate|__libc_malloc|__malloc_alloc_template::allocate|\
    allocate|cpp_alloc|operator new(\\[\\])?|simple_alloc::allocate";
/// Go's runtime where it calls user code.
const KEEP_GO_RUNTIME: &str = "runtime\\.(panic|reflectcall|call[0-9]*)";
/// Frames of the profiler's own signal handler.
const DROP_PROFILERS: &str =
    "ProfileData::(Add|prof_handler)|CpuProfiler::prof_handler|__pthread_sighandler|__restore";

/// One entry where a binary is mapped in adjacent parts.
fn merge_adjacent(entries: Vec<Entry>) -> Vec<Entry> {
    let mut merged: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(last) = merged.last_mut()
            && adjacent(last, &entry)
        {
            last.limit = entry.limit;
            if !entry.file.is_empty() {
                last.file = entry.file;
            }
            if !entry.build_id.is_empty() {
                last.build_id = entry.build_id;
            }
        } else {
            merged.push(entry);
        }
    }
    merged
}

fn adjacent(a: &Entry, b: &Entry) -> bool {
    let same = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    let size = a.limit.wrapping_sub(a.start);
    same(&a.file, &b.file)
        && same(&a.build_id, &b.build_id)
        && a.limit == b.start
        && (a.offset == 0 || b.offset == 0 || a.offset.wrapping_add(size) == b.offset)
}

/// The program itself comes first: the first that is no shared library.
fn main_binary_first(entries: &mut [Entry]) {
    let main = entries.iter().position(|e| {
        let file = e.file.replace("(deleted)", "");
        let file = file.trim();
        let library = file.ends_with(".so")
            || file.match_indices(".so").any(|(at, _)| {
                let mut after = file[at + 3..].bytes();
                matches!(after.next(), Some(b'.' | b'_'))
                    && after.next().is_some_and(|b| b.is_ascii_digit())
            });
        !file.is_empty() && !library && !file.starts_with('[')
    });
    if let Some(main) = main {
        entries.swap(0, main);
    }
}
