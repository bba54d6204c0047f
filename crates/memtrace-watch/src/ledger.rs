//! Which findings are open, and what of a new assessment is news.

use std::time::Duration;

use memtrace_analysis::leaks;
use memtrace_model::{Finding, Frame, Pattern, SampleKind, Status, Tier, Time};

/// The open findings of one target. A finding stays open, and leaking, until it was
/// not confirmed for a while: a profile shows the last garbage collection, so single
/// points stand still or jump.
#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    leaking: usize,
    /// How many findings were told of so far.
    told: u64,
    /// What is not confirmed for so long has ended, seconds.
    quiet: f64,
    updated: Option<Time>,
}

#[derive(Debug)]
struct Entry {
    finding: Finding,
    seen: Time,
    /// Updates since, which did not confirm it.
    missed: u32,
    /// When it was last called leaking.
    leaking: Option<Time>,
    /// When its pattern was last recognised.
    recognised: Time,
    /// There are too many.
    beyond: bool,
}

/// Seconds without confirmation that say nothing: profiles tell of garbage collections, which
/// may be as far apart.
const LEAST_QUIET: f64 = 30.0;

/// Where updates come more slowly than that: so many between two confirmations say nothing.
const QUIET_UPDATES: f64 = 2.5;

/// Open findings, and bytes of what they say: more than anybody reads. Where more are seen, those
/// end that were confirmed least lately.
const MOST_OPEN: usize = 64;
const MOST_BYTES: usize = 4 << 20;

/// Updates without confirmation that end a finding, at least.
const LEAST_MISSED: u32 = 3;

impl Ledger {
    /// A ledger for a service that settles within `settle`.
    pub(crate) fn new(settle: Duration) -> Self {
        Self {
            entries: Vec::new(),
            leaking: 0,
            told: 0,
            quiet: (settle.as_secs_f64() / 2.0).max(LEAST_QUIET),
            updated: None,
        }
    }

    /// Takes in the findings of the newest assessment and returns what is news:
    /// new ones, changes of tier, pattern or culprit, and resolved ones.
    pub(crate) fn update(&mut self, seen: Vec<Finding>, now: Time) -> Vec<Finding> {
        let mut news = Vec::new();
        let gap = self.updated.replace(now).map_or(0.0, |t| now.since(t));
        let quiet = self.quiet.max(QUIET_UPDATES * gap);
        for (mut finding, entry) in self.matched(seen) {
            let leaks_now = finding.tier == Tier::Leaking;
            let Some(entry) = entry else {
                self.leaking += usize::from(leaks_now);
                self.told += 1;
                finding.id = format!("{}#{}", finding.target, self.told);
                news.push(finding.clone());
                self.entries.push(Entry {
                    finding,
                    seen: now,
                    missed: 0,
                    leaking: leaks_now.then_some(now),
                    recognised: now,
                    beyond: false,
                });
                continue;
            };
            let entry = &mut self.entries[entry];
            finding.id.clone_from(&entry.finding.id);
            (entry.seen, entry.missed) = (now, 0);
            if leaks_now {
                entry.leaking = Some(now);
            }
            let recent = |t: Time| now.since(t) < quiet;
            let old = entry.finding.clone();
            let fainter = !leaks_now && entry.leaking.is_some_and(recent);
            if fainter || (weaker(&finding, &old) && recent(entry.recognised)) {
                refresh(&mut entry.finding, finding);
            } else {
                entry.recognised = now;
                keep_sharper_onset(&mut finding, &old);
                entry.finding = finding;
            }
            if leaks_now {
                entry.finding.tier = Tier::Leaking;
            }
            let new = &entry.finding;
            self.leaking += usize::from(new.tier == Tier::Leaking && old.tier != Tier::Leaking);
            if (old.tier, old.pattern, culprit(&old)) != (new.tier, new.pattern, culprit(new)) {
                news.push(new.clone());
            }
        }
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|&i| {
            let entry = &self.entries[i];
            std::cmp::Reverse((entry.seen, entry.finding.live_bytes))
        });
        let (mut count, mut bytes) = (0, 0);
        for i in order {
            count += 1;
            bytes += size(&self.entries[i].finding);
            self.entries[i].beyond = count > MOST_OPEN || bytes > MOST_BYTES;
        }
        self.entries.retain_mut(|entry| {
            entry.missed += u32::from(entry.seen != now);
            let open = now.since(entry.seen) < quiet || entry.missed < LEAST_MISSED;
            let open = open && !entry.beyond;
            if !open {
                entry.finding.status = Status::Resolved;
                entry.finding.at = now;
                news.push(entry.finding.clone());
            }
            open
        });
        news
    }

    /// Which entry each finding continues: the one of the same culprit; else one left
    /// over that speaks of the same cause more or less sharply.
    fn matched(&self, seen: Vec<Finding>) -> Vec<(Finding, Option<usize>)> {
        let mut free: Vec<usize> = (0..self.entries.len()).collect();
        let mut take = |finding: &Finding, is: fn(&Finding, &Finding) -> bool| {
            let at = free
                .iter()
                .position(|&i| is(&self.entries[i].finding, finding))?;
            Some(free.swap_remove(at))
        };
        let mut found: Vec<(Finding, Option<usize>)> = seen
            .into_iter()
            .map(|finding| {
                let entry = take(&finding, same);
                (finding, entry)
            })
            .collect();
        for (finding, entry) in &mut found {
            if entry.is_none() {
                *entry = take(finding, related);
            }
        }
        found
    }

    /// The open findings with their newest numbers, rank 1 first.
    pub(crate) fn open(&self) -> Vec<Finding> {
        let mut open: Vec<Finding> = self.entries.iter().map(|e| e.finding.clone()).collect();
        leaks::rank(&mut open);
        open
    }

    /// How many findings were ever called leaking.
    pub(crate) fn leaking(&self) -> usize {
        self.leaking
    }

    /// The service began anew: what was open belonged to the process that is gone.
    /// Returns it as resolved.
    pub(crate) fn restart(&mut self, now: Time) -> Vec<Finding> {
        let close = |entry: Entry| Finding {
            status: Status::Resolved,
            at: now,
            ..entry.finding
        };
        self.entries.drain(..).map(close).collect()
    }
}

