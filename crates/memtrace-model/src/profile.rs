use std::collections::HashMap;
use std::sync::LazyLock;

use xxhash_rust::xxh3::Xxh3;

use crate::{Lists, Strings, Time};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into the column it numbers.
            #[must_use]
            pub fn index(self) -> usize { self.0 as usize }
        }
    )*};
}

ids! {
    /// Number of a string in [`Profile::strings`]; 0 is the empty string.
    StringId
    /// Index into [`Profile::mappings`].
    MappingId
    /// Index into [`Profile::functions`].
    FunctionId
    /// Index into [`Profile::locations`].
    LocationId
    /// Number of a stack in [`Profile::stacks`].
    StackId
    /// Number of a label set in [`Profile::label_sets`].
    LabelSetId
}

/// What a column of sample values counts, and in which unit
/// (`inuse_space`/`bytes`, `goroutine`/`count`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ValueType {
    /// What is counted.
    pub kind: StringId,
    /// The unit.
    pub unit: StringId,
}

/// A mapped binary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub limit: u64,
    /// Offset in the file that `start` maps.
    pub offset: u64,
    /// Path of the file.
    pub file: StringId,
    /// Build id, hexadecimal.
    pub build_id: StringId,
    /// The profile names functions of this mapping.
    pub has_functions: bool,
    /// The profile names files.
    pub has_filenames: bool,
    /// The profile names line numbers.
    pub has_line_numbers: bool,
    /// The profile knows inlined frames.
    pub has_inline_frames: bool,
}

/// A function as the profile names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// The name for people.
    pub name: StringId,
    /// The linker's name.
    pub system_name: StringId,
    /// Source file.
    pub file: StringId,
    /// Line where the function starts, 0 when unknown.
    pub start_line: i64,
}

/// One source line of a location.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// Line number, 0 when unknown.
    pub line: i64,
    /// Column, 0 when unknown.
    pub column: i64,
}

/// A program location: an address, and the lines it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The address, 0 when unknown.
    pub address: u64,
    /// The binary it is in.
    pub mapping: Option<MappingId>,
    /// Several functions were folded into this address by the linker.
    pub is_folded: bool,
    /// First line in [`Profile::lines`]; the innermost inlined call comes first.
    pub first_line: u32,
    /// How many lines; 0 for a location without symbols.
    pub line_count: u32,
}

/// The value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelValue {
    /// Text.
    Text(StringId),
    /// A number with its unit (empty when none is given).
    Number(i64, StringId),
}

/// One label of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// The key.
    pub key: StringId,
    /// The value.
    pub value: LabelValue,
}

/// A sampled profile in interned columns.
///
/// Sample `i` is `sample_stacks[i]`, `sample_labels[i]` and the row
/// `values[i*n..(i+1)*n]` with `n = sample_types.len()`. Stacks hold locations,
/// the leaf first. Columns are public: whoever fills them keeps these lengths
/// and never refers to a row that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// All text.
    pub strings: Strings,
    /// What each value of a sample counts.
    pub sample_types: Vec<ValueType>,
    /// The sample type to show when nobody asks for another; index into `sample_types`.
    pub default_sample_type: Option<usize>,
    /// Binaries.
    pub mappings: Vec<Mapping>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Lines of all locations.
    pub lines: Vec<Line>,
    /// Locations.
    pub locations: Vec<Location>,
    /// Interned stacks, the leaf first.
    pub stacks: Lists<LocationId>,
    /// Interned label sets, in the order of the file.
    pub label_sets: Lists<Label>,
    /// Stack of each sample.
    pub sample_stacks: Vec<StackId>,
    /// Labels of each sample.
    pub sample_labels: Vec<LabelSetId>,
    /// Values of each sample, row by row.
    pub values: Vec<i64>,
    /// When the profile was taken, nanoseconds since the Unix epoch; 0 when unknown.
    pub time_nanos: i64,
    /// Span it covers, nanoseconds; 0 when it is a moment.
    pub duration_nanos: i64,
    /// What `period` counts.
    pub period_type: ValueType,
    /// Mean distance between samples (bytes for a heap profile); 0 when unknown.
    pub period: i64,
    /// Regular expression of frames to drop, empty when none.
    pub drop_frames: StringId,
    /// Regular expression of frames to keep in spite of `drop_frames`.
    pub keep_frames: StringId,
    /// Free text.
    pub comments: Vec<StringId>,
    /// Link to documentation of this kind of profile.
    pub doc_url: StringId,
}

