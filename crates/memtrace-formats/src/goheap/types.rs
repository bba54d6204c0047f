//! The types of a program, and what their pointers lead to.
//!
//! A type comes from the runtime's descriptor of it, or from the debug information where the
//! runtime has none. For each, the pointers in one value are listed with their names and
//! what they lead to, as deep as values are nested.

use hashbrown::HashMap;
use std::rc::Rc;

use memtrace_model::HeapKind;

use super::descriptor::{Descriptor, Shape};
use super::image::{DebugShape, DebugTypeId, Image};
use super::memory::Window;

/// Number of a type in [`Types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TypeNo(u32);

/// Pointers of one value that are listed.
const MAX_SLOTS: usize = 8 << 10;
/// Types within the name of a type that are told with their packages.
const MAX_NESTED: u32 = 8;
/// Packages that have the trie that `sync.Map` is since Go 1.24, and `unique` before.
const TRIES: [&str; 2] = ["internal/sync.", "internal/concurrent."];
/// Values within values that are looked at for them, of one type and of all.
const MAX_STEPS: usize = 64 << 10;
const MAX_ALL_STEPS: usize = 16 << 20;
/// Types of a program.
const MAX_TYPES: usize = 1 << 20;
/// Bytes of the name of a field with those around it, and of all names.
const MAX_NAME: usize = 512;
const MAX_NAMES: usize = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Runtime(u64),
    Debug(DebugTypeId),
}

/// Types of which objects are parts of maps only, with names that do not tell of which.
const PARTS_OF_MAPS: [&str; 4] = [
    "internal/runtime/maps.Map",
    "internal/runtime/maps.table",
    "runtime.hmap",
    "runtime.mapextra",
];

/// How an object is made of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Form {
    /// One value.
    Value,
    /// Values side by side.
    Array,
    /// Bytes of a string.
    Text,
    /// The header of a map (the type is the map's).
    Map,
    /// Buckets or groups.
    MapEntries,
    /// `runtime.mapextra`, and what it leads to.
    MapExtra,
    MapOverflow,
    MapOverflows,
    /// A table of a map, and the list of them.
    MapTable,
    MapDirectory,
    /// A channel (the type is that of its values).
    Channel,
}

impl Form {
    pub(crate) fn kind(self) -> HeapKind {
        match self {
            Self::Value => HeapKind::Value,
            Self::Array => HeapKind::Array,
            Self::Text => HeapKind::Text,
            Self::Map => HeapKind::Map,
            Self::Channel => HeapKind::Channel,
            _ => HeapKind::MapPart,
        }
    }
}

/// What a pointer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pointee {
    Object(Form, TypeNo),
    /// A function value; the object says which.
    Function,
    /// What an interface holds; the word before it says what.
    Interface,
    /// A map's groups or the list of its tables: its header says which.
    Directory(TypeNo),
    /// A node of the map with that type of nodes that `sync.Map` is: its first byte says
    /// whether it is an entry.
    TrieNode(TypeNo),
    Unknown,
}

/// A pointer in a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Bytes from the start of the value.
    pub(crate) offset: u64,
    pub(crate) to: Pointee,
    /// Number of its name in [`Types::names`].
    pub(crate) name: u32,
}

#[derive(Clone, Debug)]
struct Known {
    source: Source,
    name: String,
    size: u64,
    is_any_channel: bool,
    slots: Option<Rc<[Slot]>>,
}

/// A type with what it consists of.
enum Parts {
    None,
    One(Pointee),
    /// The data word of an interface, 8 bytes in.
    Interface,
    Array(Source, u64),
    Struct(Vec<(u64, String, Source)>),
}

pub(crate) struct Types<'a> {
    window: &'a Window<'a>,
    image: &'a Image,
    known: Vec<Known>,
    numbers: HashMap<Source, Option<TypeNo>>,
    pub(crate) names: memtrace_model::Strings,
    /// The map whose entries a type of buckets or groups holds.
    maps: HashMap<TypeNo, TypeNo>,
    /// Descriptors of types, and (once asked for) the parts of tries by their names.
    descriptors: Vec<u64>,
    trie_parts: Option<HashMap<String, Source>>,
    /// The slots that a form adds to those of its type.
    fixed: Fixed,
    /// What interfaces with the types that were met hold.
    held: HashMap<TypeNo, Pointee>,
    /// Values within values that may still be looked at, and bytes of names that may be kept.
    steps: usize,
    text: usize,
}

