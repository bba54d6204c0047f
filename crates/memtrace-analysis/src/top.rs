//! Where values are: per function, line, file or address, flat and cumulative.
//!
//! The rules are those of `go tool pprof -top`, so that both print the same numbers:
//! what has the same name is one row; a row counts once in a stack however often it
//! recurs; frames that the profile asks to drop (`drop_frames`, `keep_frames`) go,
//! with everything beneath them, unless nothing but them is above.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use memtrace_model::{Location, Profile, StackId, StringId};
use regex_lite::{Regex, RegexBuilder};

/// What makes one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// A function, by its name.
    #[default]
    Functions,
    /// A function in a source file.
    FileFunctions,
    /// A source file; pprof keeps functions apart that start at different lines.
    Files,
    /// A line of a function.
    Lines,
    /// An address, with the lines inlined there.
    Addresses,
}

/// One row of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// What it is: address, function, file and line as far as the granularity has
    /// them; `[binary]` where there are no symbols.
    pub name: String,
    /// Value of samples whose leaf this is, in the unit of the sample type.
    pub flat: i64,
    /// Value of samples whose stack this is on.
    pub cum: i64,
}

/// A table of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// All rows that are not 0, the greatest flat value (of either sign) first.
    pub rows: Vec<Row>,
    /// What 100 % is: the sum of the magnitudes of all samples, in a difference of
    /// those of the base alone.
    pub total: i64,
}

impl Top {
    /// Puts the greatest cumulative value first.
    pub fn sort_by_cum(&mut self) {
        self.rows.sort_by(|a, b| {
            let key = |r: &Row| Reverse(r.cum.unsigned_abs());
            let flat = |r: &Row| Reverse(r.flat.unsigned_abs());
            key(a)
                .cmp(&key(b))
                .then_with(|| a.name.cmp(&b.name))
                .then_with(|| flat(a).cmp(&flat(b)))
        });
    }
}

/// The rows of one sample type. No rows when there is no such sample type.
#[must_use]
pub fn top(profile: &Profile, sample_type: usize, granularity: Granularity) -> Top {
    let mut table = Table::new(granularity);
    let prune = Prune::of(profile);
    let total = table.add(profile, sample_type, 1.0, 1, prune.as_ref(), None);
    table.finish(total)
}

/// What `new` has more (or less) than `base`, as `-diff_base` of pprof shows it.
///
/// The sample type is one of `new`; in `base` the one of the same name is meant, in
/// whatever unit of the same kind. `None` when `base` has no such sample type.
#[must_use]
pub fn diff(
    new: &Profile,
    base: &Profile,
    sample_type: usize,
    granularity: Granularity,
) -> Option<Top> {
    let kind = new.sample_types.get(sample_type)?;
    let base_type = base.sample_type(new.text(kind.kind))?;
    let base_unit = base.text(base.sample_types.get(base_type)?.unit);
    let (new_ratio, base_ratio) = common_unit(new.text(kind.unit), base_unit)?;

    let mut table = Table::new(granularity);
    let prune = Prune::of(new);
    let grown = table.add(new, sample_type, new_ratio, 1, prune.as_ref(), None);
    let before = table.add(base, base_type, base_ratio, -1, prune.as_ref(), Some(new));
    Some(table.finish(if before > 0 { before } else { grown }))
}

/// Factors that bring two units to the finer one. `None` when they measure
/// different things.
fn common_unit(a: &str, b: &str) -> Option<(f64, f64)> {
    if a == b {
        return Some((1.0, 1.0));
    }
    let ((kind_a, a), (kind_b, b)) = (unit(a)?, unit(b)?);
    let finest = a.min(b);
    (kind_a == kind_b).then_some((a / finest, b / finest))
}

