//! What the memtrace SDK in a service tells at `/debug/memtrace/`, as JSON.

use std::collections::BTreeMap;

use memtrace_model::{Time, is_visible};
use serde::Deserialize;

/// Which tag a number on the stacks stands for (`memtrace.tags/1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagNames {
    key: String,
    other: String,
    names: BTreeMap<u16, String>,
}

#[derive(Deserialize)]
struct TagPage {
    schema: String,
    key: String,
    other: String,
    names: BTreeMap<u16, String>,
}

/// Longest name that is taken over, characters.
const LONGEST_NAME: usize = 128;
/// Maps, and keys of each, that are taken over.
const MOST_MAPS: usize = 256;
const MOST_KEYS: usize = 16;
/// Names of tracers that are taken over.
const MOST_TRACERS: usize = 16;

/// A short name of what shows as itself.
fn printable(text: &str) -> String {
    let shown = |c: char| if is_visible(c) { c } else { '?' };
    text.chars().take(LONGEST_NAME).map(shown).collect()
}

impl TagNames {
    /// Reads the page `tags`; `None` when it is something else.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let page: TagPage = serde_json::from_slice(json).ok()?;
        (page.schema == "memtrace.tags/1").then(|| {
            let names = page.names.iter();
            Self {
                key: printable(&page.key),
                other: printable(&page.other),
                names: names.map(|(&n, name)| (n, printable(name))).collect(),
            }
        })
    }

    /// The key of the label.
    #[must_use]
    pub fn key(&self) -> &str {
        match self.key.as_str() {
            "" => "tag",
            key => key,
        }
    }

    /// The tag of a number; the number itself where its name is not known.
    #[must_use]
    pub fn name(&self, number: u16) -> String {
        match self.names.get(&number) {
            Some(name) => name.clone(),
            None if number == 0 && !self.other.is_empty() => self.other.clone(),
            None => format!("#{number}"),
        }
    }
}

/// The newest garbage collections and gauges (`memtrace.events/1`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// Names of the tracers that run in the service; none: it keeps no collections.
    pub tracers: Vec<String>,
    /// Some of the collections asked for are no longer kept.
    pub missed: bool,
    /// By the clock that the other times are read from.
    pub now: Time,
    /// In the order of their numbers.
    pub collections: Vec<Collection>,
    /// The gauges, read when the page was asked for.
    pub stats: Stats,
}

/// One garbage collection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collection {
    /// Its number since the start of the process, from 1.
    pub number: u64,
    /// When it ended.
    pub end: Time,
    /// Sum of its pauses, nanoseconds.
    pub pause_ns: u64,
    /// Bytes that it found alive, where known.
    pub live: Option<u64>,
    /// Bytes of the heap before it reclaimed any, where known.
    pub before: Option<u64>,
    /// Heap size at which the next one should end, bytes, where known.
    pub goal: Option<u64>,
}

/// Gauges of the runtime; 0 where its version does not know one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Bytes that the last collection found alive.
    pub heap_live: u64,
    /// Bytes of all objects, dead ones included.
    pub heap_objects: u64,
    /// Bytes that the runtime holds from the system.
    pub go_memory: u64,
    /// Goroutines.
    pub goroutines: u64,
    /// Garbage collections since the start.
    pub gcs: u64,
    /// Finalizers that were queued and run since the start.
    pub finalizers: Backlog,
    /// The same for cleanups.
    pub cleanups: Backlog,
}

/// Finalizers or cleanups since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Backlog {
    /// Found to be due.
    pub queued: u64,
    /// Run to their end.
    pub executed: u64,
}

#[derive(Deserialize)]
struct EventPage {
    schema: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    missed: bool,
    #[serde(default)]
    now: i64,
    #[serde(default)]
    stats: Stats,
    #[serde(default)]
    gcs: Vec<CollectionJson>,
}

#[derive(Deserialize)]
struct CollectionJson {
    n: u64,
    end: i64,
    #[serde(default)]
    pause: u64,
    live: Option<u64>,
    before: Option<u64>,
    goal: Option<u64>,
}

impl Events {
    /// Reads the page `events`; `None` when it is something else. Collections out of
    /// order are left out.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let page: EventPage = serde_json::from_slice(json).ok()?;
        if page.schema != "memtrace.events/1" {
            return None;
        }
        let mut last = 0;
        let mut collections = Vec::with_capacity(page.gcs.len());
        for c in page.gcs {
            if c.n <= last {
                continue;
            }
            last = c.n;
            collections.push(Collection {
                number: c.n,
                end: Time(c.end / 1_000_000),
                pause_ns: c.pause,
                live: c.live,
                before: c.before,
                goal: c.goal,
            });
        }
        Some(Self {
            tracers: page
                .names
                .iter()
                .take(MOST_TRACERS)
                .map(|n| printable(n))
                .collect(),
            missed: page.missed,
            now: Time(page.now / 1_000_000),
            collections,
            stats: page.stats,
        })
    }
}