/// Offsets in the runtime's own structures.
#[derive(Debug)]
struct Fixed {
    /// Of the old map's header: its pointers to buckets, and to what else it has.
    buckets: Vec<u64>,
    extra: Option<u64>,
    /// Of the new map's header, and of a table.
    directory: Option<u64>,
    groups: Option<u64>,
    /// Of a channel.
    buffer: Option<u64>,
    waiters: Vec<u64>,
}

impl<'a> Types<'a> {
    pub(crate) fn new(window: &'a Window<'a>, image: &'a Image) -> Self {
        let find = |name: &str| image.layout.find(name);
        let fixed = Fixed {
            buckets: ["hmap.buckets", "hmap.oldbuckets"]
                .into_iter()
                .filter_map(find)
                .collect(),
            extra: find("hmap.extra"),
            directory: find("internal/runtime/maps.Map.dirPtr"),
            groups: find("internal/runtime/maps.table.groups.data"),
            buffer: find("hchan.buf"),
            waiters: ["recvq.first", "recvq.last", "sendq.first", "sendq.last"]
                .into_iter()
                .filter_map(|name| find(&format!("hchan.{name}")))
                .collect(),
        };
        Self {
            window,
            image,
            known: Vec::new(),
            numbers: HashMap::new(),
            names: memtrace_model::Strings::default(),
            maps: HashMap::new(),
            descriptors: Vec::new(),
            trie_parts: None,
            fixed,
            held: HashMap::new(),
            steps: MAX_ALL_STEPS,
            text: MAX_NAMES,
        }
    }

    /// The type whose descriptor is at an address; `None` where none is.
    pub(crate) fn runtime(&mut self, address: u64) -> Option<TypeNo> {
        self.number(Source::Runtime(address))
    }

    /// A type of the debug information.
    pub(crate) fn debug(&mut self, id: DebugTypeId) -> Option<TypeNo> {
        self.number(Source::Debug(id))
    }

    fn number(&mut self, source: Source) -> Option<TypeNo> {
        let source = match source {
            // One type must not have two numbers.
            Source::Debug(id) => match self.image.debug_types.get(id.0 as usize)?.runtime {
                Some(address)
                    if Descriptor::recognise(self.window, self.image, address).is_some() =>
                {
                    Source::Runtime(address)
                }
                _ => source,
            },
            Source::Runtime(_) => source,
        };
        if let Some(&number) = self.numbers.get(&source) {
            return number;
        }
        let known = if self.known.len() < MAX_TYPES {
            self.load(source)
        } else {
            None
        };
        let number = known.map(|mut known| {
            match self.text.checked_sub(known.name.len()) {
                Some(left) => self.text = left,
                None => known.name = String::new(),
            }
            self.known.push(known);
            TypeNo(self.known.len() as u32 - 1)
        });
        self.numbers.insert(source, number);
        number
    }

    fn load(&self, source: Source) -> Option<Known> {
        let (name, size) = match source {
            Source::Runtime(address) => {
                let descriptor = Descriptor::recognise(self.window, self.image, address)?;
                let name = descriptor.full_name(self.window, self.image, MAX_NESTED);
                (name, descriptor.size)
            }
            Source::Debug(id) => {
                let kind = self.image.debug_types.get(id.0 as usize)?;
                (kind.name.clone(), kind.size)
            }
        };
        Some(Known {
            source,
            is_any_channel: name == "runtime.hchan",
            name,
            size,
            slots: None,
        })
    }

    fn known(&self, number: TypeNo) -> &Known {
        &self.known[number.0 as usize]
    }

    /// The map whose entries are of this type.
    pub(crate) fn map_of(&self, entries: TypeNo) -> Option<TypeNo> {
        self.maps.get(&entries).copied()
    }

    /// Whether this is a pointer to a table of a map, which says nothing of the map.
    pub(crate) fn is_map_table(&self, number: TypeNo) -> bool {
        self.known(number).name == "*internal/runtime/maps.table"
    }

