//! Under which label (`runtime/pprof`) the objects of a stack were allocated.
//!
//! Whoever watches the allocations of a process puts each one into a [`TagBook`]; a heap
//! then says which of these objects are still alive. Objects that are older than the book
//! are in no label's account. Goroutines have their labels with them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use memtrace_model::{Finding, HeapGraph, HeapStackId, NodeId, SampleKind, Time};

use super::Heap;
use super::explain::fitting;

/// Allocations that are remembered, the newest; each takes about 100 bytes, so that a full
/// book has 100 MB. At 200 samples a second it is full after an hour and a half.
const MOST_OBJECTS: usize = 1 << 20;
/// Bytes of labels that are remembered, each set once.
const MOST_LABEL_BYTES: usize = 16 << 20;
/// Sampled objects below which a share says nothing.
const FEWEST: usize = 10;
/// What holds at least this share of the bytes holds them.
const DOMINATES: f64 = 0.75;
/// Where more than this share of the allocations was not seen, an object may have been
/// allocated anew unseen: nothing is claimed.
const MOST_LOST: f64 = 0.05;

/// Keys and values.
pub type LabelPairs = Vec<(String, String)>;

/// Sampled objects by address, with the labels of the latest allocation there.
#[derive(Debug)]
pub struct TagBook {
    since: Time,
    objects: BTreeMap<u64, Entry>,
    /// Oldest first: address and number of the entry. One that was replaced is of no meaning.
    order: VecDeque<(u64, u64)>,
    sets: Sets,
    next: u64,
    seen: u64,
    lost: u64,
    /// Of each key: a value of it, whether there are others, and how many allocations.
    keys: HashMap<String, Key>,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    set: Option<u32>,
}

#[derive(Debug)]
struct Key {
    value: String,
    varies: bool,
    seen: u64,
}

/// Keys that are told apart.
const MOST_KEYS: usize = 1 << 10;

impl TagBook {
    /// An empty book that is kept since a moment.
    #[must_use]
    pub fn new(since: Time) -> Self {
        Self {
            since,
            objects: BTreeMap::new(),
            order: VecDeque::new(),
            sets: Sets::default(),
            next: 0,
            seen: 0,
            lost: 0,
            keys: HashMap::new(),
            most: MOST_OBJECTS,
        }
    }

    /// An object was sampled at an address, later than all before. `None` where its labels
    /// are not known.
    pub fn insert(&mut self, address: u64, labels: Option<LabelPairs>) {
        self.seen += 1;
        let is_full = self.keys.len() >= MOST_KEYS;
        for (key, value) in labels.iter().flatten() {
            match self.keys.get_mut(key) {
                Some(known) => {
                    known.varies |= known.value != *value;
                    known.seen += 1;
                }
                None if !is_full => {
                    let first = Key {
                        value: value.clone(),
                        varies: false,
                        seen: 1,
                    };
                    self.keys.insert(key.clone(), first);
                }
                None => {}
            }
        }
        let entry = Entry {
            number: self.next,
            set: labels.map(|pairs| self.sets.take(pairs)),
        };
        self.next += 1;
        self.order.push_back((address, entry.number));
        if let Some(before) = self.objects.insert(address, entry) {
            self.sets.give_back(before.set);
        }
        while self.objects.len() > self.most || self.sets.bytes > MOST_LABEL_BYTES {
            if !self.forget_oldest() {
                break;
            }
        }
        // Replaced ones, which are only counted here.
        if self.order.len() > 2 * self.objects.len() + 1024 {
            let objects = &self.objects;
            self.order
                .retain(|(address, n)| objects.get(address).is_some_and(|e| e.number == *n));
        }
    }

    fn forget_oldest(&mut self) -> bool {
        while let Some((address, number)) = self.order.pop_front() {
            if self
                .objects
                .get(&address)
                .is_some_and(|e| e.number == number)
            {
                let entry = self.objects.remove(&address);
                self.sets.give_back(entry.and_then(|e| e.set));
                return true;
            }
        }
        false
    }

    /// Allocations went by unseen.
    pub fn lose(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
    }

