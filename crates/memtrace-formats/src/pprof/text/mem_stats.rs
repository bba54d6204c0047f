/// Go's `runtime.MemStats` as `heap?debug=1` prints them below the profile.
///
/// Bytes, counts and nanoseconds as Go names them. A value that is not there is 0.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct MemStats {
    /// Bytes of live and not yet swept objects.
    pub heap_alloc: u64,
    /// Bytes ever allocated for objects.
    pub total_alloc: u64,
    /// Bytes obtained from the system for everything.
    pub sys: u64,
    /// Objects ever allocated.
    pub mallocs: u64,
    /// Objects ever freed.
    pub frees: u64,
    /// Bytes of the heap obtained from the system.
    pub heap_sys: u64,
    /// Bytes in spans without objects.
    pub heap_idle: u64,
    /// Bytes in spans with objects.
    pub heap_inuse: u64,
    /// Bytes given back to the system.
    pub heap_released: u64,
    /// Live objects.
    pub heap_objects: u64,
    /// Bytes in stacks of goroutines.
    pub stack_inuse: u64,
    /// Bytes obtained from the system for stacks.
    pub stack_sys: u64,
    /// Bytes of metadata of the garbage collector.
    pub gc_sys: u64,
    /// Bytes of other off-heap structures.
    pub other_sys: u64,
    /// Heap size that starts the next collection.
    pub next_gc: u64,
    /// End of the last collection, nanoseconds since the Unix epoch; 0 before the first.
    pub last_gc: u64,
    /// Collections so far.
    pub num_gc: u32,
    /// Of these, those that the program asked for.
    pub num_forced_gc: u32,
    /// Pauses that Go still remembers (the last 256), added up, nanoseconds.
    pub pause_total: u64,
    /// The longest of them, nanoseconds.
    pub pause_max: u64,
    /// Share of the CPU that collections used since the start, 0 to 1.
    pub gc_cpu_fraction: f64,
    /// Greatest resident set so far, bytes, where the system tells it.
    pub max_rss: u64,
    /// End of the last collection but one, nanoseconds since the Unix epoch; 0 before
    /// the second. A heap profile counts what was allocated until then, or, where the
    /// program itself asked for the last collection, until that (`runtime/mprof.go`).
    pub last_gc_but_one: u64,
}

/// Reads lines like `# HeapAlloc = 4096`.
pub(super) fn read<'a>(lines: impl Iterator<Item = &'a str>) -> MemStats {
    let mut stats = MemStats::default();
    let mut ends: Vec<u64> = Vec::new();
    for line in lines {
        let Some((name, value)) = line
            .trim()
            .strip_prefix('#')
            .and_then(|l| l.split_once('='))
        else {
            continue;
        };
        let value = value.trim();
        let number = || value.parse::<u64>().unwrap_or(0);
        match name.trim() {
            "HeapAlloc" => stats.heap_alloc = number(),
            "TotalAlloc" => stats.total_alloc = number(),
            "Sys" => stats.sys = number(),
            "Mallocs" => stats.mallocs = number(),
            "Frees" => stats.frees = number(),
            "HeapSys" => stats.heap_sys = number(),
            "HeapIdle" => stats.heap_idle = number(),
            "HeapInuse" => stats.heap_inuse = number(),
            "HeapReleased" => stats.heap_released = number(),
            "HeapObjects" => stats.heap_objects = number(),
            "Stack" => {
                let mut both = value.split('/').map(|n| n.trim().parse().unwrap_or(0));
                stats.stack_inuse = both.next().unwrap_or(0);
                stats.stack_sys = both.next().unwrap_or(0);
            }
            "GCSys" => stats.gc_sys = number(),
            "OtherSys" => stats.other_sys = number(),
            "NextGC" => stats.next_gc = number(),
            "LastGC" => stats.last_gc = number(),
            "NumGC" => stats.num_gc = value.parse().unwrap_or(0),
            "NumForcedGC" => stats.num_forced_gc = value.parse().unwrap_or(0),
            "PauseNs" => {
                for pause in value.trim_matches(['[', ']']).split_ascii_whitespace() {
                    let pause = pause.parse().unwrap_or(0);
                    stats.pause_total = stats.pause_total.saturating_add(pause);
                    stats.pause_max = stats.pause_max.max(pause);
                }
            }
            // A ring: the collection with number n is at n − 1, modulo its length.
            "PauseEnd" => {
                let numbers = value.trim_matches(['[', ']']).split_ascii_whitespace();
                ends = numbers.map(|n| n.parse().unwrap_or(0)).collect();
            }
            "GCCPUFraction" => stats.gc_cpu_fraction = value.parse().unwrap_or(0.0),
            "MaxRSS" => stats.max_rss = number(),
            _ => {}
        }
    }
    if let Some(before) = (stats.num_gc as usize).checked_sub(2)
        && !ends.is_empty()
    {
        stats.last_gc_but_one = ends[before % ends.len()];
    }
    stats
}
