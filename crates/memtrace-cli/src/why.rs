//! `memtrace why`: what keeps objects alive.

use std::collections::HashMap;

use memtrace_analysis::graph::{Heap, RootPath, field, root_words, shortest_paths};
use memtrace_model::{HeapStackId, NodeId};
use regex_lite::Regex;
use serde_json::{Value, json};

use crate::args::WhyArgs;
use crate::failure::Failure;
use crate::heap;
use crate::out::Out;
use crate::units::{bytes, count};

/// Of many objects so many are looked at, spread evenly: their ways may be long.
const LOOKED_AT: usize = 256;
/// Steps of a way that are printed; the middle of a longer one is left out.
const STEPS: usize = 24;
/// Pointers of one object that are printed.
const POINTERS: usize = 20;

pub(crate) fn run(args: &WhyArgs) -> Result<(), Failure> {
    // A mistake in the pattern need not wait for a large file.
    let stack = match args.stack.as_deref().map(Regex::new) {
        Some(Err(error)) => return Err(Failure::Usage(format!("--stack: {error}"))),
        Some(Ok(pattern)) => Some(pattern),
        None => None,
    };
    let loaded = heap::load(&args.file, &args.pause)?;
    let heap = loaded.heap();
    let mut out = Out::open();
    if let Some(address) = args.object {
        let object = Object::at(heap, address)?;
        if args.json {
            out.json(&object.json())?;
        } else {
            out.lines(&object.lines())?;
        }
    } else {
        let group = match (&args.type_name, stack) {
            (Some(name), _) => Group::of_type(heap, name)?,
            (None, Some(pattern)) => Group::of_stack(heap, &pattern)?,
            (None, None) => return Err(Failure::Usage("say --type, --object or --stack".into())),
        };
        if args.json {
            out.json(&group.json(args.rows))?;
        } else {
            out.lines(&group.lines(args.rows))?;
        }
    }
    Ok(out.done()?)
}

/// Objects that something was asked about together.
struct Group<'a> {
    heap: Heap<'a>,
    name: String,
    live: Vec<NodeId>,
    dead: u64,
    bytes: u64,
    retained: u64,
    looked_at: usize,
    ways: Vec<Way>,
    stacks: Vec<(HeapStackId, u64)>,
}

/// Objects that the same way leads to.
struct Way {
    objects: u64,
    /// The way to one of them.
    words: Vec<String>,
}

