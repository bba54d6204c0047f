use std::collections::HashMap;

use memtrace_model::{Goroutine, HeapGraph, HeapStackId, NodeId, RootKind, WaitsFor};

use super::links::Links;

const NONE: u32 = u32::MAX;

/// What can be said of a goroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GoroutineVerdict {
    /// It runs, or something that runs may wake it.
    Live,
    /// It is blocked, and no goroutine that may run holds what it waits for: only variables
    /// of packages lead there. Whoever runs later may still wake it through such a variable,
    /// so that this is no proof; long waits in numbers that grow make it likely.
    OnlyGlobals,
    /// Nothing can ever wake it: what it waits for is out of reach for all that may run.
    Leaked,
}

/// Goroutines that stand at the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoroutineGroup {
    /// What all of them are.
    pub verdict: GoroutineVerdict,
    /// Their stack, the leaf first.
    pub stack: HeapStackId,
    /// Number of the words for what they wait for.
    pub state: u32,
    /// The goroutines, as indices into [`HeapGraph::goroutines`].
    pub goroutines: Vec<u32>,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// For leaked ones: bytes of objects that only goroutines of this group keep.
    pub retained: u64,
    /// For leaked ones: bytes of objects that they lead to and leaked goroutines of other
    /// groups as well, counted for the first two groups that do.
    pub shared: u64,
    /// The longest wait, in milliseconds, where the runtime knows one.
    pub waiting_ms: Option<u64>,
}

/// The verdict on every goroutine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoroutineReport {
    /// For each of [`HeapGraph::goroutines`].
    pub verdicts: Vec<GoroutineVerdict>,
    /// The same by stack: leaked ones first, then those only globals could wake, then live
    /// ones; among them the largest groups first.
    pub groups: Vec<GoroutineGroup>,
    /// Bytes that only leaked goroutines keep.
    pub leaked_bytes: u64,
}

/// Proves which goroutines leak.
///
/// As the `goroutineleak` profile of Go 1.27 does it: everything is marked that can be reached
/// from package variables, the runtime's roots and goroutines that are not blocked. A blocked
/// goroutine whose channel, mutex, wait group or condition is marked may be woken; its frames
/// are then roots as well, and so on until nothing changes. Those left over can never run
/// again. A sudog is not followed (it leads from the runtime's tables to everything that is
/// waited for); a `g` is, as Go does: what its fields keep, deferred calls on the heap for
/// one, counts as held by the runtime.
///
/// Goroutines of the runtime, and those that wait for what was not found
/// ([`WaitsFor::Elsewhere`], or no object), are never called leaked. Nor is the main goroutine
/// in a `select` without cases, which is how a program waits for its end; what only it holds
/// can wake nobody all the same. Takes
/// O(nodes + edges) time and 4 bytes a node at most.
#[must_use]
pub fn goroutine_leaks(graph: &HeapGraph) -> GoroutineReport {
    let links = Links::of(graph);
    let all = Waiting::of(graph);
    let mut marks = Marks::new(graph);
    // What goroutines that may run hold, and those that they may wake.
    let awake = (0..graph.goroutines.len()).filter(|&g| !is_blocked(&graph.goroutines[g]));
    let seeds = awake.map(|g| graph.root_node(graph.goroutines[g].root));
    let woken = marks.spread(&links, &all, seeds);
    let by_goroutines = woken.clone();
    // And what other roots hold.
    let others = links.top().filter(|&n| {
        let kind = graph.root(n).map(|r| r.kind);
        kind != Some(RootKind::Goroutine) || !all.is_goroutine(graph, n)
    });
    let by_all = marks.spread_more(&links, &all, others, woken);
    let verdicts: Vec<GoroutineVerdict> = (graph.goroutines.iter().enumerate())
        .map(
            |(i, g)| match (is_blocked(g), by_goroutines[i], by_all[i]) {
                (false, ..) | (_, true, _) => GoroutineVerdict::Live,
                _ if is_resting_main(graph, g) => GoroutineVerdict::Live,
                (_, _, true) => GoroutineVerdict::OnlyGlobals,
                _ => GoroutineVerdict::Leaked,
            },
        )
        .collect();
    group(graph, &links, &marks, verdicts)
}

fn is_blocked(g: &Goroutine) -> bool {
    !g.is_system
        && match g.waits_for {
            WaitsFor::Nothing => true,
            WaitsFor::Objects => !g.waits_on.is_empty(),
            _ => false,
        }
}

/// Waiting for its end with `select {}`.
fn is_resting_main(graph: &HeapGraph, g: &Goroutine) -> bool {
    g.id == 1 && graph.strings.get(g.state) == "select (no cases)"
}