    /// Whether the runtime has this type for parts of all maps.
    pub(crate) fn is_part_of_map(&self, number: TypeNo) -> bool {
        let name = self.known(number).name.as_str();
        PARTS_OF_MAPS.contains(&name)
    }

    /// Whether more pointers are in a value than are listed.
    pub(crate) fn is_cut(&self, number: TypeNo) -> bool {
        self.known(number)
            .slots
            .as_ref()
            .is_some_and(|s| s.len() >= MAX_SLOTS)
    }

    /// Bytes of a value.
    pub(crate) fn size(&self, number: TypeNo) -> u64 {
        self.known(number).size
    }

    /// The name of objects of this form and type.
    pub(crate) fn name(&self, form: Form, number: TypeNo) -> String {
        let name = &self.known(number).name;
        match form {
            Form::Value | Form::Array if let Some(&map) = self.maps.get(&number) => {
                self.name(Form::MapEntries, map)
            }
            Form::Value | Form::Map => name.clone(),
            Form::Array => format!("[]{name}"),
            Form::Text => "string".to_owned(),
            Form::MapEntries => format!("{name} (entries)"),
            Form::MapExtra | Form::MapOverflow | Form::MapOverflows => format!("{name} (overflow)"),
            Form::MapTable => format!("{name} (table)"),
            Form::MapDirectory => format!("{name} (directory)"),
            Form::Channel => format!("chan {name}"),
        }
    }

    /// What the pointers of a value lead to.
    pub(crate) fn leads_to(&mut self, number: TypeNo) -> Vec<Pointee> {
        self.value_slots(number).iter().map(|s| s.to).collect()
    }

    /// From one value to the next in an object of this form; 0 where it is one value.
    pub(crate) fn stride(&mut self, form: Form, number: TypeNo) -> u64 {
        match form {
            Form::Array => self.size(number),
            Form::MapEntries => self.entries(number).map_or(0, |t| self.size(t)),
            Form::MapDirectory | Form::MapOverflows => 8,
            _ => 0,
        }
    }

    /// Learns whose entries buckets and groups are.
    pub(crate) fn know_maps(&mut self, descriptors: &[u64]) {
        self.descriptors = descriptors.to_vec();
        for &address in descriptors {
            let is_map = Descriptor::read(self.window, address)
                .and_then(|d| d.shape(self.window))
                .is_some_and(|s| matches!(s, Shape::Map(_)));
            if is_map && let Some(map) = self.runtime(address) {
                self.entries(map);
            }
        }
    }

    /// The type of a map's buckets or groups.
    fn entries(&mut self, map: TypeNo) -> Option<TypeNo> {
        let Source::Runtime(address) = self.known(map).source else {
            return None;
        };
        match Descriptor::read(self.window, address)?.shape(self.window)? {
            Shape::Map(entries) => {
                let entries = self.runtime(entries)?;
                self.maps.entry(entries).or_insert(map);
                Some(entries)
            }
            _ => None,
        }
    }

    /// The pointers of an object of this form (of its first value, where it has more),
    /// ascending by offset.
    pub(crate) fn slots(&mut self, form: Form, number: TypeNo) -> Rc<[Slot]> {
        let mut unnamed = |offset: u64, to: Pointee, name: &str| Slot {
            offset,
            to,
            name: self.names.intern(name),
        };
        let entries = Pointee::Object(Form::MapEntries, number);
        let mut slots: Vec<Slot> = match form {
            Form::Value | Form::Array => return self.value_slots(number),
            Form::Text => Vec::new(),
            Form::Map => {
                let buckets = self.fixed.buckets.clone();
                let mut slots: Vec<Slot> =
                    buckets.iter().map(|&o| unnamed(o, entries, "")).collect();
                if let Some(o) = self.fixed.extra {
                    slots.push(unnamed(o, Pointee::Object(Form::MapExtra, number), ""));
                }
                if let Some(o) = self.fixed.directory {
                    slots.push(unnamed(o, Pointee::Directory(number), ""));
                }
                slots
            }
            Form::MapEntries => return self.entry_slots(number),
            Form::MapExtra => {
                let overflow = Pointee::Object(Form::MapOverflow, number);
                vec![
                    unnamed(0, overflow, ""),
                    unnamed(8, overflow, ""),
                    unnamed(16, entries, ""),
                ]
            }
            Form::MapOverflow => {
                vec![unnamed(0, Pointee::Object(Form::MapOverflows, number), "")]
            }
            Form::MapOverflows => vec![unnamed(0, entries, "")],
            Form::MapTable => {
                let groups = self.fixed.groups;
                groups
                    .map(|o| unnamed(o, entries, ""))
                    .into_iter()
                    .collect()
            }
            Form::MapDirectory => {
                vec![unnamed(0, Pointee::Object(Form::MapTable, number), "")]
            }
            Form::Channel => {
                let (buffer, waiters) = (self.fixed.buffer, self.fixed.waiters.clone());
                let values = Pointee::Object(Form::Array, number);
                let buffer = buffer.map(|o| unnamed(o, values, "buffer"));
                let mut slots: Vec<Slot> = buffer.into_iter().collect();
                slots.extend(
                    waiters
                        .iter()
                        .map(|&o| unnamed(o, Pointee::Unknown, "waiters")),
                );
                slots
            }
        };
        slots.sort_unstable_by_key(|s| s.offset);
        slots.into()
    }