    /// How many allocations were not seen.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// How many objects it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Since when it is kept.
    #[must_use]
    pub fn since(&self) -> Time {
        self.since
    }

    /// The latest entry for an object, which may begin behind a header of the allocator.
    fn find(&self, address: u64, size: u64) -> Option<Entry> {
        let within = self
            .objects
            .range(address..address.saturating_add(size.max(1)));
        within.map(|(_, entry)| *entry).max_by_key(|e| e.number)
    }

    /// Whether a label tells apart what is allocated: one that everything has does not.
    fn tells_apart(&self, key: &str) -> bool {
        self.keys
            .get(key)
            .is_some_and(|k| k.varies || k.seen < self.seen)
    }

    /// Labels of the objects of a heap that the book knows, ascending by node, for
    /// [`HeapGraph::tags`]; their texts come into the graph's.
    #[must_use]
    pub fn of_graph(&self, graph: &mut HeapGraph) -> Vec<(NodeId, u32, u32)> {
        let nodes: Vec<NodeId> = graph.allocated.iter().map(|a| a.node).collect();
        let mut tags = Vec::new();
        for node in nodes {
            let entry = self.find(graph.addresses.at(node.index()), graph.size(node));
            for (key, value) in self.pairs(entry) {
                let key = graph.strings.intern(key);
                tags.push((node, key, graph.strings.intern(value)));
            }
        }
        tags
    }

    fn pairs(&self, entry: Option<Entry>) -> &[(String, String)] {
        entry
            .and_then(|e| e.set)
            .map_or(&[], |set| self.sets.pairs(set))
    }
}

/// What one value of a label holds of the objects, or the goroutines, of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct TagShare {
    /// Objects ([`SampleKind::Heap`]) or goroutines.
    pub of: SampleKind,
    /// Key of the label.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Share of the bytes, estimated from the samples, or of the goroutines, 0 to 1.
    pub share: f64,
    /// Sampled objects of the stack that the book knows, or goroutines.
    pub objects: usize,
    /// Sampled objects of the stack that it does not know: they are older.
    pub older: usize,
}

impl TagShare {
    /// In words: `tag block=G001-M17 holds 93 % of 412 sampled objects seen since 22:10:03Z`.
    #[must_use]
    pub fn words(&self, since: Time) -> String {
        let percent = 100.0 * self.share;
        if self.of == SampleKind::Goroutine {
            return format!(
                "tag {}={}: {percent:.0} % of {} goroutines that stand there",
                self.key, self.value, self.objects
            );
        }
        let since = since.to_string();
        let clock = since.get(11..19).unwrap_or(&since);
        let older = match self.older {
            0 => String::new(),
            n => format!(" ({n} older ones have no tag)"),
        };
        format!(
            "tag {}={} holds {percent:.0} % of {} sampled objects seen since {clock}Z{older}",
            self.key, self.value, self.objects
        )
    }
}

/// Which label values hold the live sampled objects of a finding's stack, of each key the
/// one that clearly does: three quarters of the bytes that were allocated since the book is
/// kept, those without labels counted too, of ten objects or more. A key that has the same
/// value in everything the process allocates is left out. Nothing is said where more than
/// one in twenty allocations went by unseen. Of a finding about goroutines the same is told
/// of those that stand at its stack.
#[must_use]
pub fn tag_shares(heap: Heap<'_>, finding: &Finding, book: &TagBook) -> Vec<TagShare> {
    let graph = heap.graph;
    if finding.source == SampleKind::Goroutine {
        return of_goroutines(graph, finding);
    }
    let all = book.seen + book.lost;
    if all == 0 || book.lost as f64 > MOST_LOST * all as f64 {
        return Vec::new();
    }
    let fits: HashMap<HeapStackId, bool> =
        fitting(graph, finding, graph.allocated.iter().map(|a| a.stack));
    let nodes = (graph.allocated.iter())
        .filter(|a| fits.get(&a.stack) == Some(&true) && heap.dominators.is_reachable(a.node))
        .map(|a| a.node);
    let (mut known, mut older, mut total) = (0, 0, 0.0);
    let mut sums: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for node in nodes {
        let size = graph.size(node);
        let Some(entry) = book.find(graph.addresses.at(node.index()), size) else {
            older += 1;
            continue;
        };
        let bytes = estimate(size, graph.totals.profile_rate);
        known += 1;
        total += bytes;
        for (key, value) in book.pairs(Some(entry)) {
            *sums.entry((key, value)).or_default() += bytes;
        }
    }
    if known < FEWEST {
        return Vec::new();
    }
    sums.into_iter()
        .filter(|((key, value), bytes)| {
            *bytes >= DOMINATES * total && !value.is_empty() && book.tells_apart(key)
        })
        .map(|((key, value), bytes)| TagShare {
            of: SampleKind::Heap,
            key: key.to_owned(),
            value: value.to_owned(),
            share: bytes / total,
            objects: known,
            older,
        })
        .collect()
}