impl<'a> Group<'a> {
    fn of_type(heap: Heap<'a>, wanted: &str) -> Result<Self, Failure> {
        let graph = heap.graph;
        let named = |test: &dyn Fn(&str) -> bool| -> Vec<bool> {
            let types = graph.heap_types.iter();
            types.map(|t| test(graph.strings.get(t.name))).collect()
        };
        let mut types = named(&|name| name == wanted);
        if !types.contains(&true) {
            types = named(&|name| name.contains(wanted));
        }
        let nodes = (0..graph.object_count() as u32).map(NodeId);
        let nodes = nodes.filter(|n| types[graph.types[n.index()].index()]);
        let mut names: Vec<&str> = (graph.heap_types.iter().zip(&types))
            .filter(|(_, wanted)| **wanted)
            .map(|(t, _)| graph.strings.get(t.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        let name = match names.len() {
            0..=3 => names.join(", "),
            n => format!("{n} types with {wanted} in their name"),
        };
        let group = Self::of(heap, name, nodes);
        if group.live.is_empty() && group.dead == 0 {
            return Err(Failure::Failed(format!(
                "no object has a type {wanted:?}; `memtrace report` lists the types"
            )));
        }
        Ok(group)
    }

    fn of_stack(heap: Heap<'a>, pattern: &Regex) -> Result<Self, Failure> {
        let graph = heap.graph;
        if graph.allocated.is_empty() {
            return Err(Failure::Failed(
                "no object has an allocation stack: the program does not sample its allocations (MemProfileRate)".into(),
            ));
        }
        let matches: Vec<bool> = (graph.stacks.iter())
            .map(|frames| {
                let mut frames = frames.iter().filter_map(|f| graph.frames.get(f.index()));
                frames.any(|f| pattern.is_match(graph.strings.get(f.function)))
            })
            .collect();
        let sampled = graph.allocated.iter();
        let nodes = sampled
            .filter(|a| matches.get(a.stack.index()) == Some(&true))
            .map(|a| a.node);
        let name = format!("sampled objects that {pattern} allocated");
        let group = Self::of(heap, name, nodes);
        if group.live.is_empty() && group.dead == 0 {
            return Err(Failure::Failed(format!(
                "none of the {} sampled objects was allocated by a stack with {pattern}",
                count(graph.allocated.len() as u64)
            )));
        }
        Ok(group)
    }

    fn of(heap: Heap<'a>, name: String, nodes: impl Iterator<Item = NodeId>) -> Self {
        let (graph, tree) = (heap.graph, heap.dominators);
        let (live, dead): (Vec<NodeId>, Vec<NodeId>) = nodes.partition(|&n| tree.is_reachable(n));
        let step = live.len().div_ceil(LOOKED_AT).max(1);
        let looked_at: Vec<NodeId> = live.iter().copied().step_by(step).collect();
        let mut ways: HashMap<Vec<String>, Way> = HashMap::new();
        for path in shortest_paths(graph, &looked_at).into_iter().flatten() {
            let words = path.words(graph);
            let key = words.iter().map(|w| without_times(w).to_owned()).collect();
            let way = ways.entry(key).or_insert(Way { objects: 0, words });
            way.objects += 1;
        }
        let mut ways: Vec<Way> = ways.into_values().collect();
        ways.sort_by(|a, b| {
            b.objects
                .cmp(&a.objects)
                .then_with(|| a.words.cmp(&b.words))
        });
        let mut stacks: HashMap<HeapStackId, u64> = HashMap::new();
        for &node in &live {
            if let Some(stack) = graph.allocated_by(node) {
                *stacks.entry(stack).or_default() += 1;
            }
        }
        let mut stacks: Vec<(HeapStackId, u64)> = stacks.into_iter().collect();
        stacks.sort_by_key(|&(stack, n)| (std::cmp::Reverse(n), stack));
        Self {
            heap,
            name,
            dead: dead.len() as u64,
            bytes: live.iter().map(|&n| graph.size(n)).sum(),
            retained: retained_together(heap, &live),
            live,
            looked_at: looked_at.len(),
            ways,
            stacks,
        }
    }

    fn share(&self, way: &Way) -> f64 {
        way.objects as f64 / self.looked_at.max(1) as f64
    }

    fn lines(&self, rows: usize) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {} live, {}, retaining {}; {} dead",
            self.name,
            heap::objects(self.live.len() as u64),
            bytes(self.bytes as f64),
            bytes(self.retained as f64),
            count(self.dead)
        )];
        if self.live.is_empty() {
            lines.push("nothing keeps them: the next collection takes them".to_owned());
            return lines;
        }
        let of = if self.looked_at < self.live.len() {
            format!(" (of {} looked at)", self.looked_at)
        } else {
            String::new()
        };
        lines.push(format!("kept alive by{of}:"));
        for way in self.ways.iter().take(rows) {
            lines.push(format!("{:>6.1} %", 100.0 * self.share(way)));
            lines.extend(way_lines(&way.words));
        }
        if self.ways.len() > rows {
            lines.push(format!("and {} more ways (-n)", self.ways.len() - rows));
        }
        for (stack, n) in self.stacks.iter().take(3) {
            let functions = heap::functions(self.heap.graph, *stack);
            lines.push(format!("allocated by ({} sampled)  {functions}", count(*n)));
        }
        lines
    }

    fn json(&self, rows: usize) -> Value {
        let graph = self.heap.graph;
        json!({
            "schema": "memtrace.why/1", "what": self.name, "objects": self.live.len(), "bytes": self.bytes,
            "retained": self.retained, "dead_objects": self.dead, "looked_at": self.looked_at,
            "paths": self.ways.iter().take(rows)
                .map(|w| json!({"share": self.share(w), "path": w.words})).collect::<Vec<_>>(),
            "stacks": self.stacks.iter().take(rows)
                .map(|(s, n)| json!({"sampled_objects": n, "stack": heap::stack(graph, *s)})).collect::<Vec<_>>(),
        })
    }
}