    /// Of a bucket or group: those of its type, and the bucket that follows it.
    fn entry_slots(&mut self, map: TypeNo) -> Rc<[Slot]> {
        let Some(entries) = self.entries(map) else {
            return Rc::default();
        };
        let (slots, size) = (self.value_slots(entries), self.size(entries));
        if self.fixed.buckets.is_empty() || self.fixed.directory.is_some() {
            return slots;
        }
        let Some(overflow) = size.checked_sub(8) else {
            return slots;
        };
        let mut slots: Vec<Slot> = slots
            .iter()
            .filter(|s| s.offset != overflow)
            .copied()
            .collect();
        slots.push(Slot {
            offset: overflow,
            to: Pointee::Object(Form::MapEntries, map),
            name: self.names.intern("overflow"),
        });
        slots.into()
    }

    /// The pointers of one value.
    fn value_slots(&mut self, number: TypeNo) -> Rc<[Slot]> {
        if let Some(slots) = &self.known(number).slots {
            return slots.clone();
        }
        let mut slots = Vec::new();
        let mut open = vec![(0_u64, String::new(), self.known(number).source)];
        let mut steps = 0;
        while let Some((offset, name, source)) = open.pop() {
            steps += 1;
            if steps + open.len() > MAX_STEPS || slots.len() >= MAX_SLOTS || self.steps == 0 {
                break;
            }
            self.steps -= 1;
            let below = |field: &str| match (name.as_str(), field) {
                ("", field) => field.to_owned(),
                (name, field) if field.is_empty() || name.len() + field.len() > MAX_NAME => {
                    name.to_owned()
                }
                (name, field) => format!("{name}.{field}"),
            };
            match self.parts(source) {
                Parts::None => {}
                Parts::One(to) => slots.push(Slot {
                    offset,
                    to,
                    name: self.field_name(&name),
                }),
                Parts::Interface => slots.push(Slot {
                    offset: offset.saturating_add(8),
                    to: Pointee::Interface,
                    name: self.field_name(&name),
                }),
                Parts::Array(element, count) => {
                    let Some(size) = self.number(element).map(|t| self.size(t)) else {
                        continue;
                    };
                    let name = if name.len() < MAX_NAME {
                        format!("{name}[]")
                    } else {
                        name
                    };
                    // From the end, so that the first is looked at first.
                    for i in (0..count.min(MAX_SLOTS as u64)).rev() {
                        let at = offset.saturating_add(i.saturating_mul(size));
                        open.push((at, name.clone(), element));
                    }
                }
                Parts::Struct(fields) => match self.atomic_pointer(&fields) {
                    Some((at, to)) => slots.push(Slot {
                        offset: offset.saturating_add(at),
                        to,
                        name: self.field_name(&name),
                    }),
                    None => {
                        for (at, field, kind) in fields.into_iter().rev() {
                            open.push((offset.saturating_add(at), below(&field), kind));
                        }
                    }
                },
            }
        }
        slots.sort_by_key(|s| s.offset);
        slots.dedup_by_key(|s| s.offset);
        let slots: Rc<[Slot]> = slots.into();
        self.known[number.0 as usize].slots = Some(slots.clone());
        slots
    }

