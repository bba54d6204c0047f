//! Which findings are open, and what of a new assessment is news.

use memtrace_model::{Finding, Status, Tier, Time};

/// A finding is resolved when it was not seen for this many assessments: one
/// quiet point is chance.
const QUIET: u32 = 4;

/// The open findings of one target.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    leaking: usize,
}

#[derive(Debug)]
struct Entry {
    finding: Finding,
    quiet: u32,
}

impl Ledger {
    /// Takes in the findings of the newest assessment and returns what is news:
    /// new ones, changes of tier or pattern, and resolved ones.
    pub(crate) fn update(&mut self, seen: Vec<Finding>, now: Time) -> Vec<Finding> {
        let mut news = Vec::new();
        for entry in &mut self.entries {
            entry.quiet += 1;
        }
        for finding in seen {
            // The same culprit; else one that called it or was called: a verdict
            // sharpens as more of its stacks show.
            let known = self.position(|e| same(&e.finding, &finding));
            let known =
                known.or_else(|| self.position(|e| e.quiet > 0 && sharpened(&e.finding, &finding)));
            match known.map(|i| &mut self.entries[i]) {
                Some(entry) => {
                    let changed = entry.finding.tier != finding.tier
                        || entry.finding.pattern != finding.pattern
                        || entry.finding.culprit != finding.culprit;
                    self.leaking += usize::from(
                        finding.tier == Tier::Leaking && entry.finding.tier != Tier::Leaking,
                    );
                    entry.quiet = 0;
                    entry.finding = finding;
                    if changed {
                        news.push(entry.finding.clone());
                    }
                }
                None => {
                    self.leaking += usize::from(finding.tier == Tier::Leaking);
                    news.push(finding.clone());
                    self.entries.push(Entry { finding, quiet: 0 });
                }
            }
        }
        self.entries.retain_mut(|entry| {
            let open = entry.quiet < QUIET;
            if !open {
                entry.finding.status = Status::Resolved;
                entry.finding.at = now;
                news.push(entry.finding.clone());
            }
            open
        });
        news
    }

    fn position(&self, is: impl Fn(&Entry) -> bool) -> Option<usize> {
        self.entries.iter().position(is)
    }

    /// The open findings with their newest numbers, rank 1 first.
    pub(crate) fn open(&self) -> Vec<Finding> {
        let mut open: Vec<Finding> = self.entries.iter().map(|e| e.finding.clone()).collect();
        open.sort_by_key(|f| f.rank);
        open
    }

    /// The worst tier of the open findings.
    pub(crate) fn worst(&self) -> Option<Tier> {
        self.entries.iter().map(|e| e.finding.tier).max()
    }

    /// How many findings were ever called leaking.
    pub(crate) fn leaking(&self) -> usize {
        self.leaking
    }

    /// The service began anew: what was open belonged to the process that is gone.
    pub(crate) fn restart(&mut self) {
        self.entries.clear();
    }
}

/// Whether two findings speak of the same cause: the same culprit seen by the same means.
fn same(a: &Finding, b: &Finding) -> bool {
    a.source == b.source && culprit(a) == culprit(b)
}

/// Whether one of two culprits called the other.
fn sharpened(a: &Finding, b: &Finding) -> bool {
    let passes = |f: &Finding, function: Option<&str>| {
        f.stack
            .iter()
            .any(|g| Some(g.function.as_str()) == function)
    };
    a.source == b.source && (passes(a, culprit(b)) || passes(b, culprit(a)))
}

fn culprit(f: &Finding) -> Option<&str> {
    let frame = f.culprit.as_ref().or(f.stack.first());
    frame.map(|c| c.function.as_str())
}

#[cfg(test)]
mod tests {
    use memtrace_model::{FINDING_SCHEMA, Frame, Pattern, SampleKind};

    use super::*;

    fn finding(function: &str, tier: Tier) -> Finding {
        let frame = Frame {
            function: function.into(),
            ..Frame::default()
        };
        Finding {
            schema: FINDING_SCHEMA.into(),
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

    #[test]
    fn only_news_is_told() {
        let mut ledger = Ledger::default();
        let growing = || vec![finding("a.f", Tier::Growing)];
        assert_eq!(ledger.update(growing(), Time(1)).len(), 1);
        assert!(ledger.update(growing(), Time(2)).is_empty());
        let news = ledger.update(vec![finding("a.f", Tier::Leaking)], Time(3));
        assert_eq!(
            (news.len(), news[0].tier, ledger.leaking()),
            (1, Tier::Leaking, 1)
        );

        for at in 0..i64::from(QUIET) - 1 {
            assert!(ledger.update(vec![], Time(4 + at)).is_empty());
        }
        let news = ledger.update(vec![], Time(9));
        assert_eq!((news[0].status, news[0].at), (Status::Resolved, Time(9)));
        assert!(ledger.open().is_empty() && ledger.worst().is_none());
    }
}
