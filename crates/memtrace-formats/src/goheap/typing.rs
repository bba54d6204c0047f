//! What each object is: from what names its type outright, on along its pointers.
//!
//! Large objects name their type, interfaces that of what they hold, closures their
//! function; variables have types in the debug information. From there a pointer's type
//! tells what it leads to. A claim counts only where it fits: the size, whether there are
//! pointers at all, and each pointer of the object where the type has one.

use hashbrown::{HashMap, HashSet};
use std::rc::Rc;

use memtrace_model::{
    Addresses, ChannelUse, HeapField, HeapGraph, HeapKind, HeapType, HeapTypeId, Lists, MapUse,
    NodeId, SliceUse,
};

use super::classes::Allocator;
use super::image::Image;
use super::memory::Window;
use super::scan::Edges;
use super::spans::{Pointers, Spans};
use super::types::{Form, Pointee, Slot, TypeNo, Types};

/// How sure a claim is; a surer one takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Trust {
    None = 0,
    /// By a rule that may be wrong.
    Inferred = 1,
    /// By a pointer that may lead to a part of the object only.
    Loose = 2,
    /// By a slice: elements of this type.
    Elements = 3,
    /// By a pointer whose type has the object's size, an interface, a function's address.
    Exact = 4,
    /// By the allocator.
    Certain = 5,
}

/// What an object may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Of(Form, TypeNo),
    /// A function value, by the number of its name; with the type of what it captured, where
    /// that is known.
    Closure(u32, Option<TypeNo>),
}

/// Bytes of arrays of which it is told how much is used.
const LARGE: u64 = 32 << 10;
/// Pointers that are looked at to infer types, in all.
const MAX_EFFORT: usize = 1 << 29;
/// Pointers of an object that are looked at when a claim is checked.
const CHECKED: usize = 256;
/// What is known of a type of objects.
struct Entry {
    what: What,
    slots: Rc<[Slot]>,
    stride: u64,
    inferred: bool,
}

pub(crate) struct Typing<'a> {
    pub(crate) types: Types<'a>,
    window: &'a Window<'a>,
    image: &'a Image,
    spans: &'a Spans,
    addresses: &'a Addresses,
    edges: &'a Edges,
    pub(crate) allocator: Allocator,
    entries: Vec<Entry>,
    numbers: HashMap<(What, bool), u32>,
    /// For each object, its type's number in `entries`, plus 1.
    of: Vec<u32>,
    trust: Vec<Trust>,
    open: Vec<u32>,
    /// Objects that the allocator knows as arrays of `*internal/runtime/maps.table`.
    directories: Vec<(u32, TypeNo)>,
    /// Maps whose header has not been read.
    maps: Vec<(u32, TypeNo)>,
    /// Entries of each map.
    used: HashMap<u32, u64>,
    /// Length and capacity of the longest slice of large arrays.
    slices: HashMap<u32, (u64, u64)>,
    /// Pointers that may still be looked at to infer types.
    pub(crate) effort: usize,
}

impl<'a> Typing<'a> {
    pub(crate) fn new(
        types: Types<'a>,
        window: &'a Window<'a>,
        image: &'a Image,
        spans: &'a Spans,
        addresses: &'a Addresses,
        edges: &'a Edges,
        allocator: Allocator,
    ) -> Self {
        Self {
            allocator,
            types,
            window,
            image,
            spans,
            addresses,
            edges,
            entries: Vec::new(),
            numbers: HashMap::new(),
            of: vec![0; addresses.len()],
            trust: vec![Trust::None; addresses.len()],
            open: Vec::new(),
            directories: Vec::new(),
            maps: Vec::new(),
            used: HashMap::new(),
            slices: HashMap::new(),
            effort: MAX_EFFORT,
        }
    }