    /// Of an `atomic.Pointer[T]`, where its pointer is and what it leads to: a field without
    /// a size, `[0]*T`, tells the type of what is a plain address otherwise.
    fn atomic_pointer(&mut self, fields: &[(u64, String, Source)]) -> Option<(u64, Pointee)> {
        let [(_, first, kind), (_, second, _), (at, last, _)] = fields else {
            return None;
        };
        if first != "_" || second != "_" || last != "v" {
            return None;
        }
        let debug = match *kind {
            Source::Debug(id) => self.image.debug_types.get(id.0 as usize),
            Source::Runtime(_) => None,
        };
        let runtime = match *kind {
            Source::Runtime(address) => Some(address),
            Source::Debug(_) => debug?.runtime,
        };
        let read = |address| match Descriptor::read(self.window, address)?.shape(self.window)? {
            Shape::Array(of, 0) => Some(Source::Runtime(of)),
            _ => None,
        };
        let of = runtime.and_then(read).or_else(|| match debug?.shape {
            DebugShape::Array(of, 0) => Some(Source::Debug(of)),
            _ => None,
        });
        match self.parts(of?) {
            Parts::One(Pointee::Object(Form::Value, node)) if self.trie_names(node).is_some() => {
                Some((*at, Pointee::TrieNode(node)))
            }
            Parts::One(to) => Some((*at, to)),
            _ => None,
        }
    }

    fn field_name(&mut self, name: &str) -> u32 {
        if let Some(known) = self.names.find(name) {
            return known;
        }
        match self.text.checked_sub(name.len()) {
            Some(left) => self.text = left,
            None => return 0,
        }
        self.names.intern(name)
    }

    /// Of the type of a trie's nodes, the names of its inner nodes and of its entries.
    fn trie_names(&self, node: TypeNo) -> Option<[String; 2]> {
        let name = &self.known(node).name;
        let package = TRIES.into_iter().find(|p| name.starts_with(p))?;
        let of = name.strip_prefix(package)?.strip_prefix("node[")?;
        Some(["indirect", "entry"].map(|part| format!("{package}{part}[{of}")))
    }

    /// The type of a trie's inner node or entry, by that of its nodes.
    pub(crate) fn trie_part(&mut self, node: TypeNo, is_entry: bool) -> Option<TypeNo> {
        let name = &self.trie_names(node)?[usize::from(is_entry)];
        let (window, image) = (self.window, self.image);
        let parts = self.trie_parts.get_or_insert_with(|| {
            let is_part = |name: &str| TRIES.iter().any(|p| name.starts_with(p));
            let debug = (0..).zip(&image.debug_types).map(|(id, kind)| {
                let source = Source::Debug(DebugTypeId(id));
                (kind.name.clone(), source)
            });
            let own = self.descriptors.iter().filter_map(|&address| {
                let descriptor = Descriptor::read(window, address)?;
                matches!(descriptor.shape(window), Some(Shape::Struct(_))).then(|| {
                    let name = descriptor.name(window, image);
                    (name, Source::Runtime(address))
                })
            });
            debug.chain(own).filter(|(n, _)| is_part(n)).collect()
        });
        let source = *parts.get(name)?;
        self.number(source)
    }

    fn parts(&mut self, source: Source) -> Parts {
        match source {
            Source::Runtime(address) => self.runtime_parts(address),
            Source::Debug(id) => self.debug_parts(id),
        }
    }

