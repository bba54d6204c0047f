//! The memory of a small Go program, and lies about it: used by a test and by a fuzz target.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use memtrace_analysis::graph::{
    Dominators, Heap, RetentionTree, SurvivorOptions, SurvivorTracker, SuspectOptions, TreeLimits,
    by_stack, by_type, diff, shortest_paths, suspects, top_groups,
};
use memtrace_formats::goheap::{self, Memory, Process, Region, Thread, Unreadable};
use memtrace_model::{HeapGraph, NodeId, Time};

/// A program that stands still: its file and all its memory.
pub struct Base {
    executable: Vec<u8>,
    regions: Vec<Region>,
    /// Of each region that could be read, ascending.
    parts: Vec<(u64, Vec<u8>)>,
    /// Words of the runtime's own structures: those that lead to all others.
    key_words: Vec<u64>,
    pub readable: u64,
}

/// Which structures have words that are changed one by one, by their symbols and bytes.
const STRUCTURES: [(&str, u64); 14] = [
    ("runtime.mheap_", 96),
    ("runtime.allgs", 24),
    ("runtime.firstmoduledata", 640),
    ("runtime.mbuckets", 8),
    ("runtime.itabTable", 8),
    ("runtime.allfin", 8),
    ("runtime.gcCleanups", 64),
    ("runtime.gcController", 512),
    ("runtime.MemProfileRate", 8),
    ("runtime.waitReasonStrings", 640),
    ("runtime.buildVersion", 16),
    ("runtime.fingStatus", 8),
    ("runtime.modulesSlice", 8),
    ("sync.allPools", 24),
];
/// From the start of `runtime.mheap_` to its list of spans and other fields around it.
const LISTS: u64 = 65_800;

fn go() -> std::ffi::OsString {
    std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into())
}

impl Base {
    /// Builds the program that is in `folder` and copies its memory when it has made its heap.
    /// `None`, with a message, where Go is missing.
    pub fn make(folder: &Path, stripped: bool) -> Option<Self> {
        // Tests of one process run side by side.
        let home = std::env::temp_dir().join(format!(
            "memtrace-hostile-{}-{stripped}",
            std::process::id()
        ));
        std::fs::create_dir_all(&home).expect("a folder");
        let program = home.join("program");
        let mut build = Command::new(go());
        build.args(["build", "-o"]).arg(&program);
        if stripped {
            build.arg("-ldflags=-w");
        }
        let built = build
            .arg(".")
            .env("CGO_ENABLED", "0")
            .current_dir(folder)
            .output();
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                eprintln!("skipped: {:?}: {error}; set MEMTRACE_GO", go());
                return None;
            }
        };
        assert!(built.status.success(), "{built:?}");
        let base = Self::of(&program);
        std::fs::remove_dir_all(&home).expect("its removal");
        Some(base)
    }

    fn of(program: &Path) -> Self {
        let mut child = Command::new(program)
            .env("GOMAXPROCS", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let pid = child.id();
        let stopped = Command::new("kill")
            .args(["-STOP", &pid.to_string()])
            .status();
        assert!(stopped.expect("kill").success());
        while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .expect("its state")
            .rsplit(") ")
            .next()
            .is_some_and(|s| s.starts_with('T'))
        {
            std::thread::yield_now();
        }
        let regions = regions(pid);
        let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
        let mut parts = Vec::new();
        for region in regions.iter().filter(|r| r.rwx[0]) {
            let mut bytes = vec![0; (region.end - region.start) as usize];
            if memory.read_exact_at(&mut bytes, region.start).is_ok() {
                parts.push((region.start, bytes));
            }
        }
        child.kill().expect("its end");
        child.wait().expect("its end");
        let mut base = Self {
            executable: std::fs::read(program).expect("the program"),
            regions,
            readable: parts.iter().map(|p| p.1.len() as u64).sum(),
            parts,
            key_words: Vec::new(),
        };
        base.find_key_words(program);
        base
    }

    fn find_key_words(&mut self, program: &Path) {
        let listed = Command::new(go())
            .args(["tool", "nm"])
            .arg(program)
            .output();
        let listed = String::from_utf8_lossy(&listed.expect("go tool nm").stdout).into_owned();
        let symbols: HashMap<&str, u64> = listed
            .lines()
            .filter_map(|l| {
                let mut words = l.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                Some((words.nth(1)?, address))
            })
            .collect();
        let mut words = Vec::new();
        let mut add = |from: u64, bytes: u64| words.extend((0..bytes / 8).map(|i| from + 8 * i));
        for (name, bytes) in STRUCTURES {
            if let Some(&at) = symbols.get(name) {
                // Those that all others hang off, more often than what hangs off them.
                for _ in 0..20 {
                    add(at, bytes);
                }
            }
        }
        let word = |at: u64| {
            let mut bytes = [0; 8];
            self.truth(at, &mut bytes)
                .map(|()| u64::from_le_bytes(bytes))
        };
        if let Some(&heap) = symbols.get("runtime.mheap_") {
            for _ in 0..20 {
                add(heap + LISTS, 256);
            }
            // The list is at the same place in all releases.
            let (table, count) = (word(heap + 65_864), word(heap + 65_872));
            for i in 0..count.unwrap_or(0) {
                if let Some(span) = table.and_then(|t| word(t + 8 * i)) {
                    add(span, 160);
                    add(table.unwrap_or(0) + 8 * i, 8);
                    if let Some(special) = word(span + 128).filter(|&s| s != 0) {
                        add(special, 48);
                    }
                }
            }
        }
        if let Some(&all) = symbols.get("runtime.allgs") {
            for i in 0..word(all + 8).unwrap_or(0) {
                if let Some(g) = word(all).and_then(|t| word(t + 8 * i)) {
                    add(g, 448);
                    // Its stack, from where it stopped.
                    if let Some(sp) = word(g + 56) {
                        add(sp, 512);
                    }
                }
            }
        }
        words.retain(|&w| self.truth(w, &mut [0; 8]).is_some());
        self.key_words = words;
    }

    fn truth(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let next = self.parts.partition_point(|p| p.0 <= address);
        let (start, bytes) = self.parts.get(next.checked_sub(1)?)?;
        let at = usize::try_from(address - start).ok()?;
        let end = at.checked_add(into.len())?;
        into.copy_from_slice(bytes.get(at..end)?);
        Some(())
    }

    fn somewhere(&self, number: u64) -> u64 {
        let (start, bytes) = &self.parts[(number >> 32) as usize % self.parts.len()];
        (start + number % (bytes.len() as u64)) & !7
    }

    /// A word of the runtime's own, or any other.
    fn target(&self, number: u64) -> u64 {
        match number % 4 {
            0 => self.somewhere(mix(number)),
            _ if self.key_words.is_empty() => self.somewhere(mix(number)),
            _ => self.key_words[(mix(number) % self.key_words.len() as u64) as usize],
        }
    }
}

