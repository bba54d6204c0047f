use serde::{Deserialize, Serialize};

use crate::Time;

/// Values over time, in time order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// When each value was read; same length as `values`, never decreasing.
    pub times: Vec<Time>,
    /// The values, in the unit of the gauge.
    pub values: Vec<f64>,
}

impl Series {
    /// Appends a value. A time before the last one is moved to the last one: a
    /// clock set back must not reorder what was seen.
    pub fn push(&mut self, at: Time, value: f64) {
        let at = self.times.last().map_or(at, |&last| at.max(last));
        self.times.push(at);
        self.values.push(value);
    }

    /// The newest value with its time.
    #[must_use]
    pub fn last(&self) -> Option<(Time, f64)> {
        Some((*self.times.last()?, *self.values.last()?))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

macro_rules! gauges {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A number read from the process or its surroundings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Gauge { $($(#[$doc])* $variant,)* }

        impl Gauge {
            /// Every gauge, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in files and JSON.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gauge with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

gauges! {
    /// In-use bytes over all stacks of the heap profile (estimate from samples).
    HeapInuse = "heap_inuse",
    /// Number of goroutines.
    Goroutines = "goroutines",
    /// Resident set size of the process, bytes.
    Rss = "rss",
    /// Proportional set size, bytes.
    Pss = "pss",
    /// Swapped-out bytes of the process.
    Swap = "swap",
    /// Memory charged to the process's cgroup less its inactive file cache, bytes.
    CgroupUsage = "cgroup_usage",
    /// The tightest memory limit on the cgroup's path to the root, bytes.
    CgroupLimit = "cgroup_limit",
    /// The runtime's own soft limit (GOMEMLIMIT), bytes.
    RuntimeLimit = "runtime_limit",
    /// Memory of the host, bytes.
    HostTotal = "host_total",
    /// Memory the host can still give (MemAvailable), bytes.
    HostAvailable = "host_available",
    /// Threads of the process.
    Threads = "threads",
    /// Open file descriptors of the process.
    Fds = "fds",
    /// Bytes of live heap objects as the runtime counts them (HeapAlloc).
    HeapAlloc = "heap_alloc",
    /// Bytes the runtime got from the system (Sys).
    RuntimeSys = "runtime_sys",
    /// Completed GC cycles.
    GcCycles = "gc_cycles",
    /// Resident bytes of the Go runtime's own mappings, its heap above all.
    RssGo = "rss_go",
    /// Resident bytes of the break segment: the first arena of C's malloc.
    RssBrk = "rss_brk",
    /// Resident bytes of the further arenas of C's malloc.
    RssArenas = "rss_arenas",
    /// Resident bytes of all other anonymous mappings: large blocks of C's malloc, the
    /// program's own.
    RssAnon = "rss_anon",
    /// Bytes that a garbage collection found alive, exact (memtrace SDK).
    HeapLive = "heap_live",
    /// Finalizers and cleanups that are due and not yet run (memtrace SDK).
    FinalizersWaiting = "finalizers_waiting",
}

/// One reading of all gauges that could be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    values: Vec<(Gauge, f64)>,
}

impl Gauges {
    /// Sets or replaces a value.
    pub fn set(&mut self, gauge: Gauge, value: f64) {
        match self.values.iter_mut().find(|(g, _)| *g == gauge) {
            Some(slot) => slot.1 = value,
            None => self.values.push((gauge, value)),
        }
    }

    /// The value, where it was read.
    #[must_use]
    pub fn get(&self, gauge: Gauge) -> Option<f64> {
        self.values.iter().find(|(g, _)| *g == gauge).map(|v| v.1)
    }

    /// All values that were read.
    pub fn iter(&self) -> impl Iterator<Item = (Gauge, f64)> + '_ {
        self.values.iter().copied()
    }

    /// Takes over every value of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (gauge, value) in other.iter() {
            self.set(gauge, value);
        }
    }
}