/// Bytes of what a finding says, most of them.
fn size(finding: &Finding) -> usize {
    let frames = finding
        .stack
        .iter()
        .map(|f| f.function.len() + f.file.len());
    let evidence = finding.evidence.iter().map(String::len);
    let tags = finding
        .tags
        .iter()
        .map(|(key, value)| key.len() + value.len());
    frames
        .chain(evidence)
        .chain(tags)
        .map(|bytes| bytes + 64)
        .sum()
}

/// Whether two findings speak of the same cause: the same culprit seen by the same
/// means. A process grows outside its heap once.
fn same(a: &Finding, b: &Finding) -> bool {
    a.source == b.source && (a.source == SampleKind::Process || culprit(a) == culprit(b))
}

/// Whether two findings may speak of one cause, one of them more sharply: one culprit
/// called the other; or what a function allocates is held by goroutines that it is
/// part of.
fn related(a: &Finding, b: &Finding) -> bool {
    let passes = |f: &Finding, function: Option<&str>| {
        f.stack
            .iter()
            .any(|g| Some(g.function.as_str()) == function)
    };
    match (a.source, b.source) {
        (SampleKind::Goroutine, SampleKind::Heap) => {
            let shared =
                |f: &Frame| leaks::is_own_code(&f.function) && passes(b, Some(&f.function));
            leaks::makes_goroutines(&b.stack) || a.stack.iter().any(shared)
        }
        (SampleKind::Heap, SampleKind::Goroutine) => related(b, a),
        _ => a.source == b.source && (passes(a, culprit(b)) || passes(b, culprit(a))),
    }
}

/// Of two looks at one onset the sharper counts: later ones see it from further away.
/// What began once does not begin again: a step of the heap is no new onset.
fn keep_sharper_onset(new: &mut Finding, old: &Finding) {
    let width = |f: &Finding| f.onset_interval.map_or(f64::INFINITY, |[a, b]| b.since(a));
    let later = |[_, end]: [Time; 2]| new.onset.is_none_or(|t| t > end);
    if width(old) < width(new) || old.onset_interval.is_some_and(later) {
        new.onset = old.onset;
        new.onset_interval = old.onset_interval;
        new.before_onset.clone_from(&old.before_onset);
    }
}