/// The kind of a unit and how many of the smallest of its kind it is.
fn unit(name: &str) -> Option<(u8, f64)> {
    let lower = name.to_lowercase();
    let singular = match lower.strip_suffix('s') {
        Some(singular) if lower.len() > 2 => singular,
        _ => &lower,
    };
    let size = |power: i32| Some((0, 1024f64.powi(power)));
    let time = |nanoseconds: f64| Some((1, nanoseconds));
    match singular {
        "b" | "byte" => size(0),
        "kb" | "kbyte" | "kilobyte" => size(1),
        "mb" | "mbyte" | "megabyte" => size(2),
        "gb" | "gbyte" | "gigabyte" => size(3),
        "tb" | "tbyte" | "terabyte" => size(4),
        "pb" | "pbyte" | "petabyte" => size(5),
        "ns" | "nanosecond" => time(1.0),
        "us" | "μs" | "microsecond" => time(1e3),
        "ms" | "millisecond" => time(1e6),
        "s" | "sec" | "second" => time(1e9),
        "hr" | "hour" => time(3600e9),
        _ => None,
    }
}

/// What makes rows equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Key<'a> {
    address: u64,
    name: &'a str,
    /// Shared by all lines of it: a path may be long.
    file: Arc<str>,
    line: i64,
    column: i64,
    /// Only where there is no name.
    binary: &'a str,
    start_line: i64,
}

impl Key<'_> {
    fn printed(&self) -> String {
        let mut parts: Vec<Cow<'_, str>> = Vec::with_capacity(3);
        if self.address != 0 {
            parts.push(format!("{:016x}", self.address).into());
        }
        if !self.name.is_empty() {
            parts.push(self.name.into());
        }
        if self.line != 0 {
            let column = match self.column {
                0 => String::new(),
                column => format!(":{column}"),
            };
            parts.push(format!("{}:{}{column}", self.file, self.line).into());
        } else if !self.file.is_empty() {
            parts.push((&*self.file).into());
        } else if self.name.is_empty() {
            parts.push(match self.binary {
                "" => "<unknown>".into(),
                binary => format!("[{}]", base_name(binary)).into(),
            });
        }
        parts.join(" ")
    }
}

struct Table<'a> {
    granularity: Granularity,
    numbers: HashMap<Key<'a>, u32>,
    keys: Vec<Key<'a>>,
    flat: Vec<i64>,
    cum: Vec<i64>,
}

impl<'a> Table<'a> {
    fn new(granularity: Granularity) -> Self {
        Self {
            granularity,
            numbers: HashMap::new(),
            keys: Vec::new(),
            flat: Vec::new(),
            cum: Vec::new(),
        }
    }

    /// Adds `sign` times what `profile` has; gives the sum of the magnitudes.
    fn add(
        &mut self,
        profile: &'a Profile,
        sample_type: usize,
        ratio: f64,
        sign: i64,
        prune: Option<&Prune>,
        merged_into: Option<&Profile>,
    ) -> i64 {
        let width = profile.sample_types.len();
        if sample_type >= width {
            return 0;
        }
        let mut total = 0i64;
        let mut weights = vec![0i64; profile.stacks.len()];
        for (stack, row) in profile
            .sample_stacks
            .iter()
            .zip(profile.values.chunks_exact(width))
        {
            let mut value = row[sample_type];
            if ratio != 1.0 {
                value = (value as f64 * ratio).round() as i64;
            }
            total = total.saturating_add(value.saturating_abs());
            if let Some(weight) = weights.get_mut(stack.index()) {
                *weight = weight.saturating_add(value);
            }
        }

        let cuts = Cuts::of(profile, prune);
        let rows = self.rows_of_locations(profile, &cuts, merged_into);
        let mut seen = vec![0u32; self.keys.len()];
        for (i, &weight) in weights.iter().enumerate().filter(|(_, w)| **w != 0) {
            let weight = weight.saturating_mul(sign);
            let stack = profile.stack(StackId(i as u32));
            let stack = &stack[cuts.first_kept(stack)..];
            let mut leaf = None;
            for &location in stack {
                for &row in rows.of(location.index()) {
                    leaf.get_or_insert(row);
                    // `seen` holds the number of the last stack that the row was on.
                    let mark = &mut seen[row as usize];
                    if *mark != i as u32 + 1 {
                        *mark = i as u32 + 1;
                        let cum = &mut self.cum[row as usize];
                        *cum = cum.saturating_add(weight);
                    }
                }
            }
            if let Some(leaf) = leaf {
                let flat = &mut self.flat[leaf as usize];
                *flat = flat.saturating_add(weight);
            }
        }
        total
    }

