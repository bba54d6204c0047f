use crate::{Addresses, Bits, Lists, Packed, Strings, Time};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into the column it numbers.
            #[must_use]
            pub fn index(self) -> usize { self.0 as usize }
        }
    )*};
}

ids! {
    /// A node of a [`HeapGraph`]: an object (below [`HeapGraph::object_count`]), or the root
    /// with the number that is left when the count of objects is taken off.
    NodeId
    /// Index into [`HeapGraph::heap_types`].
    HeapTypeId
    /// Number of a list in [`HeapGraph::stacks`].
    HeapStackId
    /// Index into [`HeapGraph::frames`].
    HeapFrameId
}

/// Where in its object an edge starts, and whether it leads to the start of its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct EdgeSlot(u32);

impl EdgeSlot {
    const INTERIOR: u32 = 1 << 31;

    /// A pointer `offset` bytes (a multiple of 8) into its object; offsets from 16 GiB on
    /// are told as the last below.
    #[must_use]
    pub fn new(offset: u64, interior: bool) -> Self {
        let words = (offset / 8).min(u64::from(Self::INTERIOR - 1)) as u32;
        Self(words | if interior { Self::INTERIOR } else { 0 })
    }

    /// Bytes from the start of the object that holds the pointer.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0 & !Self::INTERIOR) * 8
    }

    /// Whether the pointer leads into the middle of its target.
    #[must_use]
    pub fn is_interior(self) -> bool {
        self.0 & Self::INTERIOR != 0
    }

    /// As it is stored.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// From what [`EdgeSlot::bits`] gave.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// What kind of thing an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum HeapKind {
    /// Not known; the name tells size and whether it holds pointers.
    #[default]
    Unknown = 0,
    /// One value of a type.
    Value = 1,
    /// The backing array of a slice: values side by side, [`HeapType::stride`] apart.
    Array = 2,
    /// Bytes of a string.
    Text = 3,
    /// A map's header.
    Map = 4,
    /// What a map keeps its entries in (buckets, groups, tables, directory).
    MapPart = 5,
    /// A channel, its buffer included.
    Channel = 6,
    /// A function value with what it captured.
    Closure = 7,
    /// Several small objects without pointers in one block of 16 bytes.
    Tiny = 8,
}

impl HeapKind {
    /// All kinds; the number of each is its place.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Value,
        Self::Array,
        Self::Text,
        Self::Map,
        Self::MapPart,
        Self::Channel,
        Self::Closure,
        Self::Tiny,
    ];
}

/// A pointer field of a type, for the words of a retention path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeapField {
    /// Bytes from the start of the value.
    pub offset: u32,
    /// Its name, with those of the fields around it: `cache.entries`.
    pub name: u32,
}

/// A type of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapType {
    /// Number of its name in [`HeapGraph::strings`]: `main.Command`, `[]main.Command`.
    pub name: u32,
    /// What kind of thing it is.
    pub kind: HeapKind,
    /// Told by a rule (size and pointer mask) rather than by something that names the type.
    pub inferred: bool,
    /// Bytes from one element to the next where the object is an array; else 0.
    pub stride: u32,
    /// Number of its pointer fields in [`HeapGraph::fields`], ascending by offset.
    pub fields: u32,
}

/// Why something is alive without an object that leads to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum RootKind {
    /// A variable of a package.
    #[default]
    Global = 0,
    /// A goroutine; its frames are roots below it.
    Goroutine = 1,
    /// A frame of a goroutine's stack.
    Frame = 2,
    /// What a finalizer needs when it runs: its function, and what its object leads to.
    Finalizer = 3,
    /// The function of a cleanup (`runtime.AddCleanup`) with what it captured.
    Cleanup = 4,
    /// Tables of the runtime itself.
    Runtime = 5,
    /// Registers of a thread.
    Registers = 6,
}

impl RootKind {
    /// All kinds; the number of each is its place.
    pub const ALL: [Self; 7] = [
        Self::Global,
        Self::Goroutine,
        Self::Frame,
        Self::Finalizer,
        Self::Cleanup,
        Self::Runtime,
        Self::Registers,
    ];
}

/// A root: what it leads to are edges of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// What it is.
    pub kind: RootKind,
    /// Number of its name: a variable (`main.cache`), the function of a frame, the function
    /// that a goroutine was started with.
    pub name: u32,
    /// The root that holds this one (the goroutine of a frame), as an index into
    /// [`HeapGraph::roots`]; it comes before this one.
    pub parent: Option<u32>,
    /// Line in the function, for a frame; else 0.
    pub line: u32,
}

/// A place in the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeapFrame {
    /// Number of the function's name.
    pub function: u32,
    /// Number of the file's name.
    pub file: u32,
    /// Line number, 0 when unknown.
    pub line: u32,
}