/// Brings the numbers of a finding up to date where the newest look says less.
fn refresh(finding: &mut Finding, new: Finding) {
    *finding = Finding {
        at: new.at,
        rate_bytes_per_min: new.rate_bytes_per_min,
        rate_interval: new.rate_interval,
        rate_objects_per_min: new.rate_objects_per_min,
        live_bytes: new.live_bytes,
        live_objects: new.live_objects,
        explains: new.explains,
        oom_at: new.oom_at,
        oom_interval: new.oom_interval,
        bound: new.bound,
        points: new.points,
        ..finding.clone()
    };
}

/// Whether `new` recognises less than `old` did.
fn weaker(new: &Finding, old: &Finding) -> bool {
    // Which goroutines pile up was known already.
    if old.source == SampleKind::Goroutine && leaks::makes_goroutines(&new.stack) {
        return true;
    }
    let sharpness = |f: &Finding| match f.pattern {
        Pattern::Growth => 0,
        // Whose container or memory it is is told by less than the whole evidence.
        Pattern::MapBloat | Pattern::SliceGrowth | Pattern::NativeGrowth => 1,
        _ => 2,
    };
    sharpness(new) < sharpness(old)
}

fn culprit(f: &Finding) -> Option<&str> {
    let frame = f.culprit.as_ref().or(f.stack.first());
    frame.map(|c| c.function.as_str())
}

#[cfg(test)]
mod tests {
    use memtrace_model::FINDING_SCHEMA;

    use super::*;

    fn finding(function: &str, tier: Tier) -> Finding {
        let frame = Frame {
            function: function.into(),
            ..Frame::default()
        };
        Finding {
            schema: FINDING_SCHEMA.into(),
            id: String::new(),
            at: Time(0),
            pattern: Pattern::Growth,
            tier,
            status: Status::Open,
            rank: 1,
            confidence: 0.99,
            target: "t".into(),
            source: SampleKind::Heap,
            stack: vec![frame.clone()],
            culprit: Some(frame),
            type_name: None,
            retained_bytes: None,
            retained_by: vec![],
            tags: Default::default(),
            onset: None,
            onset_interval: None,
            rate_bytes_per_min: 1.0,
            rate_interval: [0.0, 2.0],
            rate_objects_per_min: 1.0,
            live_bytes: 1,
            live_objects: 1,
            explains: 1.0,
            oom_at: None,
            oom_interval: None,
            bound: None,
            before_onset: vec![],
            points: vec![],
            evidence: vec![],
            advice: String::new(),
        }
    }

    fn at(seconds: i64) -> Time {
        Time(seconds * 1000)
    }

    #[test]
    fn only_news_is_told() {
        let mut ledger = Ledger::new(Duration::from_secs(60));
        let growing = || vec![finding("a.f", Tier::Growing)];
        assert_eq!(ledger.update(growing(), at(1)).len(), 1);
        assert!(ledger.update(growing(), at(2)).is_empty());
        let news = ledger.update(vec![finding("a.f", Tier::Leaking)], at(3));
        assert_eq!(
            (news.len(), news[0].tier, ledger.leaking()),
            (1, Tier::Leaking, 1)
        );
        // One weaker point takes nothing back, half a minute of them does.
        for second in 4..33 {
            assert!(ledger.update(growing(), at(second)).is_empty(), "{second}");
            assert_eq!(ledger.open()[0].tier, Tier::Leaking);
        }
        assert_eq!(ledger.update(growing(), at(33))[0].tier, Tier::Growing);

        for second in 34..63 {
            assert!(ledger.update(vec![], at(second)).is_empty(), "{second}");
        }
        let news = ledger.update(vec![], at(63));
        assert_eq!((news[0].status, news[0].at), (Status::Resolved, at(63)));
        assert!(ledger.open().is_empty());
    }