    /// The rows of every location, the innermost inlined call first.
    fn rows_of_locations(
        &mut self,
        profile: &'a Profile,
        cuts: &Cuts,
        merged_into: Option<&Profile>,
    ) -> Rows {
        let mut rows = Rows::default();
        let files = self.files(profile);
        let shifts = match (self.granularity, merged_into) {
            (Granularity::Addresses, Some(other)) => shifts(profile, other),
            _ => Vec::new(),
        };
        for (i, location) in profile.locations.iter().enumerate() {
            let binary = location
                .mapping
                .and_then(|m| profile.mappings.get(m.index()))
                .map_or("", |m| profile.text(m.file));
            let shift = location
                .mapping
                .and_then(|m| shifts.get(m.index()))
                .copied()
                .unwrap_or(0);
            let address = match self.granularity {
                Granularity::Addresses => location.address.wrapping_add(shift),
                _ => 0,
            };
            let lines = profile.lines_of(location);
            for line in lines.get(cuts.first_line(i)..).unwrap_or(&[]) {
                let f = line.function.index();
                let function = profile.functions.get(f).copied().unwrap_or_default();
                let mut key = Key {
                    address,
                    ..Key::default()
                };
                if self.granularity != Granularity::Files {
                    key.name = profile.text(function.name);
                }
                if let Some(file) = files.get(f) {
                    key.file = file.clone();
                }
                if matches!(
                    self.granularity,
                    Granularity::Lines | Granularity::Addresses
                ) {
                    key.line = line.line;
                }
                if self.granularity == Granularity::Addresses {
                    key.column = line.column;
                }
                if key.name.is_empty() {
                    key.binary = binary;
                    key.start_line = function.start_line;
                }
                rows.items.push(self.number(key));
            }
            if lines.is_empty() {
                rows.items.push(self.number(Key {
                    address,
                    binary,
                    ..Key::default()
                }));
            }
            rows.ends.push(rows.items.len());
        }
        rows
    }

    fn number(&mut self, key: Key<'a>) -> u32 {
        if let Some(&number) = self.numbers.get(&key) {
            return number;
        }
        let number = self.keys.len() as u32;
        self.keys.push(key.clone());
        self.flat.push(0);
        self.cum.push(0);
        self.numbers.insert(key, number);
        number
    }

    /// The file of each function as it is shown; empty when files do not matter.
    fn files(&self, profile: &Profile) -> Vec<Arc<str>> {
        if self.granularity == Granularity::Functions {
            return Vec::new();
        }
        let mut known: HashMap<StringId, Arc<str>> = HashMap::new();
        let functions = profile.functions.iter();
        let files = functions.map(|f| {
            let shown = known
                .entry(f.file)
                .or_insert_with(|| match profile.text(f.file) {
                    "" => Arc::default(),
                    file => clean_path(trimmed(file)).into(),
                });
            Arc::clone(shown)
        });
        files.collect()
    }