/// Bytes that objects retain, without counting twice what one retains through another.
fn retained_together(heap: Heap<'_>, live: &[NodeId]) -> u64 {
    let tree = heap.dominators;
    let mut chosen = vec![0u64; heap.graph.node_count().div_ceil(64)];
    let has = |chosen: &[u64], n: NodeId| chosen[n.index() / 64] >> (n.index() % 64) & 1 == 1;
    for &node in live {
        chosen[node.index() / 64] |= 1 << (node.index() % 64);
    }
    // In preorder each subtree is one run: what lies in the run of a chosen node is counted.
    let mut covered = 0;
    let mut sum = 0;
    for (at, &node) in tree.reachable().iter().enumerate() {
        if at >= covered && has(&chosen, node) {
            sum += tree.retained(node);
            covered = at + tree.retained_nodes(node) as usize;
        }
    }
    sum
}

/// `main.Node.Next ×12` is the same step as `main.Node.Next ×500`.
fn without_times(word: &str) -> &str {
    match word.rsplit_once(" ×") {
        Some((step, times)) if times.bytes().all(|b| b.is_ascii_digit()) => step,
        _ => word,
    }
}

fn way_lines(words: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        if words.len() > STEPS && (STEPS / 2..words.len() - STEPS / 2).contains(&i) {
            if i == STEPS / 2 {
                lines.push(format!("          … {} steps", words.len() - STEPS));
            }
            continue;
        }
        let arrow = if i == 0 { "" } else { "→ " };
        lines.push(format!("          {arrow}{word}"));
    }
    lines
}

/// One object with all that is known of it.
struct Object<'a> {
    heap: Heap<'a>,
    node: NodeId,
    path: Option<RootPath>,
}

impl<'a> Object<'a> {
    fn at(heap: Heap<'a>, address: u64) -> Result<Self, Failure> {
        let node = heap
            .graph
            .object_at(address)
            .ok_or_else(|| Failure::Failed(format!("no object of the heap is at {address:#x}")))?;
        let path = shortest_paths(heap.graph, &[node]).pop().flatten();
        Ok(Self { heap, node, path })
    }

    fn address(&self, node: NodeId) -> u64 {
        let addresses = &self.heap.graph.addresses;
        addresses.get(node.index()).unwrap_or(0)
    }

    fn dominators(&self) -> Vec<String> {
        let (graph, tree) = (self.heap.graph, self.heap.dominators);
        let mut path = tree.path(self.node);
        path.pop();
        path.iter()
            .map(|&n| {
                format!(
                    "{} ({})",
                    root_words(graph, n),
                    bytes(tree.retained(n) as f64)
                )
            })
            .collect()
    }

    fn pointers(&self) -> Vec<(String, NodeId)> {
        let graph = self.heap.graph;
        (graph.targets(self.node).iter())
            .zip(graph.slots(self.node))
            .map(|(&to, slot)| (field(graph, self.node, slot), to))
            .collect()
    }

    fn tags(&self) -> Vec<(&'a str, &'a str)> {
        let graph = self.heap.graph;
        let tags = graph.tags.iter().filter(|t| t.0 == self.node);
        tags.map(|t| (graph.strings.get(t.1), graph.strings.get(t.2)))
            .collect()
    }