    /// Copies of a large heap come minutes apart: one of them ends nothing.
    #[test]
    fn one_of_few_updates_ends_nothing() {
        let mut ledger = Ledger::new(Duration::from_secs(60));
        for minutes in [0, 5, 10] {
            ledger.update(vec![finding("a.f", Tier::Leaking)], at(60 * minutes));
        }
        let mut missed = |minutes: i64| ledger.update(vec![], at(60 * minutes)).len();
        assert_eq!([missed(15), missed(20), missed(25)], [0, 0, 1]);

        // Nor do two that come after a hole.
        ledger.update(vec![finding("a.f", Tier::Leaking)], at(2000));
        let mut missed = |seconds: i64| ledger.update(vec![], at(seconds)).len();
        assert_eq!([missed(2300), missed(2305), missed(2310)], [0, 0, 1]);
    }

    /// A service that shows new stacks all the time.
    #[test]
    fn findings_are_bounded() {
        let mut ledger = Ledger::new(Duration::from_secs(60));
        let long = "n".repeat(1000);
        let mut told = Vec::new();
        for second in 0..100 {
            let named = |i| finding(&format!("{second}.{i}.{long}"), Tier::Growing);
            told.extend(ledger.update((0..19).map(named).collect(), at(second)));
            assert!(ledger.open().len() <= MOST_OPEN);
        }
        let resolved = told.iter().filter(|f| f.status == Status::Resolved);
        assert_eq!(told.len() - resolved.count(), 1900);
        assert!(
            ledger
                .open()
                .iter()
                .any(|f| f.stack[0].function.starts_with("99.18."))
        );

        let mut large = finding("a.f", Tier::Leaking);
        large.evidence = vec![long; 3000];
        for i in 0..5 {
            large.culprit = None;
            large.stack[0].function = format!("a.f{i}");
            ledger.update(vec![large.clone()], at(200 + i));
        }
        let bytes: usize = ledger.open().iter().map(size).sum();
        assert!(bytes <= MOST_BYTES && ledger.open()[0].stack[0].function == "a.f4");
    }

    #[test]
    fn goroutines_that_were_named_stay_named() {
        let goroutines = Finding {
            source: SampleKind::Goroutine,
            pattern: Pattern::GoroutineLeak,
            ..finding("a.ask", Tier::Leaking)
        };
        let descriptors = Finding {
            pattern: Pattern::GoroutineLeak,
            ..finding("runtime.malg", Tier::Leaking)
        };
        let mut ledger = Ledger::new(Duration::from_secs(60));
        ledger.update(vec![descriptors.clone()], at(1));
        let news = ledger.update(vec![goroutines], at(2));
        assert_eq!((news.len(), &*news[0].id), (1, "t#1"));
        assert!(ledger.update(vec![descriptors], at(3)).is_empty());
        assert_eq!(ledger.open()[0].source, SampleKind::Goroutine);
    }

    #[test]
    fn a_sharper_verdict_takes_the_place_of_the_first() {
        let mut ledger = Ledger::new(Duration::from_secs(60));
        ledger.update(vec![finding("a.new", Tier::Growing)], at(1));
        let mut lookup = finding("a.lookup", Tier::Growing);
        lookup
            .stack
            .insert(0, finding("a.new", Tier::Growing).stack[0].clone());
        assert_eq!(ledger.update(vec![lookup.clone()], at(2)).len(), 1);
        assert_eq!(ledger.open().len(), 1);
        // A blurred look takes nothing back.
        let mut map = lookup.clone();
        map.pattern = Pattern::MapBloat;
        ledger.update(vec![map], at(3));
        for second in 4..33 {
            assert!(ledger.update(vec![lookup.clone()], at(second)).is_empty());
            assert_eq!(ledger.open()[0].pattern, Pattern::MapBloat);
        }
        assert_eq!(ledger.update(vec![lookup.clone()], at(33)).len(), 1);
        // Two at once are two.
        let news = ledger.update(vec![lookup, finding("a.new", Tier::Growing)], at(34));
        assert_eq!((news.len(), ledger.open().len()), (1, 2));
    }
}