fn of_goroutines(graph: &HeapGraph, finding: &Finding) -> Vec<TagShare> {
    let fits = fitting(graph, finding, graph.goroutines.iter().map(|g| g.stack));
    let own = graph.goroutines.iter().filter(|g| !g.is_system);
    let (mut all, mut there) = (0, 0);
    let mut counts: BTreeMap<(u32, u32), (usize, usize)> = BTreeMap::new();
    for goroutine in own {
        let is_there = fits.get(&goroutine.stack) == Some(&true);
        all += 1;
        there += usize::from(is_there);
        for &label in &goroutine.labels {
            let (with, here) = counts.entry(label).or_default();
            *with += 1;
            *here += usize::from(is_there);
        }
    }
    if there < FEWEST {
        return Vec::new();
    }
    let text = |number| graph.strings.get(number);
    counts
        .into_iter()
        .filter(|((_, value), (with, here))| {
            // One that most others have as well tells nothing.
            let is_common = 2 * (with - here) >= all - there && *with > *here;
            let holds = *here as f64 >= DOMINATES * there as f64 && *with < all;
            holds && !is_common && !text(*value).is_empty()
        })
        .map(|((key, value), (_, here))| TagShare {
            of: SampleKind::Goroutine,
            key: text(key).to_owned(),
            value: text(value).to_owned(),
            share: here as f64 / there as f64,
            objects: there,
            older: 0,
        })
        .collect()
}

/// Bytes that a sampled object stands for: it is sampled with the probability
/// 1 - e^(-size / rate).
fn estimate(size: u64, rate: u64) -> f64 {
    let size = size as f64;
    if rate <= 1 {
        return size;
    }
    size / -(-size / rate as f64).exp_m1()
}

/// Sets of labels, each once, with how many have it.
#[derive(Debug, Default)]
struct Sets {
    numbers: HashMap<LabelPairs, u32>,
    sets: Vec<(LabelPairs, u32)>,
    free: Vec<u32>,
    /// Of all texts.
    bytes: usize,
}

impl Sets {
    fn take(&mut self, pairs: LabelPairs) -> u32 {
        if let Some(&number) = self.numbers.get(&pairs) {
            self.sets[number as usize].1 += 1;
            return number;
        }
        self.bytes += weight(&pairs);
        let set = (pairs.clone(), 1);
        let number = match self.free.pop() {
            Some(number) => {
                self.sets[number as usize] = set;
                number
            }
            None => {
                self.sets.push(set);
                self.sets.len() as u32 - 1
            }
        };
        self.numbers.insert(pairs, number);
        number
    }

    fn give_back(&mut self, number: Option<u32>) {
        let Some(number) = number else {
            return;
        };
        let (pairs, count) = &mut self.sets[number as usize];
        *count -= 1;
        if *count == 0 {
            let pairs = std::mem::take(pairs);
            self.bytes -= weight(&pairs);
            self.numbers.remove(&pairs);
            self.free.push(number);
        }
    }

    fn pairs(&self, number: u32) -> &[(String, String)] {
        &self.sets[number as usize].0
    }
}