    fn finish(self, total: i64) -> Top {
        let mut found: Vec<(Key<'a>, Row)> = self
            .keys
            .into_iter()
            .zip(self.flat.into_iter().zip(self.cum))
            .filter(|(_, (flat, cum))| *flat != 0 || *cum != 0)
            .map(|(key, (flat, cum))| {
                let name = key.printed();
                (key, Row { name, flat, cum })
            })
            .collect();
        found.sort_unstable_by(|(ka, a), (kb, b)| {
            let flat = |r: &Row| Reverse(r.flat.unsigned_abs());
            let cum = |r: &Row| Reverse(r.cum.unsigned_abs());
            flat(a)
                .cmp(&flat(b))
                .then_with(|| a.name.cmp(&b.name))
                .then_with(|| cum(a).cmp(&cum(b)))
                .then_with(|| (ka.binary, ka.start_line).cmp(&(kb.binary, kb.start_line)))
        });
        Top {
            rows: found.into_iter().map(|(_, row)| row).collect(),
            total,
        }
    }
}

/// Rows of all locations in one column.
#[derive(Default)]
struct Rows {
    items: Vec<u32>,
    ends: Vec<usize>,
}

impl Rows {
    fn of(&self, location: usize) -> &[u32] {
        let Some(&end) = self.ends.get(location) else {
            return &[];
        };
        let start = if location == 0 {
            0
        } else {
            self.ends[location - 1]
        };
        &self.items[start..end]
    }
}

/// How far addresses of each mapping of `profile` are from where the same binary is
/// mapped in `other`: what makes addresses of two processes comparable.
fn shifts(profile: &Profile, other: &Profile) -> Vec<u64> {
    let key = |p: &'_ Profile, m: &memtrace_model::Mapping| {
        const PAGE: u64 = 0x1000;
        let size = m.limit.wrapping_sub(m.start).wrapping_add(PAGE - 1) & !(PAGE - 1);
        let binary = match p.text(m.build_id) {
            "" => p.text(m.file),
            build_id => build_id,
        };
        (size, m.offset, binary.to_owned())
    };
    let mut starts = HashMap::new();
    for m in &other.mappings {
        starts.entry(key(other, m)).or_insert(m.start);
    }
    profile
        .mappings
        .iter()
        .map(|m| {
            let start = starts.get(&key(profile, m)).copied().unwrap_or(m.start);
            start.wrapping_sub(m.start)
        })
        .collect()
}

/// Frames that a profile wants dropped.
struct Prune {
    drop: Regex,
    keep: Option<Regex>,
}

/// Bound on a compiled expression, bytes; that for allocators takes a third.
const MOST_EXPRESSION: usize = 64 << 10;
/// Longest name that is matched, and bytes of names in all: an expression may take
/// thousands of steps for each. The names of 50,000 functions.
const LONGEST_MATCHED: usize = 1 << 10;
const MOST_MATCHED: usize = 3 << 20;

impl Prune {
    /// `None` when there are none, or when the expressions are none.
    fn of(profile: &Profile) -> Option<Self> {
        // The expression comes from the file: bounded, so that matching it is too.
        let whole = |text: &str| {
            RegexBuilder::new(&format!("^({text})$"))
                .size_limit(MOST_EXPRESSION)
                .build()
                .ok()
        };
        let (drop, keep) = (
            profile.text(profile.drop_frames),
            profile.text(profile.keep_frames),
        );
        if drop.is_empty() {
            return None;
        }
        let drop = whole(drop)?;
        let keep = match keep {
            "" => None,
            keep => Some(whole(keep)?),
        };
        Some(Self { drop, keep })
    }

    fn drops(&self, function: &str) -> bool {
        let name = without_arguments(function);
        self.drop.is_match(name) && !self.keep.as_ref().is_some_and(|k| k.is_match(name))
    }
}

/// A name up to its argument list, whose parentheses are not those of
/// `(anonymous namespace)` or `operator()`.
fn without_arguments(name: &str) -> &str {
    let name = name.strip_prefix('.').unwrap_or(name);
    let mut from = 0;
    while let Some(at) = name[from..].find('(').map(|at| from + at) {
        if name[at..].starts_with("(anonymous namespace)") {
            from = at + "(anonymous namespace)".len();
        } else if name[from..at].ends_with("operator") && name[at..].starts_with("()") {
            from = at + 2;
        } else {
            return &name[..at];
        }
    }
    name
}

/// What pruning does to each location.
#[derive(Default)]
struct Cuts {
    /// Empty when nothing is pruned.
    cuts: Vec<Cut>,
    /// Inlined calls that go, of each location.
    first_lines: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Stays, with what is beneath.
    None,
    /// Its outer lines stay; what is beneath goes.
    Beneath,
    /// Goes, with what is beneath.
    Whole,
}