/// One frame of a stack, resolved to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// Function, empty for a location without symbols.
    pub function: &'a str,
    /// Source file.
    pub file: &'a str,
    /// Line, 0 when unknown.
    pub line: i64,
    /// Address of the location, 0 when unknown.
    pub address: u64,
    /// The binary, empty when unknown.
    pub binary: &'a str,
    /// The call was inlined into the frame that follows.
    pub inlined: bool,
}

/// Name of the only frame of the row that stands for everything beyond a budget.
pub const OTHER: &str = "[other]";

/// Identity of a stack across profiles, processes and files: 128-bit XXH3 of its
/// frames (function, file, line; binary and offset where there are no symbols).
/// Addresses of symbolised frames do not count, so it survives a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackKey(pub u128);

impl StackKey {
    /// The key of the stack whose only frame is [`OTHER`]: what it stands for changes from
    /// profile to profile, so that nothing can be said of it as of a stack.
    #[must_use]
    pub fn other() -> Self {
        static KEY: LazyLock<StackKey> = LazyLock::new(|| {
            let mut profile = Profile::default();
            let stack = profile.other_stack();
            let keys = profile.stack_keys();
            keys.get(stack.index()).copied().unwrap_or_default()
        });
        *KEY
    }
}

impl Profile {
    /// The text behind `id`; empty when there is none.
    #[must_use]
    pub fn text(&self, id: StringId) -> &str {
        self.strings.get(id.0)
    }

    /// Interns `text`.
    pub fn intern(&mut self, text: &str) -> StringId {
        StringId(self.strings.intern(text))
    }

    /// Adds a location without an address: one line (0 when unknown) of a function that
    /// is known by its name alone. Every call adds another one.
    pub fn add_location(&mut self, function: &str, line: i64) -> LocationId {
        let name = self.intern(function);
        self.functions.push(Function {
            name,
            system_name: name,
            ..Function::default()
        });
        self.lines.push(Line {
            function: FunctionId(self.functions.len() as u32 - 1),
            line,
            column: 0,
        });
        self.locations.push(Location {
            first_line: self.lines.len() as u32 - 1,
            line_count: 1,
            ..Location::default()
        });
        LocationId(self.locations.len() as u32 - 1)
    }

    /// Adds the stack whose only frame is [`OTHER`].
    pub fn other_stack(&mut self) -> StackId {
        let location = self.add_location(OTHER, 0);
        StackId(self.stacks.intern(&[location]).unwrap_or(0))
    }