    /// Takes in what a pointer leads to.
    pub(crate) fn pointer(&mut self, node: u32, to: Pointee, interior: bool) {
        let (form, kind) = match to {
            Pointee::Object(form, kind) => (form, kind),
            Pointee::TrieNode(kind) if !interior => return self.trie_node(node, kind),
            _ => return,
        };
        let most = match form {
            Form::Array | Form::Text => Trust::Elements,
            _ => Trust::Exact,
        };
        if self
            .trust
            .get(node as usize)
            .is_none_or(|&known| known >= most)
        {
            return;
        }
        if form == Form::Value && self.types.is_any_channel(kind) {
            if !interior {
                self.channel(node);
            }
            return;
        }
        let (size, header) = self.bytes(node);
        let allocator = self.allocator;
        let fits = |bytes: u64| allocator.place(bytes, header) == size;
        let of_type = self.types.size(kind);
        match form {
            Form::Value if interior => {}
            Form::Value if fits(of_type) => {
                // The runtime's own functions do not say of which map it is a part.
                let trust = match self.types.is_part_of_map(kind) {
                    true => Trust::Loose,
                    false => Trust::Exact,
                };
                self.claim(node, What::Of(Form::Value, kind), trust);
            }
            // The first of many.
            Form::Value if of_type > 0 && size >= of_type.saturating_mul(2) => {
                self.claim(node, What::Of(Form::Array, kind), Trust::Loose);
            }
            Form::Value => {}
            Form::Array | Form::Text => {
                let trust = if interior {
                    Trust::Loose
                } else {
                    Trust::Elements
                };
                if of_type > 0 || form == Form::Text {
                    self.claim(node, What::Of(form, kind), trust);
                }
            }
            _ if interior => {}
            _ => self.claim(node, What::Of(form, kind), Trust::Exact),
        }
    }

    /// Takes in that the object is an inner node or an entry of a trie.
    fn trie_node(&mut self, node: u32, kind: TypeNo) {
        let known = self.trust.get(node as usize);
        if known.is_none_or(|&known| known >= Trust::Exact) {
            return;
        }
        let at = self
            .addresses
            .at(node as usize)
            .wrapping_add(self.bytes(node).1);
        let part = match self.window.u8(at) {
            Ok(is_entry @ 0..=1) => self.types.trie_part(kind, is_entry == 1),
            _ => None,
        };
        if let Some(part) = part {
            self.pointer(node, Pointee::Object(Form::Value, part), false);
        }
    }

    /// Takes in that the object is a channel, which names the type of its values.
    pub(crate) fn channel(&mut self, node: u32) {
        let read = |field: &str| {
            let offset = self.image.layout.find(field)?;
            let at = self.addresses.get(node as usize)?.checked_add(offset)?;
            self.window.u64(at).ok()
        };
        let (kind, size) = (read("hchan.elemtype"), read("hchan.elemsize"));
        let Some(kind) = kind.and_then(|k| self.types.runtime(k)) else {
            return;
        };
        // A number of 16 bits.
        if size.is_some_and(|s| s & 0xffff == self.types.size(kind)) {
            self.claim(node, What::Of(Form::Channel, kind), Trust::Exact);
        }
    }

    /// Takes in that the allocator made the object of this type.
    pub(crate) fn own(&mut self, node: u32, kind: TypeNo) {
        // A large directory of a map says only that it is one; its map says of which.
        if self.types.name(Form::Value, kind) == "*internal/runtime/maps.table" {
            self.directories.push((node, kind));
            return;
        }
        self.certain(node, kind);
    }

    /// Directories of maps of which nothing has told the map yet.
    pub(crate) fn unknown_directories(&self) -> Vec<u32> {
        let all = self.directories.iter().map(|&(node, _)| node);
        all.filter(|&n| self.what(n).is_none()).collect()
    }

    /// Directories whose map nothing tells are what the allocator says.
    pub(crate) fn give_up_directories(&mut self) {
        for (node, kind) in std::mem::take(&mut self.directories) {
            if self.what(node).is_none() {
                self.certain(node, kind);
            }
        }
    }