/// Which blocked goroutines wait on an object, and whose root is whose.
struct Waiting {
    /// Ascending by object.
    on: Vec<(NodeId, u32)>,
    /// For each root, the blocked goroutine whose own it is.
    blocked: Vec<u32>,
    /// For each root, whether it is that of a goroutine.
    goroutine: Vec<bool>,
}

impl Waiting {
    fn of(graph: &HeapGraph) -> Self {
        let mut all = Self {
            on: Vec::new(),
            blocked: vec![NONE; graph.roots.len()],
            goroutine: vec![false; graph.roots.len()],
        };
        for (g, i) in graph.goroutines.iter().zip(0u32..) {
            all.goroutine[g.root as usize] = true;
            if is_blocked(g) {
                all.blocked[g.root as usize] = i;
                if g.waits_for == WaitsFor::Objects {
                    all.on.extend(g.waits_on.iter().map(|&n| (n, i)));
                }
            }
        }
        all.on.sort_unstable();
        all
    }

    fn is_goroutine(&self, graph: &HeapGraph, node: NodeId) -> bool {
        let root = node.index().checked_sub(graph.object_count());
        root.is_some_and(|r| self.goroutine[r])
    }

    /// The goroutines that a marked object may wake.
    fn woken_by(&self, node: NodeId) -> impl Iterator<Item = u32> + '_ {
        let start = self.on.partition_point(|w| w.0 < node);
        let mine = self.on[start..].iter().take_while(move |w| w.0 == node);
        mine.map(|w| w.1)
    }
}

/// One bit per node.
struct Marks<'a> {
    graph: &'a HeapGraph,
    bits: Vec<u64>,
    /// One bit per object: something waits on it.
    waited: Vec<u64>,
}

impl<'a> Marks<'a> {
    fn new(graph: &'a HeapGraph) -> Self {
        let mut waited = vec![0; graph.object_count().div_ceil(64)];
        for goroutine in &graph.goroutines {
            for n in &goroutine.waits_on {
                waited[n.index() / 64] |= 1 << (n.index() % 64);
            }
        }
        Self {
            graph,
            bits: vec![0; graph.node_count().div_ceil(64)],
            waited,
        }
    }

    fn is_marked(&self, node: NodeId) -> bool {
        self.bits[node.index() / 64] >> (node.index() % 64) & 1 == 1
    }