    fn runtime_parts(&mut self, address: u64) -> Parts {
        let window = self.window;
        let Some(descriptor) = Descriptor::read(window, address) else {
            return Parts::None;
        };
        if descriptor.pointer_bytes == 0 {
            return Parts::None;
        }
        let mut object = |form, address| match self.runtime(address) {
            Some(number) => Parts::One(Pointee::Object(form, number)),
            None => Parts::One(Pointee::Unknown),
        };
        match descriptor.shape(window) {
            None | Some(Shape::Plain) => Parts::None,
            Some(Shape::Text) => Parts::One(match self.runtime(address) {
                Some(number) => Pointee::Object(Form::Text, number),
                None => Pointee::Unknown,
            }),
            Some(Shape::Pointer(to)) => object(Form::Value, to),
            Some(Shape::Slice(of)) => object(Form::Array, of),
            Some(Shape::Channel(of)) => object(Form::Channel, of),
            Some(Shape::Map(_)) => object(Form::Map, address),
            Some(Shape::Function) => Parts::One(Pointee::Function),
            Some(Shape::UnsafePointer) => Parts::One(Pointee::Unknown),
            Some(Shape::EmptyInterface | Shape::Interface) => Parts::Interface,
            Some(Shape::Array(of, count)) => Parts::Array(Source::Runtime(of), count),
            Some(Shape::Struct(fields)) => {
                let fields = fields.into_iter();
                let fields = fields.map(|f| (f.offset, f.name, Source::Runtime(f.kind)));
                Parts::Struct(fields.collect())
            }
        }
    }

    fn debug_parts(&mut self, id: DebugTypeId) -> Parts {
        let image = self.image;
        let Some(kind) = image.debug_types.get(id.0 as usize) else {
            return Parts::None;
        };
        if let Some(address) = kind.runtime
            && Descriptor::recognise(self.window, image, address).is_some()
        {
            return self.runtime_parts(address);
        }
        let mut object = |form, id| match self.debug(id) {
            Some(number) => Parts::One(Pointee::Object(form, number)),
            None => Parts::One(Pointee::Unknown),
        };
        match &kind.shape {
            DebugShape::Plain => Parts::None,
            DebugShape::Pointer(Some(to)) => object(Form::Value, *to),
            DebugShape::Pointer(None) => Parts::One(Pointee::Unknown),
            DebugShape::String => object(Form::Text, id),
            DebugShape::Slice(of) => object(Form::Array, *of),
            // What the runtime has no descriptor of was never made.
            DebugShape::Map | DebugShape::Channel => Parts::One(Pointee::Unknown),
            DebugShape::Function => Parts::One(Pointee::Function),
            DebugShape::EmptyInterface | DebugShape::Interface => Parts::Interface,
            DebugShape::Array(of, count) => Parts::Array(Source::Debug(*of), *count),
            DebugShape::Struct(fields) => {
                let fields = fields.iter();
                let fields = fields.map(|(o, n, k)| (*o, n.clone(), Source::Debug(*k)));
                Parts::Struct(fields.collect())
            }
        }
    }

    /// What the data word of an interface that holds this type leads to: pointers are held
    /// as they are, other values by a pointer to a copy.
    pub(crate) fn held_by_interface(&mut self, number: TypeNo) -> Pointee {
        if let Some(&known) = self.held.get(&number) {
            return known;
        }
        let to = self.work_out_held(number);
        self.held.insert(number, to);
        to
    }

    fn work_out_held(&mut self, number: TypeNo) -> Pointee {
        let mut source = self.known(number).source;
        for _ in 0..16 {
            match self.parts(source) {
                Parts::One(
                    to @ (Pointee::Object(Form::Text | Form::Array, _) | Pointee::Interface),
                ) => {
                    let _ = to;
                    break;
                }
                Parts::One(to) => return to,
                Parts::Struct(fields) if self.is_one_word(source) && fields.len() == 1 => {
                    source = fields[0].2;
                }
                Parts::Array(of, 1) if self.is_one_word(source) => source = of,
                _ => break,
            }
        }
        Pointee::Object(Form::Value, number)
    }

    /// What a value of a map's or channel's type leads to.
    pub(crate) fn made(&mut self, number: TypeNo) -> Pointee {
        match self.parts(self.known(number).source) {
            Parts::One(to) => to,
            _ => Pointee::Unknown,
        }
    }

    /// Whether the compiler made the type for a function value and what it captured.
    pub(crate) fn is_closure(&self, number: TypeNo) -> bool {
        self.known(number).name.starts_with("struct { F uintptr; ")
    }

    /// Whether it is the runtime's own type of channels, whatever their values are.
    pub(crate) fn is_any_channel(&self, number: TypeNo) -> bool {
        self.known(number).is_any_channel
    }

    fn is_one_word(&mut self, source: Source) -> bool {
        self.number(source).is_some_and(|t| self.size(t) == 8)
    }
}