fn weight(pairs: &LabelPairs) -> usize {
    let texts = pairs.iter().map(|(key, value)| key.len() + value.len());
    64 + 2 * texts.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::Dominators;
    use super::super::sample::Sample;
    use super::*;
    use memtrace_model::{Allocated, Frame, Goroutine, HeapKind, Pattern, Status, Tier};

    const OBJECTS: u32 = 40;

    fn finding() -> Finding {
        Finding {
            schema: String::new(),
            id: "1".into(),
            at: Time(0),
            pattern: Pattern::Growth,
            tier: Tier::Leaking,
            status: Status::Open,
            rank: 1,
            confidence: 1.0,
            target: String::new(),
            source: SampleKind::Heap,
            stack: vec![Frame {
                function: "main.newRecord".into(),
                file: String::new(),
                line: 1,
            }],
            culprit: None,
            type_name: None,
            retained_bytes: None,
            retained_by: Vec::new(),
            tags: BTreeMap::new(),
            onset: None,
            onset_interval: None,
            rate_bytes_per_min: 0.0,
            rate_interval: [0.0; 2],
            rate_objects_per_min: 0.0,
            live_bytes: 0,
            live_objects: 0,
            explains: 1.0,
            oom_at: None,
            oom_interval: None,
            bound: None,
            before_onset: Vec::new(),
            points: Vec::new(),
            evidence: Vec::new(),
            advice: String::new(),
        }
    }

    /// Objects of one stack that a variable keeps, two words each.
    fn heap() -> HeapGraph {
        let mut sample = Sample::default();
        let list = sample.object("[]*main.record", HeapKind::Array, OBJECTS);
        sample.global("main.leaked", list);
        let objects: Vec<u32> = (0..OBJECTS).map(|_| sample.value("main.record")).collect();
        for &object in &objects {
            sample.edge(list, object);
        }
        let stack = sample.stack("main.newRecord");
        let mut graph = sample.done();
        graph.allocated = objects
            .into_iter()
            .map(|node| Allocated {
                node: NodeId(node),
                stack,
            })
            .collect();
        graph.totals.profile_rate = 512 << 10;
        graph
    }

    fn label(value: &str) -> Option<LabelPairs> {
        Some(vec![
            ("block".to_owned(), value.to_owned()),
            ("service".to_owned(), "cnc".to_owned()),
        ])
    }

    /// The shares, where the object of this number has these labels.
    #[track_caller]
    fn shares(
        of: impl Fn(u32) -> Option<Option<LabelPairs>>,
        also: impl Fn(&mut TagBook),
    ) -> Vec<TagShare> {
        let graph = heap();
        let mut book = TagBook::new(Time(79_803_000));
        for (i, allocated) in graph.allocated.iter().enumerate() {
            // Behind a header of eight bytes, as the allocator has it.
            let address = graph.addresses.at(allocated.node.index()) + 8;
            if let Some(labels) = of(i as u32) {
                book.insert(address, label("of another before"));
                book.insert(address, labels);
            }
        }
        also(&mut book);
        let dominators = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &dominators,
        };
        tag_shares(heap, &finding(), &book)
    }

    #[test]
    fn the_tag_that_holds_most_is_told() {
        let found = shares(
            |i| (i >= 4).then(|| label(if i % 9 == 0 { "G001-M02" } else { "G001-M17" })),
            |_| (),
        );
        // What all allocations have tells nothing.
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].key.as_str(), found[0].value.as_str()),
            ("block", "G001-M17")
        );
        assert_eq!(
            found[0].words(Time(79_803_000)),
            "tag block=G001-M17 holds 89 % of 36 sampled objects seen since 22:10:03Z \
             (4 older ones have no tag)"
        );
    }

    #[test]
    fn nothing_is_claimed_without_reason() {
        let leaky = |_| Some(label("G001-M17"));
        assert_eq!(shares(leaky, |_| ()).len(), 1);
        // Two share it; half has no label; labels that could not be read; too few; unseen.
        assert_eq!(
            shares(|i| Some(label(if i % 2 == 0 { "a" } else { "b" })), |_| ()),
            []
        );
        assert_eq!(
            shares(|i| Some((i % 2 == 0).then(Vec::new).or(label("a"))), |_| ()),
            []
        );
        assert_eq!(
            shares(|i| Some((i % 2 == 0).then(|| label("a")).flatten()), |_| ()),
            []
        );
        assert_eq!(shares(|i| (i < 9).then(|| label("a")), |_| ()), []);
        assert_eq!(shares(leaky, |book| book.lose(5)), []);
        assert_eq!(shares(|_| None, |_| ()), []);
        assert_eq!(shares(|_| Some(label("")), |_| ()), []);
    }

    #[test]
    fn a_label_that_not_all_allocations_have_tells_something() {
        let found = shares(leaked_import, |book| book.insert(1, Some(Vec::new())));
        assert!(found.iter().any(|s| s.key == "service"), "{found:?}");
    }

    fn leaked_import(_: u32) -> Option<Option<LabelPairs>> {
        Some(label("import"))
    }

    #[test]
    fn the_tag_of_goroutines_that_pile_up() {
        let told = |stuck: &[&str], others: &[&str]| {
            let mut sample = Sample::default();
            let (there, elsewhere) = (sample.stack("main.newRecord"), sample.stack("main.job"));
            let mut graph = sample.done();
            let mut add = |stack, value: &str| {
                let label = (graph.strings.intern("block"), graph.strings.intern(value));
                graph.goroutines.push(Goroutine {
                    stack,
                    labels: if value.is_empty() {
                        vec![]
                    } else {
                        vec![label]
                    },
                    ..Goroutine::default()
                });
            };
            stuck.iter().for_each(|value| add(there, value));
            others.iter().for_each(|value| add(elsewhere, value));
            let finding = Finding {
                source: SampleKind::Goroutine,
                ..finding()
            };
            let dominators = Dominators::of(&graph);
            let heap = Heap {
                graph: &graph,
                dominators: &dominators,
            };
            let shares = tag_shares(heap, &finding, &TagBook::new(Time(0)));
            shares.iter().map(|s| s.words(Time(0))).collect::<Vec<_>>()
        };
        let mixed = [["a"; 9].as_slice(), &["b"]].concat();
        assert_eq!(
            told(&mixed, &["b", "c"]),
            ["tag block=a: 90 % of 10 goroutines that stand there"]
        );
        // Too few; half of them; what all have.
        assert_eq!(told(&["a"; 9], &["b"]), [""; 0]);
        assert_eq!(told(&[["a"; 9], [""; 9]].concat(), &["b"]), [""; 0]);
        assert_eq!(told(&["a"; 12], &["a"; 3]), [""; 0]);
        assert_eq!(told(&["a"; 12], &["a", "a", ""]), [""; 0]);
    }

    #[test]
    fn a_book_is_bounded() {
        let mut book = TagBook::new(Time(0));
        book.most = 100;
        for i in 0..10_000_u64 {
            book.insert(i % 1000, label(&format!("job {i}")));
        }
        assert_eq!(book.len(), 100);
        assert!(book.order.len() <= 2 * 100 + 1025, "{}", book.order.len());
        assert_eq!(book.sets.numbers.len(), 100);
        assert!(book.sets.sets.len() <= 102, "{}", book.sets.sets.len());
        assert_eq!(
            book.pairs(book.find(999, 1)),
            &label("job 9999").unwrap()[..]
        );
        assert!(book.find(0, 899).is_none());
        // Each with labels of its own.
        book.most = MOST_OBJECTS;
        for i in 0..4_000_u64 {
            book.insert(i, label(&"x".repeat(4000 + i as usize)));
        }
        assert!(book.sets.bytes <= MOST_LABEL_BYTES && book.len() < 4_000);
    }

    #[test]
    fn labels_of_a_snapshot() {
        let mut graph = heap();
        let mut book = TagBook::new(Time(0));
        let third = graph.allocated[2].node;
        book.insert(graph.addresses.at(third.index()), label("a"));
        graph.tags = book.of_graph(&mut graph);
        assert_eq!(graph.tags.len(), 2);
        assert!(graph.tags.iter().all(|t| t.0 == third));
        assert_eq!(graph.strings.get(graph.tags[0].2), "a");
        graph.check().unwrap();
    }
}