/// What a goroutine waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WaitsFor {
    /// Nothing that only another goroutine could end: it runs, can run, sleeps, is in a
    /// system call, or waits for the network.
    #[default]
    NotBlocked,
    /// Only the objects of [`Goroutine::waits_on`] can wake it.
    Objects,
    /// Nothing can ever wake it: a nil channel, a select without cases.
    Nothing,
    /// A primitive outside the heap (a global mutex), or one that could not be found.
    Elsewhere,
}

/// A goroutine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goroutine {
    /// The runtime's number of it.
    pub id: u64,
    /// Its root, as an index into [`HeapGraph::roots`].
    pub root: u32,
    /// Number of the runtime's words for its state or what it waits for: `chan receive`.
    pub state: u32,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// The objects (channels, mutexes, wait groups) it waits on.
    pub waits_on: Vec<NodeId>,
    /// For how long it has waited, in milliseconds, where the runtime knows (it notes the
    /// moment at a collection only).
    pub waiting_ms: Option<u64>,
    /// Its stack, the leaf first.
    pub stack: HeapStackId,
    /// Where it was started, the frame of the `go` statement.
    pub created_by: Option<HeapFrameId>,
    /// Bytes of its stack.
    pub stack_bytes: u64,
    /// It belongs to the runtime (its collector, its timers).
    pub is_system: bool,
    /// Its pprof labels: numbers of key and value.
    pub labels: Vec<(u32, u32)>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapUse {
    /// The map's header.
    pub node: NodeId,
    /// Entries in it.
    pub used: u64,
    /// Entries it has room for.
    pub capacity: u64,
}

/// How full a channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelUse {
    /// The channel.
    pub node: NodeId,
    /// Values in its buffer.
    pub used: u64,
    /// Values it has room for.
    pub capacity: u64,
    /// Goroutines that wait to receive or to send.
    pub waiting: u64,
}

/// How much of a large array a slice uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceUse {
    /// The array.
    pub node: NodeId,
    /// The longest slice of it: its length.
    pub used: u64,
    /// The capacity of that slice.
    pub capacity: u64,
}

/// Totals of the heap, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapTotals {
    /// What the runtime says is allocated now (`MemStats.HeapAlloc`), where it could be read.
    pub heap_alloc: Option<u64>,
    /// What the runtime's last collection found alive (`gcController.heapMarked`).
    pub heap_marked: Option<u64>,
    /// All spans with objects.
    pub spans: u64,
    /// Stacks of goroutines.
    pub stacks: u64,
    /// Mean bytes between two samples of the heap profile (`MemProfileRate`); 0 when off.
    pub profile_rate: u64,
}

/// Who allocated an object, where the heap profile sampled it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allocated {
    /// The object.
    pub node: NodeId,
    /// The stack that allocated it, the leaf first.
    pub stack: HeapStackId,
}

/// All objects of a heap at one moment, and what leads to what.
///
/// Nodes are numbered: first the objects, ascending by address, then the roots. Columns
/// are public: whoever fills them keeps the lengths told here and never refers to what
/// is not there ([`HeapGraph::check`]). Objects that nothing leads to are there as well:
/// they are dead and wait for the next collection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeapGraph {
    /// All text.
    pub strings: Strings,
    /// The moment.
    pub taken: Time,
    /// The process.
    pub pid: u32,
    /// When the process started, in clock ticks since the machine did
    /// (`/proc/PID/stat`); 0 when unknown. With the pid it tells one process from another.
    pub process_start: u64,
    /// Number of the program's name.
    pub program: u32,
    /// Number of the runtime's version: `go1.27.3`.
    pub runtime: u32,
    /// How many collections had finished.
    pub collections: u32,

    /// Address of each object, ascending.
    pub addresses: Addresses,
    /// Size of each object in words of 8 bytes, as the allocator rounds it.
    pub words: Packed<u32>,
    /// Type of each object.
    pub types: Vec<HeapTypeId>,
    /// For each object, whether it was there already at the last collection: the identity of an
    /// object is its address as long as this holds at each collection.
    pub survived: Bits,

    /// The edges of node `n` are `edges[edge_starts[n]..edge_starts[n + 1]]`, and so are
    /// their slots. One longer than there are nodes.
    pub edge_starts: Vec<u32>,
    /// Where each edge leads: an object.
    pub edges: Vec<NodeId>,
    /// Where in the node each edge starts.
    pub edge_slots: Packed<EdgeSlot>,
    /// The roots.
    pub roots: Vec<Root>,

    /// The types.
    pub heap_types: Vec<HeapType>,
    /// Lists of pointer fields.
    pub fields: Lists<HeapField>,

    /// Places in the code.
    pub frames: Vec<HeapFrame>,
    /// Stacks, the leaf first.
    pub stacks: Lists<HeapFrameId>,
    /// Who allocated the objects that the heap profile sampled, ascending by node.
    pub allocated: Vec<Allocated>,
    /// Labels under which objects were allocated, where they were traced: ascending by
    /// node; numbers of key and value.
    pub tags: Vec<(NodeId, u32, u32)>,
    /// The goroutines.
    pub goroutines: Vec<Goroutine>,
    /// The maps, ascending by node.
    pub maps: Vec<MapUse>,
    /// The channels, ascending by node.
    pub channels: Vec<ChannelUse>,
    /// Large arrays of slices, ascending by node.
    pub slices: Vec<SliceUse>,
    /// Totals.
    pub totals: HeapTotals,
}