impl Cuts {
    fn of(profile: &Profile, prune: Option<&Prune>) -> Self {
        let Some(prune) = prune else {
            return Self::default();
        };
        let mut names: HashMap<u32, bool> = HashMap::new();
        let mut left = MOST_MATCHED;
        let mut drops = |name: &str| {
            let fits = name.len() <= LONGEST_MATCHED.min(left);
            left -= if fits { name.len() } else { 0 };
            fits && prune.drops(name)
        };
        let drops: Vec<bool> = profile
            .functions
            .iter()
            .map(|f| {
                let name = profile.text(f.name);
                !name.is_empty() && *names.entry(f.name.0).or_insert_with(|| drops(name))
            })
            .collect();
        let (cuts, first_lines) = profile
            .locations
            .iter()
            .map(|l| cut(profile, l, &drops))
            .unzip();
        Self { cuts, first_lines }
    }

    /// How many frames from the leaf go.
    fn first_kept(&self, stack: &[memtrace_model::LocationId]) -> usize {
        if self.cuts.is_empty() {
            return 0;
        }
        // A frame goes only when something that stays has called it.
        let mut called = false;
        for (i, location) in stack.iter().enumerate().rev() {
            match self.cuts.get(location.index()) {
                Some(Cut::Whole) if called => return i + 1,
                Some(Cut::Beneath) if called => return i,
                Some(Cut::Whole | Cut::Beneath) => {}
                Some(Cut::None) | None => called = true,
            }
        }
        0
    }

    fn first_line(&self, location: usize) -> usize {
        self.first_lines.get(location).map_or(0, |&l| l as usize)
    }
}

fn cut(profile: &Profile, location: &Location, drops: &[bool]) -> (Cut, u32) {
    let lines = profile.lines_of(location);
    let dropped = |f: usize| drops.get(f).copied().unwrap_or(false);
    match lines.iter().rposition(|l| dropped(l.function.index())) {
        None => (Cut::None, 0),
        Some(i) if i + 1 == lines.len() => (Cut::Whole, 0),
        Some(i) => (Cut::Beneath, i as u32 + 1),
    }
}

/// A path without the prefixes of build sandboxes.
fn trimmed(path: &str) -> &str {
    path.strip_prefix("/proc/self/cwd/./")
        .or_else(|| path.strip_prefix("/proc/self/cwd/"))
        .unwrap_or(path)
}

/// A path without `.`, `..` and doubled slashes, as Go's `filepath.Clean` gives it.
fn clean_path(path: &str) -> Cow<'_, str> {
    let tidy = !path.is_empty()
        && (path == "/" || !path.ends_with('/'))
        && !path.contains("//")
        && path.split('/').all(|part| part != "." && part != "..");
    if tidy {
        return Cow::Borrowed(path);
    }
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|&last| last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    Cow::Owned(match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    })
}

