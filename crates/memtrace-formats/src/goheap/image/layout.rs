//! Which of the runtime's types are of interest, and the table of their layouts for
//! programs without debug information.

use std::collections::BTreeMap;

use super::{Layout, Version};
use crate::Error;

/// `cargo xtask layouts` writes it. One row for each fact: what it is (`o` offset, `s`
/// size, `c` constant), its name, and its value in each minor release (`1.26`) or with an
/// experiment of it (`1.26:nogreenteagc`), `-` where that has none.
const TABLE: &str = include_str!("../layouts.tsv");

/// Types of the package runtime.
const RUNTIME: &[&str] = &[
    "_defer",
    "_panic",
    "addrRange",
    "addrRanges",
    "allocBits",
    "bitvector",
    "bmap",
    "bucket",
    "buckhashArray",
    "cleanupBlock",
    "cleanupBlockHeader",
    "cleanupQueue",
    "consistentHeapStats",
    "eface",
    "finalizer",
    "finBlock",
    "finblock",
    "finblockHeader",
    "finBlockHeader",
    "funcval",
    "functab",
    "_func",
    "g",
    "gcBits",
    "gcControllerState",
    "gobuf",
    "hchan",
    "heapArena",
    "heapStatsDelta",
    "hmap",
    "iface",
    "itabTableType",
    "m",
    "mProfStackHolder",
    "mapextra",
    "mcache",
    "mcentral",
    "memRecord",
    "memRecordCycle",
    "mheap",
    "moduledata",
    "mspan",
    "mSpanList",
    "mstats",
    "mutex",
    "notifyList",
    "p",
    "pcHeader",
    "semTable",
    "semaRoot",
    "schedt",
    "slice",
    "spanInlineMarkBits",
    "spanScanOwnership",
    "spanQueue",
    "spanSet",
    "stack",
    "stackObjectRecord",
    "stackScanState",
    "stringStruct",
    "sudog",
    "synctestBubble",
    "synctestGroup",
    "sysMemStat",
    "textsect",
    "timer",
    "timeTimer",
    "timers",
    "waitq",
    "workType",
];

/// Types of other packages, with these.
const OTHERS: &[&str] = &[
    "internal/sync.Mutex",
    "internal/sync.HashTrieMap[interface {},interface {}]",
    "sync.Cond",
    "sync.Mutex",
    "sync.Once",
    "sync.Pool",
    "sync.RWMutex",
    "sync.WaitGroup",
    "sync.dequeueNil",
    "sync.eface",
    "sync.notifyList",
    "sync.poolChain",
    "sync.poolChainElt",
    "sync.poolDequeue",
    "sync.poolLocal",
    "sync.poolLocalInternal",
    "runtime/pprof.LabelSet",
    "runtime/pprof.label",
    "runtime/pprof.labelMap",
    "time.Timer",
    "time.Ticker",
    "unique.indirect",
];

/// Packages of which all types are of interest.
const PACKAGES: &[&str] = &[
    "internal/abi.",
    "internal/runtime/maps.",
    "internal/runtime/gc.",
];

/// The key of a type in a [`Layout`], if it is of interest.
pub(super) fn key_of_wanted(name: &str) -> Option<&str> {
    if let Some(own) = name.strip_prefix("runtime.") {
        let special = own.starts_with("special") && !own.contains('[');
        return (special || RUNTIME.contains(&own)).then_some(own);
    }
    let wanted = OTHERS.contains(&name) || PACKAGES.iter().any(|p| name.starts_with(p));
    (wanted && !name.contains("struct {") && !name.starts_with("internal/abi.FuncPC"))
        .then_some(name)
}