fn regions(pid: u32) -> Vec<Region> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
    maps.lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = words[0].split_once('-').expect("a range");
            let rights = words[1].as_bytes();
            Region {
                start: number(start),
                end: number(end),
                offset: number(words[2]),
                rwx: [rights[0] == b'r', rights[1] == b'w', rights[2] == b'x'],
                file: words.get(5).copied().unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// SplitMix64's finalizer: the same number for the same one.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The memory of the program, with some words that are not what they were.
pub struct Liar<'b> {
    base: &'b Base,
    seed: u64,
    /// Words with other values.
    words: HashMap<u64, u64>,
    /// Beside those, one word in so many lies, of one region (0: none).
    rate: u64,
    region: usize,
    /// One page in so many cannot be read (0: all can).
    holes: u64,
    /// Says that all memory that there could be is there.
    boundless: bool,
    pub asked: AtomicU64,
}

impl<'b> Liar<'b> {
    /// The lies that numbers tell: the seed of what is everywhere, then a place and a value
    /// for each.
    pub fn new(base: &'b Base, everywhere: u64, places: impl Iterator<Item = (u64, u64)>) -> Self {
        let rate = match everywhere % 8 {
            0..=3 => 0,
            n => 1 << (2 * n + everywhere / 8 % 4),
        };
        let mut liar = Self {
            base,
            seed: mix(everywhere),
            words: HashMap::new(),
            rate,
            region: (everywhere >> 8) as usize % base.parts.len(),
            holes: if everywhere >> 16 & 7 == 7 {
                1 << (4 + (everywhere >> 20) % 8)
            } else {
                0
            },
            boundless: everywhere >> 24 & 3 == 3,
            asked: AtomicU64::new(0),
        };
        for (place, value) in places {
            let at = base.target(place);
            let mut was = [0; 8];
            base.truth(at, &mut was);
            let value = liar.lie(at, u64::from_le_bytes(was), value);
            liar.words.insert(at, value);
        }
        liar
    }

    fn lie(&self, at: u64, was: u64, number: u64) -> u64 {
        let random = mix(number);
        match number % 20 {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::MAX - random % 4096,
            4 => random,
            5 => random & 0xffff_ffff,
            6 => 1 << (random % 64),
            7 => (1 << (random % 48)) - 1,
            8 => at,
            9 => at & !0xfff,
            10 | 11 => self.base.target(random),
            12 | 13 => self.base.somewhere(random),
            14 => was.wrapping_add(8 << (random % 24)),
            15 => was.wrapping_sub(8 << (random % 24)),
            16 => was ^ 1 << (random % 64),
            17 => was ^ (random & 0xff) << (8 * (random >> 8 & 7)),
            18 => was.wrapping_mul(random % 1000),
            _ => (random & 0xffff) | was & !0xffff,
        }
    }
}