    fn certain(&mut self, node: u32, kind: TypeNo) {
        let (size, header) = self.bytes(node);
        let of_type = self.types.size(kind).max(1);
        if let Some(map) = self.types.map_of(kind) {
            self.claim(node, What::Of(Form::MapEntries, map), Trust::Certain);
            return;
        }
        let form = if (size - header.min(size)) / of_type >= 2 {
            Form::Array
        } else {
            Form::Value
        };
        // The map that a list of tables belongs to is told by who leads to it.
        let trust = match self.types.is_map_table(kind) {
            true => Trust::Loose,
            false => Trust::Certain,
        };
        self.claim(node, What::Of(form, kind), trust);
    }

    /// Takes in that an interface holds the object as this type.
    pub(crate) fn held(&mut self, node: u32, kind: TypeNo) {
        match self.types.held_by_interface(kind) {
            Pointee::Object(Form::Value, kind) => {
                let (size, header) = self.bytes(node);
                if self.allocator.place(self.types.size(kind), header) == size {
                    self.claim(node, What::Of(Form::Value, kind), Trust::Exact);
                }
            }
            to => self.pointer(node, to, false),
        }
    }

    /// Takes in that the object is a function value.
    pub(crate) fn closure(&mut self, node: u32, function: &str, kind: Option<TypeNo>) {
        let name = self.types.names.intern(function);
        self.claim(node, What::Closure(name, kind), Trust::Exact);
        self.claim(node, What::Closure(name, None), Trust::Exact);
    }

    pub(crate) fn claim(&mut self, node: u32, what: What, trust: Trust) {
        let at = node as usize;
        if self.trust.get(at).is_none_or(|&known| known >= trust) {
            return;
        }
        let number = self.number(what, trust <= Trust::Loose);
        if trust < Trust::Certain && !self.fits(node, number) {
            return;
        }
        if self.of[at] == number + 1 {
            self.trust[at] = trust;
            return;
        }
        self.trust[at] = trust;
        self.of[at] = number + 1;
        self.open.push(node);
    }

    /// Size of the object's place, and how many bytes of it come before the value.
    fn bytes(&self, node: u32) -> (u64, u64) {
        let span = self.span(node);
        span.map_or((0, 0), |s| (s.size, s.header()))
    }

    fn span(&self, node: u32) -> Option<&super::spans::Span> {
        let address = self.addresses.get(node as usize)?;
        self.spans.list.get(self.spans.span_at(address)?)
    }

    /// Whether an object may be a value of a type, or several side by side.
    fn may_be(&mut self, node: u32, kind: TypeNo) -> bool {
        let (size, header) = self.bytes(node);
        let of_type = self.types.size(kind);
        let form = if self.allocator.place(of_type, header) == size {
            Form::Value
        } else if of_type > 0 && of_type.saturating_mul(2) <= size {
            Form::Array
        } else {
            // A part of something larger may be pointed to as well.
            return of_type < size;
        };
        let number = self.number(What::Of(form, kind), true);
        self.fits(node, number)
    }

    fn is_plain(&self, node: u32) -> bool {
        self.span(node).is_none_or(|s| s.pointers == Pointers::None)
    }

    fn number(&mut self, what: What, inferred: bool) -> u32 {
        if let Some(&number) = self.numbers.get(&(what, inferred)) {
            return number;
        }
        let (slots, stride) = match what {
            What::Of(form, kind) => (self.types.slots(form, kind), self.types.stride(form, kind)),
            What::Closure(_, Some(kind)) => (self.types.slots(Form::Value, kind), 0),
            What::Closure(_, None) => (Rc::default(), 0),
        };
        self.entries.push(Entry {
            what,
            slots,
            stride,
            inferred,
        });
        let number = self.entries.len() as u32 - 1;
        self.numbers.insert((what, inferred), number);
        number
    }

    fn range(&self, node: u32) -> std::ops::Range<usize> {
        let starts = &self.edges.starts;
        starts[node as usize] as usize..starts[node as usize + 1] as usize
    }