/// Whether a constant with this name, that of its package included, is of interest.
pub(super) fn is_wanted_constant(name: &str) -> bool {
    const STARTS: &[&str] = &[
        "_G",
        "_KindSpecial",
        "_P",
        "_Page",
        "_NumSizeClasses",
        "_FinBlockSize",
        "arena",
        "buckHash",
        "blockProfile",
        "emptyOne",
        "emptyRest",
        "evacuated",
        "finStarted",
        "gcBits",
        "goarch",
        "heapAddrBits",
        "heapArena",
        "heapBits",
        "logHeapArenaBytes",
        "logMaxPackedValue",
        "mSpan",
        "mallocHeaderSize",
        "maxSmallSize",
        "maxTinySize",
        "memProfile",
        "minHeapForMetadataHugePages",
        "minSizeForMallocHeader",
        "mutexProfile",
        "numSpanClasses",
        "pageAlloc",
        "pageShift",
        "pageSize",
        "pagesPerArena",
        "profile",
        "semTabSize",
        "smallScanSize",
        "span",
        "sweepMin",
        "timer",
        "tinySpanClass",
        "tinySizeClass",
        "traceWaitReason",
        "waitReason",
    ];
    if let Some(own) = name.strip_prefix("runtime.") {
        return STARTS.iter().any(|s| own.starts_with(s));
    }
    PACKAGES.iter().any(|p| name.starts_with(p)) || name.starts_with("sync.")
}

/// The layout of a release, and which release it truly is of where the table does not
/// have it: then the newest.
pub(super) fn of_version(version: &Version) -> Result<(Layout, Option<u32>), Error> {
    of_table(TABLE, version)
}

pub(super) fn of_table(table: &str, version: &Version) -> Result<(Layout, Option<u32>), Error> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    // `1.26`, `1.26:nogreenteagc`: a release, and what of it an experiment changes.
    let columns: Vec<(u32, &str)> = header
        .split('\t')
        .skip(2)
        .filter_map(|column| {
            let (release, experiment) = column.split_once(':').unwrap_or((column, ""));
            Some((release.strip_prefix("1.")?.parse().ok()?, experiment))
        })
        .collect();
    let newest = columns.iter().map(|(minor, _)| *minor).max().unwrap_or(0);
    let minor = version.minor.min(newest);
    let column = |experiment: &str| columns.iter().position(|c| *c == (minor, experiment));
    let experimental = version.experiments().find_map(column);
    let Some(at) = experimental.or_else(|| column("")) else {
        return Err(Error::UnsupportedGo {
            what: format!(
                "a stripped Go program built by {}: the layout of that runtime is not known",
                version.text
            ),
        });
    };
    let mut layout = Layout::default();
    for line in lines {
        let mut cells = line.split('\t');
        let (Some(what), Some(name)) = (cells.next(), cells.next()) else {
            continue;
        };
        let Some(value) = cells.nth(at).and_then(|v| v.parse().ok()) else {
            continue;
        };
        let facts = match what {
            "o" => &mut layout.offsets,
            "s" => &mut layout.sizes,
            _ => &mut layout.constants,
        };
        facts.insert(name.to_owned(), value);
    }
    Ok((layout, (minor != version.minor).then_some(minor)))
}

/// The table for these releases: version and layout of each.
pub(super) fn to_table(releases: &[(Version, Layout)]) -> String {
    let mut rows: BTreeMap<(&str, &str), Vec<Option<u64>>> = BTreeMap::new();
    let mut text = "kind\tname".to_owned();
    for (i, (version, layout)) in releases.iter().enumerate() {
        text.push_str(&format!("\t1.{}", version.minor));
        // One at a time changes a layout.
        for experiment in version.experiments().take(1) {
            text.push_str(&format!(":{experiment}"));
        }
        let facts = [
            ("o", &layout.offsets),
            ("s", &layout.sizes),
            ("c", &layout.constants),
        ];
        for (what, values) in facts {
            for (name, value) in values {
                let row = rows.entry((what, name)).or_default();
                row.resize(releases.len(), None);
                row[i] = Some(*value);
            }
        }
    }
    text.push('\n');
    for ((what, name), values) in rows {
        text.push_str(&format!("{what}\t{name}"));
        for value in values {
            match value {
                Some(value) => text.push_str(&format!("\t{value}")),
                None => text.push_str("\t-"),
            }
        }
        text.push('\n');
    }
    text
}