/// Some keys of a map that the service lets memtrace look at (`memtrace.keys/1`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MapKeys {
    /// The type or function that fills the map, as stacks name it.
    pub owner: String,
    /// How many keys it has.
    pub size: u64,
    /// Some of them.
    #[serde(default)]
    pub keys: Vec<String>,
}

#[derive(Deserialize)]
struct KeyPage {
    schema: String,
    #[serde(default)]
    maps: Vec<MapKeys>,
}

impl MapKeys {
    /// Reads the page `keys`; empty when it is something else.
    #[must_use]
    pub fn parse(json: &[u8]) -> Vec<Self> {
        let page = serde_json::from_slice::<KeyPage>(json);
        let maps = page
            .ok()
            .filter(|p| p.schema == "memtrace.keys/1")
            .map_or_else(Vec::new, |p| p.maps);
        let cut = |text: &str| text.chars().take(LONGEST_NAME).collect::<String>();
        let some = maps.iter().take(MOST_MAPS).map(|map| Self {
            owner: cut(&map.owner),
            size: map.size,
            keys: map.keys.iter().take(MOST_KEYS).map(|k| cut(k)).collect(),
        });
        some.collect()
    }

    /// Whether a function is the owner or one of its methods.
    #[must_use]
    pub fn owns(&self, function: &str) -> bool {
        let rest = function.strip_prefix(self.owner.as_str());
        !self.owner.is_empty() && rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_few_and_short() {
        let key = format!("\"{}\",", "k".repeat(10_000)).repeat(100);
        let map = format!("{{\"owner\":{key}\"size\":5,\"keys\":[{key}\"\"]}},");
        let owner = format!("\"{}\",", "o".repeat(10_000));
        let map = map.replacen(&key, &owner, 1).repeat(300);
        let page = format!(
            "{{\"schema\":\"memtrace.keys/1\",\"maps\":[{map}{{\"owner\":\"\",\"size\":0}}]}}"
        );
        let maps = MapKeys::parse(page.as_bytes());
        assert_eq!(maps.len(), MOST_MAPS);
        assert_eq!(
            (maps[0].owner.len(), maps[0].keys.len()),
            (LONGEST_NAME, MOST_KEYS)
        );
        assert_eq!(maps[0].keys[0].len(), LONGEST_NAME);
    }

    use super::*;

    #[test]
    fn names_of_tags() {
        let page = br#"{"schema":"memtrace.tags/1","key":"block","other":"rest","generation":7,"names":{"1":"a","4095":"b"}}"#;
        let names = TagNames::parse(page).unwrap();
        assert_eq!(names.key(), "block");
        let forged =
            br#"{"schema":"memtrace.tags/1","key":"","other":"","names":{"1":"a\nb\u202ec"}}"#;
        assert_eq!(TagNames::parse(forged).unwrap().name(1), "a?b?c");
        let all = [1, 4095, 0, 5].map(|n| names.name(n));
        assert_eq!(all, ["a", "b", "rest", "#5"]);
        assert_eq!(TagNames::default().name(0), "#0");
        for other in [
            &b"{}"[..],
            b"",
            b"[]",
            br#"{"schema":"memtrace.tags/2","key":"","other":"","names":{}}"#,
        ] {
            assert_eq!(TagNames::parse(other), None);
        }
    }

    #[test]
    fn collections_in_order() {
        let page = br#"{"schema":"memtrace.events/1","names":["nc\u001b[31m"],"pid":7,"now":1700000002000000000,"stats":{"heap_live":5,"finalizers":{"queued":9,"executed":4},"new":1},
            "gcs":[{"n":3,"end":1700000000123456789,"pause":40,"live":100,"before":180,"goal":200},{"n":4,"end":1700000001000000000,"pause":41},{"n":2,"end":0}]}"#;
        let events = Events::parse(page).unwrap();
        assert_eq!(events.tracers, ["nc?[31m"]);
        assert_eq!(events.now, Time(1_700_000_002_000));
        assert_eq!(
            events.stats.finalizers,
            Backlog {
                queued: 9,
                executed: 4
            }
        );
        let numbers: Vec<u64> = events.collections.iter().map(|c| c.number).collect();
        assert_eq!(numbers, [3, 4]);
        assert_eq!(events.collections[0].end, Time(1_700_000_000_123));
        assert_eq!(events.collections[0].live, Some(100));
        assert_eq!(events.collections[1].live, None);
        assert_eq!(Events::parse(b"<html>"), None);
    }

    #[test]
    fn keys_and_their_owner() {
        let page = br#"{"schema":"memtrace.keys/1","maps":[{"owner":"nc.(*Cache)","size":7,"keys":["a","b"]}]}"#;
        let maps = MapKeys::parse(page);
        assert_eq!((maps.len(), maps[0].size), (1, 7));
        for (function, want) in [
            ("nc.(*Cache).Lookup", true),
            ("nc.(*Cache)", true),
            ("nc.(*Caches).Lookup", false),
            ("other.(*Cache).Lookup", false),
        ] {
            assert_eq!(maps[0].owns(function), want, "{function}");
        }
        assert_eq!(MapKeys::parse(b"{}"), []);
    }
}