    fn age(&self) -> &'static str {
        match self.heap.graph.survived.get(self.node.index()) {
            Some(true) => "was there at the last collection",
            _ => "made since the last collection",
        }
    }

    fn lines(&self) -> Vec<String> {
        let (graph, tree) = (self.heap.graph, self.heap.dominators);
        let mut lines = vec![format!(
            "{:#x}  {}  {}, {}",
            self.address(self.node),
            graph.name(self.node),
            bytes(graph.size(self.node) as f64),
            self.age()
        )];
        match &self.path {
            None => lines.push("dead: nothing keeps it, the next collection takes it".to_owned()),
            Some(path) => {
                lines.push(format!(
                    "retains {} in {}",
                    bytes(tree.retained(self.node) as f64),
                    heap::objects(tree.retained_nodes(self.node).into())
                ));
                lines.push("kept alive by".to_owned());
                lines.extend(way_lines(&path.words(graph)));
                let dominators = self.dominators();
                if dominators.is_empty() {
                    lines.push("no single thing keeps it: several roots do".to_owned());
                } else {
                    lines.push("would be garbage without any one of".to_owned());
                    lines.extend(way_lines(&dominators));
                }
            }
        }
        if let Some(stack) = graph.allocated_by(self.node) {
            lines.push("allocated by".to_owned());
            lines.extend(
                heap::stack(graph, stack)
                    .iter()
                    .map(|f| format!("          {f}")),
            );
        }
        for (key, value) in self.tags() {
            lines.push(format!("tag {key}={value}"));
        }
        let pointers = self.pointers();
        if !pointers.is_empty() {
            lines.push(format!(
                "leads to, {} of {}",
                pointers.len().min(POINTERS),
                pointers.len()
            ));
        }
        for (name, to) in pointers.iter().take(POINTERS) {
            lines.push(format!(
                "          {name}  {:#x} {}",
                self.address(*to),
                graph.name(*to)
            ));
        }
        lines
    }

    fn json(&self) -> Value {
        let (graph, tree) = (self.heap.graph, self.heap.dominators);
        json!({
            "schema": "memtrace.object/1", "address": format!("{:#x}", self.address(self.node)),
            "type": graph.name(self.node), "bytes": graph.size(self.node),
            "survived": graph.survived.get(self.node.index()),
            "live": self.path.is_some(), "retained": tree.retained(self.node),
            "retained_objects": tree.retained_nodes(self.node),
            "path": self.path.as_ref().map(|p| p.words(graph)), "dominators": self.dominators(),
            "stack": graph.allocated_by(self.node).map(|s| heap::stack(graph, s)),
            "tags": self.tags().iter().map(|(k, v)| json!({"key": k, "value": v})).collect::<Vec<_>>(),
            "pointers": self.pointers().iter().map(|(name, to)| json!({
                "field": name, "address": format!("{:#x}", self.address(*to)), "type": graph.name(*to),
            })).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::sample;

    fn of_type(name: &str) -> String {
        let loaded = sample::loaded();
        match Group::of_type(loaded.heap(), name) {
            Ok(group) => group.lines(5).join("\n"),
            Err(failure) => format!("exit {}: {}", failure.code(), failure.line().unwrap_or("")),
        }
    }

    #[test]
    fn types() {
        insta::assert_snapshot!(
            ["main.Session", "Nod", "string", "main.Bo", "main.Nothing"]
                .map(of_type)
                .join("\n\n")
        );
    }

    #[test]
    fn objects() {
        let loaded = sample::loaded();
        let heap = loaded.heap();
        let session = heap.graph.addresses.at(3);
        let dead = heap.graph.addresses.len() - 4;
        let dead = heap.graph.addresses.at(dead);
        // Inside it as well as at its start.
        let words = [session + 8, dead, heap.graph.addresses.at(0)].map(|address| {
            let object = Object::at(heap, address).expect("an object");
            object.lines().join("\n")
        });
        insta::assert_snapshot!(words.join("\n\n"));
        let Err(failure) = Object::at(heap, 0x10) else {
            unreachable!("nothing is there");
        };
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn stacks() {
        let loaded = sample::loaded();
        let pattern = Regex::new("Cache..Login").expect("a pattern");
        let group = Group::of_stack(loaded.heap(), &pattern).expect("some");
        insta::assert_snapshot!(group.lines(5).join("\n"));
        assert_eq!(group.json(5)["objects"], 4);
        let none = Regex::new("nobody").expect("a pattern");
        assert!(Group::of_stack(loaded.heap(), &none).is_err());
    }

    // What lies below another one of the same is not counted twice.
    #[test]
    fn a_list_retains_itself_once() {
        let loaded = sample::loaded();
        let group = Group::of_type(loaded.heap(), "main.Node").expect("a list");
        assert_eq!(
            (group.live.len(), group.bytes, group.retained),
            (30, 480, 480)
        );
    }

    #[test]
    fn long_ways_lose_their_middle() {
        let words: Vec<String> = (0..100).map(|i| format!("step {i}")).collect();
        let lines = way_lines(&words);
        assert_eq!(lines.len(), STEPS + 1);
        assert!(lines[0].contains("step 0") && lines[STEPS].contains("step 99"));
        assert!(lines[STEPS / 2].contains("76 steps"));
    }
}