impl HeapGraph {
    /// Proves that the objects found are those that the runtime counts: what it counts is
    /// kept apart from where they are found, so that a heap of which parts were not read, or
    /// not at one moment, does not add up. A process that runs has objects: a heap of none is
    /// that of a program which has not begun, or was not read.
    ///
    /// # Errors
    /// In words, what differs.
    pub fn agrees(&self) -> Result<(), String> {
        /// Spans of the caches are counted with delay.
        const LEAST: u64 = 1 << 20;
        if self.object_count() == 0 {
            return Err("it has no objects yet: it has only just begun; try again".to_owned());
        }
        let found = self
            .words
            .iter()
            .map(|words| u64::from(words) * 8)
            .sum::<u64>();
        match self.totals.heap_alloc {
            Some(counted) if counted.abs_diff(found) > LEAST + counted / 50 => Err(format!(
                "the objects that were found have {found} bytes, the runtime counts {counted}: \
                 not all was read, or not at one moment"
            )),
            _ => Ok(()),
        }
    }

    /// How many objects there are.
    #[must_use]
    pub fn object_count(&self) -> usize {
        self.addresses.len()
    }

    /// How many nodes there are: objects and roots.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.addresses.len() + self.roots.len()
    }

    /// The node of a root.
    #[must_use]
    pub fn root_node(&self, root: u32) -> NodeId {
        NodeId(self.addresses.len() as u32 + root)
    }

    /// The root of a node; `None` for an object.
    #[must_use]
    pub fn root(&self, node: NodeId) -> Option<&Root> {
        let number = node.index().checked_sub(self.addresses.len())?;
        self.roots.get(number)
    }

    /// Bytes of a node; 0 for a root.
    #[must_use]
    pub fn size(&self, node: NodeId) -> u64 {
        self.words.get(node.index()).map_or(0, |w| u64::from(w) * 8)
    }

    /// Name of a node's type; of the root for a root.
    #[must_use]
    pub fn name(&self, node: NodeId) -> &str {
        let number = match self.types.get(node.index()) {
            Some(t) => self.heap_types.get(t.index()).map_or(0, |t| t.name),
            None => self.root(node).map_or(0, |r| r.name),
        };
        self.strings.get(number)
    }

    /// Where a node leads.
    #[must_use]
    pub fn targets(&self, node: NodeId) -> &[NodeId] {
        &self.edges[self.edge_range(node)]
    }

    /// Where in the node each of its edges starts, in the order of [`HeapGraph::targets`].
    #[must_use]
    pub fn slots(
        &self,
        node: NodeId,
    ) -> impl DoubleEndedIterator<Item = EdgeSlot> + ExactSizeIterator + Clone + '_ {
        self.edge_slots.range(self.edge_range(node))
    }

    fn edge_range(&self, node: NodeId) -> std::ops::Range<usize> {
        self.edge_starts[node.index()] as usize..self.edge_starts[node.index() + 1] as usize
    }

    /// The object at or around an address.
    #[must_use]
    pub fn object_at(&self, address: u64) -> Option<NodeId> {
        let next = self.addresses.count_to(address);
        let node = NodeId(u32::try_from(next.checked_sub(1)?).ok()?);
        (address - self.addresses.at(node.index()) < self.size(node)).then_some(node)
    }

    /// The stack that allocated an object, where it was sampled.
    #[must_use]
    pub fn allocated_by(&self, node: NodeId) -> Option<HeapStackId> {
        let at = self.allocated.binary_search_by_key(&node, |a| a.node);
        at.ok().map(|i| self.allocated[i].stack)
    }

    /// The word of the source for an edge: the name of the field, `[3]` for an element.
    #[must_use]
    pub fn slot_name(&self, node: NodeId, slot: EdgeSlot) -> String {
        let Some(kind) =
            (self.types.get(node.index())).and_then(|t| self.heap_types.get(t.index()))
        else {
            return String::new();
        };
        let (mut offset, mut name) = (slot.offset(), String::new());
        if kind.stride > 0 {
            name = format!("[{}]", offset / u64::from(kind.stride));
            offset %= u64::from(kind.stride);
        }
        let fields = self.fields.get(kind.fields);
        if let Ok(at) = fields.binary_search_by_key(&offset, |f| f.offset.into()) {
            let field = self.strings.get(fields[at].name);
            if !field.is_empty() {
                name.push('.');
                name.push_str(field);
            }
        }
        name
    }

    /// Whether all columns have the lengths that they must have and refer only to what
    /// is there; where not, what is wrong.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let objects = self.addresses.len();
        let nodes = objects.saturating_add(self.roots.len());
        let is_object = |n: NodeId| n.index() < objects;
        let is_stack = |s: HeapStackId| s.index() < self.stacks.len();
        let links: usize = self.goroutines.iter().map(|g| g.waits_on.len()).sum();
        let links = self.edges.len() + self.roots.len() + links;
        let words: u64 = self.words.iter().map(u64::from).sum();
        let checks: [(bool, &'static str); 17] = [
            (nodes < u32::MAX as usize, "too many nodes"),
            (links < u32::MAX as usize, "too many edges"),
            (
                self.words.len() == objects,
                "sizes and objects differ in number",
            ),
            // What any of them retains is counted in 64 bits, with a sign.
            (words < 1 << 58, "objects are larger than memory"),
            (
                self.types.len() == objects,
                "types and objects differ in number",
            ),
            (
                self.survived.len() == objects,
                "ages and objects differ in number",
            ),
            (
                self.addresses.iter().is_sorted_by(|a, b| a < b),
                "objects are not in order",
            ),
            (
                self.edge_starts.len() == nodes + 1
                    && self.edge_starts.first() == Some(&0)
                    && self.edge_starts.is_sorted()
                    && self.edge_starts.last().map(|&e| e as usize) == Some(self.edges.len())
                    && self.edge_slots.len() == self.edges.len(),
                "edges and nodes do not fit",
            ),
            (
                self.edges.iter().all(|&n| is_object(n)),
                "an edge leads nowhere",
            ),
            (
                self.types.iter().all(|t| t.index() < self.heap_types.len()),
                "an object has a type that is not there",
            ),
            (
                self.roots
                    .iter()
                    .enumerate()
                    .all(|(i, r)| r.parent.is_none_or(|p| (p as usize) < i)),
                "a root stands before its parent",
            ),
            (
                self.stacks
                    .iter()
                    .flatten()
                    .all(|f| f.index() < self.frames.len()),
                "a stack has a frame that is not there",
            ),
            (
                self.allocated.is_sorted_by(|a, b| a.node < b.node)
                    && self
                        .allocated
                        .iter()
                        .all(|a| is_object(a.node) && is_stack(a.stack)),
                "allocations do not fit",
            ),
            (
                self.goroutines.iter().all(|g| {
                    (g.root as usize) < self.roots.len()
                        && is_stack(g.stack)
                        && g.created_by.is_none_or(|f| f.index() < self.frames.len())
                        && g.waits_on.iter().all(|&n| is_object(n))
                }),
                "a goroutine refers to what is not there",
            ),
            (
                self.maps.is_sorted_by(|a, b| a.node < b.node)
                    && self.maps.iter().all(|m| is_object(m.node)),
                "maps do not fit",
            ),
            (
                self.channels.is_sorted_by(|a, b| a.node < b.node)
                    && self.channels.iter().all(|m| is_object(m.node)),
                "channels do not fit",
            ),
            (
                self.slices.is_sorted_by(|a, b| a.node < b.node)
                    && self.slices.iter().all(|m| is_object(m.node))
                    && self.tags.is_sorted_by_key(|t| t.0)
                    && self.tags.iter().all(|t| is_object(t.0)),
                "slices or tags do not fit",
            ),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, wrong)) => Err(wrong),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_heap_has_objects_and_as_many_bytes_as_are_counted() {
        let mut graph = HeapGraph::default();
        assert!(graph.agrees().is_err_and(|e| e.contains("no objects")));
        graph.addresses.push(0xc000_0000);
        graph.words.push(1 << 20);
        assert_eq!(graph.agrees(), Ok(()), "nothing is counted");
        graph.totals.heap_alloc = Some((8 << 20) + (1 << 20));
        assert_eq!(graph.agrees(), Ok(()));
        graph.totals.heap_alloc = Some(16 << 20);
        assert!(
            graph
                .agrees()
                .is_err_and(|e| e.contains("not all was read"))
        );
    }
}