    /// What the pointers of an object lead to.
    pub(crate) fn targets(&self, node: u32) -> &'a [u32] {
        let edges: &'a Edges = self.edges;
        &edges.targets[self.range(node)]
    }

    /// Whether the object has pointers only where the type has them.
    fn fits(&self, node: u32, number: u32) -> bool {
        let entry = &self.entries[number as usize];
        if matches!(entry.what, What::Closure(_, None)) {
            return true;
        }
        let has_pointers = !self.is_plain(node);
        // A channel of plain values and its buffer are one object without pointers.
        let may_be_plain = matches!(entry.what, What::Of(Form::Channel, _));
        if has_pointers == entry.slots.is_empty() && !may_be_plain {
            return false;
        }
        let mut slots = self.edges.slots.range(self.range(node)).take(CHECKED);
        let is_cut = matches!(entry.what, What::Of(_, kind) if self.types.is_cut(kind));
        slots.all(|s| entry.slot(s.offset()).is_some() || is_cut)
    }

    /// Follows pointers from all objects whose type is new, until there are none.
    pub(crate) fn propagate(&mut self) {
        loop {
            while let Some(node) = self.open.pop() {
                self.follow(node);
            }
            if self.maps.is_empty() {
                return;
            }
            self.read_maps();
        }
    }

    fn follow(&mut self, node: u32) {
        let Some(number) = self.of[node as usize].checked_sub(1) else {
            return;
        };
        let entry = &self.entries[number as usize];
        if let What::Of(Form::Map, kind) = entry.what {
            self.maps.push((node, kind));
        }
        if entry.slots.is_empty() {
            return;
        }
        for edge in self.range(node) {
            let slot = self.edges.slots.at(edge);
            let to = self.entries[number as usize].slot(slot.offset());
            if let Some(to) = to.map(|s| s.to) {
                self.pointer(self.edges.targets[edge], to, slot.is_interior());
                if let Pointee::Object(Form::Array, _) = to {
                    let at = self
                        .addresses
                        .at(node as usize)
                        .wrapping_add(self.bytes(node).1);
                    self.slice(self.edges.targets[edge], at.wrapping_add(slot.offset()));
                }
            }
        }
    }

    /// Takes in how much of a large array the slice at an address uses.
    pub(crate) fn slice(&mut self, array: u32, at: u64) {
        if self.bytes(array).0 < LARGE {
            return;
        }
        let Ok((_, used, capacity)) = self.window.slice(at) else {
            return;
        };
        let longest = self.slices.entry(array).or_default();
        if used <= capacity && used >= longest.0 {
            *longest = (used, capacity);
        }
    }

    /// How full maps are, ascending by node.
    fn map_uses(&self) -> Vec<MapUse> {
        let mut left = self.edges.targets.len().saturating_mul(2);
        let mut maps: Vec<(u32, u64)> = self.used.iter().map(|(&n, &used)| (n, used)).collect();
        maps.sort_unstable();
        let uses = maps.into_iter().map(|(node, used)| MapUse {
            node: NodeId(node),
            used,
            capacity: self.map_capacity(node, &mut left),
        });
        uses.collect()
    }

    /// Entries that all buckets or groups of a map have room for; 0 once more edges were
    /// followed than there are (`left`): maps share nothing.
    fn map_capacity(&self, map: u32, left: &mut usize) -> u64 {
        /// Entries of a bucket, and of a group.
        const ENTRIES: u64 = 8;
        let mut capacity = 0;
        let (mut open, mut seen) = (vec![map], HashSet::new());
        while let Some(node) = open.pop() {
            for &target in &self.edges.targets[self.range(node)] {
                match left.checked_sub(1) {
                    Some(less) => *left = less,
                    None => return 0,
                }
                let Some(entry) = self.entry(target) else {
                    continue;
                };
                if !seen.insert(target) {
                    continue;
                }
                match entry.what {
                    What::Of(Form::MapTable | Form::MapDirectory, _) => open.push(target),
                    What::Of(Form::MapEntries, _) => {
                        let (size, header) = self.bytes(target);
                        let parts = (size - header.min(size)) / entry.stride.max(1);
                        capacity += ENTRIES * parts;
                    }
                    _ => {}
                }
            }
        }
        capacity
    }

    fn entry(&self, node: u32) -> Option<&Entry> {
        let number = self.of.get(node as usize)?.checked_sub(1)?;
        self.entries.get(number as usize)
    }

    /// How full channels are, ascending by node.
    fn channel_uses(&self) -> Vec<ChannelUse> {
        let nodes = (0..).take(self.of.len());
        let channels = nodes.filter(|&n| {
            let entry = self.entry(n);
            entry.is_some_and(|e| matches!(e.what, What::Of(Form::Channel, _)))
        });
        channels
            .filter_map(|node| {
                // Of `runtime.hchan`, values and room come first in each release.
                let (used, capacity, _) =
                    self.window.slice(self.addresses.at(node as usize)).ok()?;
                Some(ChannelUse {
                    node: NodeId(node),
                    used,
                    capacity,
                    waiting: 0,
                })
            })
            .collect()
    }

    /// Reads the headers of maps in the order of their addresses.
    fn read_maps(&mut self) {
        let mut maps = std::mem::take(&mut self.maps);
        maps.sort_unstable_by_key(|m| m.0);
        let layout = &self.image.layout;
        let length = layout.find("internal/runtime/maps.Map.dirLen");
        let directory = layout.find("internal/runtime/maps.Map.dirPtr");
        for (node, kind) in maps {
            let at = self.addresses.at(node as usize);
            // The number of entries comes first in each release.
            if let Ok(used) = self.window.u64(at) {
                self.used.insert(node, used);
            }
            let (Some(length), Some(directory)) = (length, directory) else {
                continue;
            };
            let Ok(length) = self.window.u64(at.wrapping_add(length)) else {
                continue;
            };
            let form = if length == 0 {
                Form::MapEntries
            } else {
                Form::MapDirectory
            };
            for edge in self.range(node) {
                if self.edges.slots.at(edge).offset() == directory {
                    self.pointer(self.edges.targets[edge], Pointee::Object(form, kind), false);
                }
            }
        }
    }

    /// How many pointers of an object lead to what this type says, and how many to something
    /// else.
    pub(crate) fn agreement(&mut self, node: u32, what: What) -> (u32, u32) {
        let looked_at = self.range(node).len().min(CHECKED) + 1;
        self.effort = self.effort.saturating_sub(looked_at);
        let number = self.number(what, true);
        let (mut agree, mut differ) = (0, 0);
        for edge in self.range(node).take(CHECKED) {
            let slot = self.edges.slots.at(edge);
            let to = self.entries[number as usize]
                .slot(slot.offset())
                .map(|s| s.to);
            let known = self.what(self.edges.targets[edge]);
            match (to, known) {
                (None, _) => differ += 1,
                // Bytes are bytes, whatever they are called.
                (Some(Pointee::Object(Form::Text | Form::Array, _)), Some(_))
                    if self.is_plain(self.edges.targets[edge]) => {}
                (Some(Pointee::Object(form, kind)), Some(known)) if !slot.is_interior() => {
                    let fits = match (form, known) {
                        (Form::Value | Form::Array, What::Of(Form::Value | Form::Array, of)) => {
                            of == kind
                        }
                        (Form::Text, What::Of(Form::Text, _)) => true,
                        (form, known) => known == What::Of(form, kind),
                    };
                    if fits {
                        agree += 1;
                    } else {
                        differ += 1;
                    }
                }
                (Some(Pointee::Directory(map)), Some(known)) => match known {
                    What::Of(Form::MapEntries | Form::MapDirectory, of) if of == map => agree += 1,
                    // A list of tables is told by what they hold.
                    What::Of(Form::MapDirectory, _) => {}
                    _ => differ += 1,
                },
                // Not known, but it may be.
                (Some(Pointee::Object(Form::Value, kind)), None) if !slot.is_interior() => {
                    if self.may_be(self.edges.targets[edge], kind) {
                        agree += 1;
                    } else {
                        differ += 1;
                    }
                }
                (Some(Pointee::Function), Some(known)) => {
                    if matches!(known, What::Closure(..)) {
                        agree += 1;
                    } else {
                        differ += 1;
                    }
                }
                _ => {}
            }
        }
        (agree, differ)
    }

    /// Which type an object has, where it is known.
    pub(crate) fn what(&self, node: u32) -> Option<What> {
        let number = self.of.get(node as usize)?.checked_sub(1)?;
        Some(self.entries[number as usize].what)
    }

    /// Writes types and fields to the graph.
    pub(crate) fn finish(mut self, graph: &mut HeapGraph) {
        // Of what is not known, size and whether there are pointers are told.
        let mut unknown: HashMap<(u64, bool), u32> = HashMap::new();
        let mut known = Vec::new();
        let mut heap_types = Vec::new();
        let mut fields = Lists::default();
        for entry in &self.entries {
            let (name, kind) = match entry.what {
                What::Of(form, kind) => (self.types.name(form, kind), form.kind()),
                What::Closure(name, _) => (
                    format!("func {}", self.types.names.get(name)),
                    HeapKind::Closure,
                ),
            };
            let list: Vec<HeapField> = entry
                .slots
                .iter()
                .filter_map(|s| {
                    Some(HeapField {
                        offset: u32::try_from(s.offset).ok()?,
                        name: graph.strings.intern(self.types.names.get(s.name)),
                    })
                })
                .collect();
            known.push(HeapTypeId(heap_types.len() as u32));
            heap_types.push(HeapType {
                name: graph.strings.intern(&name),
                kind,
                inferred: entry.inferred,
                stride: u32::try_from(entry.stride).unwrap_or(0),
                fields: fields.intern(&list).unwrap_or(0),
            });
        }
        let none = fields.intern(&[]).unwrap_or(0);
        graph.maps = self.map_uses();
        graph.channels = self.channel_uses();
        graph.slices = (self.slices.iter())
            .map(|(&node, &(used, capacity))| SliceUse {
                node: NodeId(node),
                used,
                capacity,
            })
            .collect();
        graph.slices.sort_unstable_by_key(|s| s.node);
        let of = std::mem::take(&mut self.of);
        let types = of.into_iter().zip(0..).map(|(of, node)| {
            if let Some(number) = of.checked_sub(1) {
                return known[number as usize];
            }
            let span = self.span(node);
            let (size, plain) = span.map_or((0, true), |s| (s.size, s.pointers == Pointers::None));
            let number = *unknown.entry((size, plain)).or_insert_with(|| {
                let (name, kind) = match (size, plain) {
                    (16, true) => ("(small values without pointers)".to_owned(), HeapKind::Tiny),
                    (size, true) => (
                        format!("({size} bytes without pointers)"),
                        HeapKind::Unknown,
                    ),
                    (size, false) => (format!("({size} bytes with pointers)"), HeapKind::Unknown),
                };
                heap_types.push(HeapType {
                    name: graph.strings.intern(&name),
                    kind,
                    inferred: false,
                    stride: 0,
                    fields: none,
                });
                heap_types.len() as u32 - 1
            });
            HeapTypeId(number)
        });
        // In the memory of what they are made from.
        graph.types = types.collect();
        graph.heap_types = heap_types;
        graph.fields = fields;
    }
}

impl Entry {
    /// The pointer at an offset in the object.
    fn slot(&self, offset: u64) -> Option<&Slot> {
        let offset = if self.stride > 0 {
            offset % self.stride
        } else {
            offset
        };
        let at = self
            .slots
            .binary_search_by_key(&offset, |s| s.offset)
            .ok()?;
        Some(&self.slots[at])
    }
}