impl Memory for Liar<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self.asked.fetch_add(into.len() as u64, Ordering::Relaxed);
        let unreadable = Err(Unreadable { address });
        let mut everywhere = false;
        if self.base.truth(address, into).is_none() {
            if !self.boundless {
                return unreadable;
            }
            everywhere = true;
        }
        let end = address.saturating_add(into.len() as u64);
        if self.holes > 0 {
            let pages = address >> 12..=end >> 12;
            if pages
                .take(512)
                .any(|p| mix(p ^ self.seed).is_multiple_of(self.holes))
            {
                return unreadable;
            }
        }
        let region = &self.base.parts[self.region];
        let within = region.0 < end && address < region.0 + region.1.len() as u64;
        let mut put = |at: u64, value: u64| {
            for (i, byte) in (0_u64..8).zip(value.to_le_bytes()) {
                let place = at.wrapping_add(i).checked_sub(address);
                if let Some(b) = place.and_then(|p| into.get_mut(usize::try_from(p).ok()?)) {
                    *b = byte;
                }
            }
        };
        let mut at = address & !7;
        if everywhere || self.rate > 0 && within {
            while at < end {
                let number = mix(at ^ self.seed);
                if everywhere || number.is_multiple_of(self.rate) {
                    put(at, self.lie(at, number >> 7, number >> 9));
                }
                let Some(next) = at.checked_add(8) else { break };
                at = next;
            }
        }
        let small = end - address < 8 * self.words.len() as u64;
        if small {
            for at in (address & !7..end).step_by(8) {
                if let Some(&value) = self.words.get(&at) {
                    put(at, value);
                }
            }
        } else {
            for (&at, &value) in &self.words {
                if at < end && at.saturating_add(8) > address {
                    put(at, value);
                }
            }
        }
        Ok(())
    }
}

/// Reads the heap and asks everything of it that can be asked.
pub fn read(base: &Base, liar: &Liar<'_>, threads: &[Thread]) -> Option<HeapGraph> {
    let mut regions = base.regions.clone();
    if liar.boundless {
        regions.push(Region {
            start: 1 << 44,
            end: (1 << 44) + (64 << 20),
            rwx: [true; 3],
            ..Region::default()
        });
    }
    let read = goheap::read(&Process {
        executable: &base.executable,
        memory: liar,
        regions: &regions,
        threads,
        pid: 1,
        start: 1,
        taken: Time(0),
        monotonic: Some(1 << 40),
        with_labels: true,
        max_memory: u64::MAX,
    });
    let (graph, _) = read.ok()?;
    assert_eq!(graph.check(), Ok(()));
    let readable: u64 = regions
        .iter()
        .filter(|r| r.rwx[0])
        .map(|r| r.end - r.start)
        .sum();
    let objects: u64 = (0..graph.object_count() as u32)
        .map(|n| graph.size(NodeId(n)))
        .sum();
    assert!(objects <= readable, "{objects} of {readable}");
    let roots = graph.roots.len() as u64;
    assert!(roots <= readable / 8, "{roots} roots");
    // A word is one edge of an object; finalizers and stacks may lead to the same again.
    assert!(
        (graph.edges.len() as u64) <= readable / 2,
        "{} edges",
        graph.edges.len()
    );
    ask(&graph);
    Some(graph)
}

/// Asks all questions of a graph.
pub fn ask(graph: &HeapGraph) {
    let dominators = Dominators::of(graph);
    let heap = Heap {
        graph,
        dominators: &dominators,
    };
    let objects = graph.object_count() as u64;
    assert!(dominators.reachable().len() <= graph.node_count());
    let _ = suspects(heap, None, SuspectOptions::default());
    let min = SuspectOptions {
        min_bytes: 1,
        map_room: 0,
        most: 3,
    };
    if graph.node_count() < 10_000 {
        let _ = suspects(heap, Some(heap), min);
    }
    let _ = (by_type(heap), by_stack(heap), top_groups(heap));
    let targets: Vec<NodeId> = (0..8)
        .map(|i| NodeId((mix(i) % objects.max(1)) as u32))
        .collect();
    for path in shortest_paths(graph, &targets).into_iter().flatten() {
        let _ = path.words(graph);
    }
    let _ = diff(heap, heap, 1 << 20);
    let _ = RetentionTree::of(
        heap,
        TreeLimits {
            depth: 6,
            width: 4,
            min_bytes: 0,
        },
    );
    let mut tracker = SurvivorTracker::default();
    tracker.add(heap);
    tracker.add(heap);
    let _ = tracker.report(
        heap,
        SurvivorOptions {
            cycles: 1,
            retainers: 1,
        },
    );
}