/// The last part of a path, as Go's `filepath.Base` gives it.
fn base_name(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        Some("") | None => "/",
        Some(base) => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_up_to_their_arguments() {
        for (name, expected) in [
            ("main.run", "main.run"),
            ("f(int)", "f"),
            (".f(int)", "f"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
            ("A::operator()(int)", "A::operator()"),
            ("operator()", "operator()"),
            ("operator(", "operator"),
            ("main.(*T).f", "main."),
            ("é(ü)", "é"),
            ("", ""),
        ] {
            assert_eq!(without_arguments(name), expected, "{name}");
        }
    }

    #[test]
    fn paths_as_go_cleans_them() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("a//b/./c/..", "a/b"),
            ("/..//a/", "/a"),
            ("../../a", "../../a"),
            ("a/..", "."),
            ("/", "/"),
            ("//", "/"),
            ("./x.go", "x.go"),
        ] {
            assert_eq!(clean_path(path), expected, "{path}");
        }
        for (path, expected) in [("/a/b", "b"), ("/a/b//", "b"), ("b", "b"), ("//", "/")] {
            assert_eq!(base_name(path), expected, "{path}");
        }
        assert_eq!(trimmed("/proc/self/cwd/./a.cc"), "a.cc");
        assert_eq!(trimmed("/proc/self/cwd/a.cc"), "a.cc");
    }

    #[test]
    fn units_meet_at_the_finer_one() {
        assert_eq!(common_unit("foo", "foo"), Some((1.0, 1.0)));
        assert_eq!(common_unit("bytes", "KB"), Some((1.0, 1024.0)));
        assert_eq!(common_unit("seconds", "ms"), Some((1000.0, 1.0)));
        assert_eq!(common_unit("bytes", "seconds"), None);
        assert_eq!(common_unit("bytes", "count"), None);
        for name in ["gigabytes", "tb", "pb", "us", "mbyte", "hour"] {
            assert!(unit(name).is_some(), "{name}");
        }
    }

    fn folded(text: &str) -> Profile {
        memtrace_formats::folded::parse(text.as_bytes())
            .unwrap()
            .profile
    }

    fn rows(top: &Top) -> Vec<(&str, i64, i64)> {
        top.rows
            .iter()
            .map(|r| (r.name.as_str(), r.flat, r.cum))
            .collect()
    }

    #[test]
    fn recursion_counts_once() {
        let profile = folded("main;f;g;f 5\nmain;f 2\nmain;z 0\nmain -1\n");
        let mut found = top(&profile, 0, Granularity::Functions);
        assert_eq!(found.total, 8);
        assert_eq!(rows(&found), [("f", 7, 7), ("main", -1, 6), ("g", 0, 5)]);
        found.sort_by_cum();
        assert_eq!(rows(&found), [("f", 7, 7), ("main", -1, 6), ("g", 0, 5)]);
        assert_eq!(top(&profile, 1, Granularity::Functions), Top::default());
    }

    #[test]
    fn difference_is_relative_to_the_base() {
        let (new, base) = (folded("main;f 5\nmain;g 1"), folded("main;f 2\nmain;h 4"));
        let found = diff(&new, &base, 0, Granularity::Functions).unwrap();
        assert_eq!(found.total, 6);
        assert_eq!(rows(&found), [("h", -4, -4), ("f", 3, 3), ("g", 1, 1)]);
        let mut other = base.clone();
        other.sample_types[0].kind = other.intern("bytes");
        assert_eq!(diff(&new, &other, 0, Granularity::Functions), None);
        assert_eq!(diff(&new, &base, 1, Granularity::Functions), None);
    }

    #[test]
    fn units_are_converted() {
        let (mut new, mut base) = (folded("f 5"), folded("f 2"));
        new.sample_types[0].unit = new.intern("kilobytes");
        base.sample_types[0].unit = base.intern("bytes");
        let found = diff(&new, &base, 0, Granularity::Functions).unwrap();
        assert_eq!(rows(&found), [("f", 5 * 1024 - 2, 5 * 1024 - 2)]);
    }

    #[test]
    fn a_hostile_expression_drops_nothing() {
        let mut profile = folded("main;f 5");
        profile.drop_frames = profile.intern("((a{1000}){1000}){1000}");
        assert_eq!(top(&profile, 0, Granularity::Functions).rows.len(), 2);
    }

    #[test]
    fn allocators_are_dropped_from_text_profiles() {
        // The text forms come with expressions of their own.
        let text = "heap profile: 1: 8 [1: 8] @ heapprofile\n1: 8 [1: 8] @ 0x1 0x2\n";
        let mut profile = memtrace_formats::pprof::parse(text.as_bytes())
            .unwrap()
            .profile;
        assert!(Prune::of(&profile).is_some());
        for (name, dropped) in [
            ("malloc", true),
            ("tc_malloc", true),
            ("tc_newarray_nothrow", true),
            ("__posix_memalign", true),
            ("operator new[](unsigned long)", true),
            ("tcmalloc::ThreadCache::Allocate(int)", true),
            ("runtime.mallocgc", true),
            ("runtime.call32", false),
            ("my_malloc", false),
        ] {
            assert_eq!(Prune::of(&profile).unwrap().drops(name), dropped, "{name}");
        }
        profile.drop_frames = Default::default();
        assert!(Prune::of(&profile).is_none());
    }
}