    /// Bytes that its columns take.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.strings.memory()
            + self.stacks.memory()
            + self.label_sets.memory()
            + self.values.capacity() * size_of::<i64>()
            + self.sample_types.capacity() * size_of::<ValueType>()
            + self.mappings.capacity() * size_of::<Mapping>()
            + self.functions.capacity() * size_of::<Function>()
            + self.lines.capacity() * size_of::<Line>()
            + self.locations.capacity() * size_of::<Location>()
            + self.sample_stacks.capacity() * size_of::<StackId>()
            + self.sample_labels.capacity() * size_of::<LabelSetId>()
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sample_stacks.len()
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sample_stacks.is_empty()
    }

    /// Values of sample `i`, one for each sample type.
    #[must_use]
    pub fn row(&self, i: usize) -> &[i64] {
        let n = self.sample_types.len();
        self.values.get(i * n..(i + 1) * n).unwrap_or(&[])
    }

    /// Index of the sample type called `kind`.
    #[must_use]
    pub fn sample_type(&self, kind: &str) -> Option<usize> {
        self.sample_types
            .iter()
            .position(|t| self.text(t.kind) == kind)
    }

    /// Index of the sample type to show by default: the profile's own choice,
    /// else the last one, as pprof does. `None` when there is no sample type.
    #[must_use]
    pub fn shown_sample_type(&self) -> Option<usize> {
        self.default_sample_type
            .filter(|&i| i < self.sample_types.len())
            .or(self.sample_types.len().checked_sub(1))
    }

    /// Sum of column `sample_type` over all samples.
    #[must_use]
    pub fn total(&self, sample_type: usize) -> i64 {
        let n = self.sample_types.len().max(1);
        self.values
            .iter()
            .skip(sample_type)
            .step_by(n)
            .fold(0i64, |sum, &v| sum.saturating_add(v))
    }

    /// Numeric label `key` of sample `i`.
    #[must_use]
    pub fn number_label(&self, i: usize, key: StringId) -> Option<i64> {
        let labels = self.label_sets.get(self.sample_labels.get(i)?.0);
        labels
            .iter()
            .find(|l| l.key == key)
            .and_then(|l| match l.value {
                LabelValue::Number(n, _) => Some(n),
                LabelValue::Text(_) => None,
            })
    }

    /// Locations of a stack, the leaf first.
    #[must_use]
    pub fn stack(&self, id: StackId) -> &[LocationId] {
        self.stacks.get(id.0)
    }

    /// Lines of a location, the innermost inlined call first.
    #[must_use]
    pub fn lines_of(&self, location: &Location) -> &[Line] {
        let first = location.first_line as usize;
        self.lines
            .get(first..first + location.line_count as usize)
            .unwrap_or(&[])
    }

    /// Frames of a location, the innermost inlined call first; one frame without
    /// a function where there are no symbols.
    pub fn frames_of(&self, id: LocationId) -> impl Iterator<Item = FrameRef<'_>> {
        let location = self.locations.get(id.index()).copied().unwrap_or_default();
        let binary = location
            .mapping
            .and_then(|m| self.mappings.get(m.index()))
            .map_or("", |m| self.text(m.file));
        let lines = self.lines_of(&location);
        let bare = lines.is_empty().then_some(FrameRef {
            function: "",
            file: "",
            line: 0,
            address: location.address,
            binary,
            inlined: false,
        });
        let last = lines.len().saturating_sub(1);
        let named = lines.iter().enumerate().map(move |(i, line)| {
            let function = self
                .functions
                .get(line.function.index())
                .copied()
                .unwrap_or_default();
            FrameRef {
                function: self.text(function.name),
                file: self.text(function.file),
                line: line.line,
                address: location.address,
                binary,
                inlined: i < last,
            }
        });
        named.chain(bare)
    }

    /// Frames of a stack, the leaf first, inlined calls expanded.
    pub fn frames(&self, id: StackId) -> impl Iterator<Item = FrameRef<'_>> {
        self.stack(id).iter().flat_map(|&l| self.frames_of(l))
    }

    /// Names the functions at addresses whose locations have no symbols, where `names`
    /// knows them.
    pub fn name_addresses(&mut self, names: &HashMap<u64, String>) {
        let mut functions: HashMap<&str, FunctionId> = HashMap::new();
        for location in self.locations.iter_mut().filter(|l| l.line_count == 0) {
            let Some(name) = names.get(&location.address) else {
                continue;
            };
            let function = *functions.entry(name).or_insert_with(|| {
                let name = StringId(self.strings.intern(name));
                self.functions.push(Function {
                    name,
                    system_name: name,
                    ..Function::default()
                });
                FunctionId(self.functions.len() as u32 - 1)
            });
            location.first_line = self.lines.len() as u32;
            location.line_count = 1;
            self.lines.push(Line {
                function,
                ..Line::default()
            });
        }
    }

    /// The identity of every stack, indexed by [`StackId`].
    #[must_use]
    pub fn stack_keys(&self) -> Vec<StackKey> {
        let locations: Vec<u128> = (0..self.locations.len())
            .map(|i| self.location_key(LocationId(i as u32)))
            .collect();
        (0..self.stacks.len() as u32)
            .map(|s| {
                let mut hash = Xxh3::new();
                for l in self.stacks.get(s) {
                    let key = locations.get(l.index()).copied().unwrap_or_default();
                    hash.update(&key.to_le_bytes());
                }
                StackKey(hash.digest128())
            })
            .collect()
    }

    fn location_key(&self, id: LocationId) -> u128 {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for frame in self.frames_of(id) {
            part(frame.function.as_bytes());
            part(frame.file.as_bytes());
            part(&frame.line.to_le_bytes());
            if frame.function.is_empty() {
                let mapping = self
                    .locations
                    .get(id.index())
                    .and_then(|l| self.mappings.get(l.mapping?.index()))
                    .copied()
                    .unwrap_or_default();
                part(frame.binary.as_bytes());
                part(self.text(mapping.build_id).as_bytes());
                let offset = frame
                    .address
                    .wrapping_sub(mapping.start)
                    .wrapping_add(mapping.offset);
                part(&offset.to_le_bytes());
            }
        }
        hash.digest128()
    }

    /// When the profile was taken, where it says so.
    #[must_use]
    pub fn taken_at(&self) -> Option<Time> {
        (self.time_nanos > 0).then_some(Time(self.time_nanos / 1_000_000))
    }
}