    fn mark(&mut self, node: NodeId) -> bool {
        let (word, bit) = (&mut self.bits[node.index() / 64], 1 << (node.index() % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn is_waited_on(&self, node: NodeId) -> bool {
        let word = self.waited.get(node.index() / 64).copied().unwrap_or(0);
        word >> (node.index() % 64) & 1 == 1
    }

    /// Marks what can be reached from `seeds`; says which blocked goroutines that wakes.
    fn spread(
        &mut self,
        links: &Links<'_>,
        all: &Waiting,
        seeds: impl Iterator<Item = NodeId>,
    ) -> Vec<bool> {
        let none = vec![false; self.graph.goroutines.len()];
        self.spread_more(links, all, seeds, none)
    }

    /// The same, with what has been woken before.
    fn spread_more(
        &mut self,
        links: &Links<'_>,
        all: &Waiting,
        seeds: impl Iterator<Item = NodeId>,
        mut woken: Vec<bool>,
    ) -> Vec<bool> {
        let mut pending: Vec<NodeId> = seeds.filter(|&n| self.mark(n)).collect();
        while let Some(node) = pending.pop() {
            if self.is_waited_on(node) {
                for g in all.woken_by(node) {
                    if !std::mem::replace(&mut woken[g as usize], true) {
                        let root = self.graph.root_node(self.graph.goroutines[g as usize].root);
                        if self.mark(root) {
                            pending.push(root);
                        }
                    }
                }
            }
            for &target in links.below(node).iter().chain(links.edges(node)) {
                // A blocked goroutine below another root waits as well.
                let root = target.index().checked_sub(self.graph.object_count());
                let sleeps = root.is_some_and(|r| match all.blocked[r] {
                    NONE => false,
                    g => !woken[g as usize],
                });
                if !sleeps && self.mark(target) {
                    pending.push(target);
                }
            }
        }
        woken
    }
}

/// Puts goroutines with one verdict, stack and state together, and tells what leaked ones keep.
fn group(
    graph: &HeapGraph,
    links: &Links<'_>,
    marks: &Marks<'_>,
    verdicts: Vec<GoroutineVerdict>,
) -> GoroutineReport {
    let mut places: HashMap<(GoroutineVerdict, HeapStackId, u32), usize> = HashMap::new();
    let mut groups: Vec<GoroutineGroup> = Vec::new();
    for ((g, &verdict), i) in graph.goroutines.iter().zip(&verdicts).zip(0u32..) {
        let place = *places
            .entry((verdict, g.stack, g.state))
            .or_insert_with(|| {
                groups.push(GoroutineGroup {
                    verdict,
                    stack: g.stack,
                    state: g.state,
                    goroutines: Vec::new(),
                    stack_bytes: 0,
                    retained: 0,
                    shared: 0,
                    waiting_ms: None,
                });
                groups.len() - 1
            });
        let group = &mut groups[place];
        group.goroutines.push(i);
        group.stack_bytes = group.stack_bytes.saturating_add(g.stack_bytes);
        group.waiting_ms = group.waiting_ms.max(g.waiting_ms);
    }
    let leaked_bytes = attribute(graph, links, marks, &mut groups);
    groups.sort_by_key(|g| {
        let rank = match g.verdict {
            GoroutineVerdict::Leaked => 0,
            GoroutineVerdict::OnlyGlobals => 1,
            GoroutineVerdict::Live => 2,
        };
        let count = std::cmp::Reverse(g.goroutines.len());
        (rank, count, std::cmp::Reverse(g.retained), g.stack)
    });
    GoroutineReport {
        verdicts,
        groups,
        leaked_bytes,
    }
}

/// Gives every unmarked object to the group of leaked goroutines that leads there; returns
/// their bytes.
fn attribute(
    graph: &HeapGraph,
    links: &Links<'_>,
    marks: &Marks<'_>,
    groups: &mut [GoroutineGroup],
) -> u64 {
    if !groups.iter().any(|g| g.verdict == GoroutineVerdict::Leaked) {
        return 0;
    }
    // The group that has been at each node, or this for more than one.
    let several = groups.len() as u32;
    let mut owner = vec![NONE; graph.node_count()];
    let mut total = 0;
    let mut pending: Vec<NodeId> = Vec::new();
    // What the main goroutine holds at rest is not kept by leaks alone.
    let main = graph
        .goroutines
        .iter()
        .filter(|g| is_resting_main(graph, g));
    pending.extend(main.map(|g| graph.root_node(g.root)));
    while let Some(node) = pending.pop() {
        if !marks.is_marked(node) && owner[node.index()] == NONE {
            owner[node.index()] = several;
            pending.extend(links.below(node).iter().chain(links.edges(node)));
        }
    }
    for i in 0..groups.len() {
        if groups[i].verdict != GoroutineVerdict::Leaked {
            continue;
        }
        let mine = groups[i].goroutines.iter();
        pending.extend(mine.map(|&g| graph.root_node(graph.goroutines[g as usize].root)));
        let (mut alone, mut shared) = (0, 0);
        while let Some(node) = pending.pop() {
            if marks.is_marked(node) {
                continue;
            }
            // An object changes hands twice at most, from nobody to one, from one to several:
            // the time is linear however many groups there are.
            let now = match owner[node.index()] {
                NONE => i as u32,
                o if o == i as u32 || o == several => continue,
                _ => several,
            };
            let size = graph.size(node);
            if now == several {
                let before = owner[node.index()] as usize;
                groups[before].retained -= size;
                groups[before].shared += size;
                shared += size;
            } else {
                alone += size;
                total += size;
            }
            owner[node.index()] = now;
            pending.extend(links.below(node).iter().chain(links.edges(node)));
        }
        groups[i].retained += alone;
        groups[i].shared += shared;
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sample::{self, Sample};
    use super::*;
    use GoroutineVerdict::{Leaked, Live, OnlyGlobals};

    #[test]
    fn verdicts_follow_what_can_wake() {
        let mut s = Sample::default();
        let chan: Vec<u32> = (0..5).map(|_| s.value("chan int")).collect();
        let payload = s.object("[]uint8", memtrace_model::HeapKind::Array, 100);
        let both = s.object("[]uint8", memtrace_model::HeapKind::Array, 50);
        // The runtime's table of goroutines leads to every channel through its sudog.
        let g = s.value("runtime.g");
        let sudog = s.value("runtime.sudog");
        s.global("runtime.allgs", g);
        s.edge(g, sudog);
        s.edge(sudog, chan[1]);
        s.global("main.global", chan[2]);
        // Runs, and holds the first channel.
        let (_, frame) = s.goroutine("main.main", &[]);
        s.root_edge(frame, chan[0]);
        // Waits for it, and holds the fourth.
        let (_, frame) = s.goroutine("main.relay", &[chan[0]]);
        s.root_edge(frame, chan[3]);
        s.goroutine("main.end", &[chan[3]]);
        for _ in 0..2 {
            let (_, frame) = s.goroutine("main.leak", &[chan[1]]);
            s.root_edge(frame, payload);
            s.root_edge(frame, both);
        }
        s.goroutine("main.global", &[chan[2]]);
        // Two that could only wake each other.
        let (a, frame) = s.goroutine("main.pair", &[chan[4]]);
        s.root_edge(frame, chan[4]);
        s.root_edge(frame, both);
        let (nil, _) = s.goroutine("main.nil", &[]);
        s.graph().goroutines[nil as usize].waits_for = WaitsFor::Nothing;
        let (system, _) = s.goroutine("runtime.bgsweep", &[chan[4]]);
        s.graph().goroutines[system as usize].is_system = true;
        let graph = s.done();
        let report = goroutine_leaks(&graph);
        // A system goroutine may wake the pair, were it to hold the channel; it waits there,
        // which is the same.
        assert_eq!(report.verdicts[a as usize], Live);
        assert_eq!(
            report.verdicts,
            [
                Live,
                Live,
                Live,
                Leaked,
                Leaked,
                OnlyGlobals,
                Live,
                Leaked,
                Live
            ]
        );
        let leak = &report.groups[0];
        assert_eq!((leak.goroutines.len(), leak.stack_bytes), (2, 4096));
        assert_eq!((leak.retained, leak.shared), (800 + 16, 0));
        assert_eq!(report.leaked_bytes, 816);
    }

    #[test]
    fn the_main_goroutine_may_rest() {
        let mut s = Sample::default();
        let chan = s.value("chan int");
        let (main, frame) = s.goroutine("main.main", &[]);
        s.root_edge(frame, chan);
        let (leak, frame) = s.goroutine("main.leak", &[chan]);
        let own = s.object("own", memtrace_model::HeapKind::Value, 3);
        s.root_edge(frame, own);
        s.root_edge(frame, chan);
        let rests = s.graph().strings.intern("select (no cases)");
        let g = &mut s.graph().goroutines[main as usize];
        (g.id, g.state, g.waits_for) = (1, rests, WaitsFor::Nothing);
        let graph = s.done();
        let report = goroutine_leaks(&graph);
        assert_eq!((main, leak), (0, 1));
        assert_eq!(report.verdicts, [Live, Leaked]);
        // The channel stays as long as the main goroutine.
        assert_eq!((report.groups[0].retained, report.leaked_bytes), (24, 24));
    }

    #[test]
    fn what_two_groups_keep_is_told_apart() {
        let mut s = Sample::default();
        let chan = s.value("chan int");
        let both = s.object("[]uint8", memtrace_model::HeapKind::Array, 50);
        let below = s.object("[]uint8", memtrace_model::HeapKind::Array, 7);
        s.edge(both, below);
        for name in ["main.a", "main.b", "main.c"] {
            let (_, frame) = s.goroutine(name, &[chan]);
            s.root_edge(frame, both);
            let own = s.object("own", memtrace_model::HeapKind::Value, 3);
            s.root_edge(frame, own);
        }
        let graph = s.done();
        let report = goroutine_leaks(&graph);
        assert!(report.verdicts.iter().all(|&v| v == Leaked));
        assert_eq!(report.leaked_bytes, 16 + 57 * 8 + 3 * 24);
        for group in &report.groups {
            assert_eq!(group.retained, 24);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_rounds_of_marking(graph in sample::graphs()) {
            let report = goroutine_leaks(&graph);
            let links = Links::of(&graph);
            let mut live: Vec<bool> = graph.goroutines.iter().map(|g| !is_blocked(g)).collect();
            let mut seen;
            loop {
                seen = vec![false; graph.node_count()];
                let mut todo: Vec<NodeId> = links.top().filter(|&n| {
                    let g = graph.goroutines.iter().position(|g| graph.root_node(g.root) == n);
                    g.is_none_or(|g| live[g])
                }).collect();
                while let Some(n) = todo.pop() {
                    if !std::mem::replace(&mut seen[n.index()], true) {
                        todo.extend(links.below(n).iter().chain(links.edges(n)));
                    }
                }
                let next: Vec<bool> = graph.goroutines.iter().zip(&live)
                    .map(|(g, &l)| l || g.waits_on.iter().any(|n| seen[n.index()]))
                    .collect();
                if next == live {
                    break;
                }
                live = next;
            }
            for (verdict, live) in report.verdicts.iter().zip(&live) {
                prop_assert_eq!(*verdict != Leaked, *live);
            }
            let tree = super::super::Dominators::of(&graph);
            let bytes: u64 = tree.reachable().iter().filter(|n| !seen[n.index()]).map(|&n| graph.size(n)).sum();
            prop_assert_eq!(report.leaked_bytes, bytes);
            let alone: u64 = report.groups.iter().map(|g| g.retained).sum();
            prop_assert!(alone <= bytes);
        }
    }
}
