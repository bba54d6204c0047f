//! From growing stacks to findings: what belongs together, which known cause it
//! fits, in which order a person should look.
//!
//! One file per pattern; [`DETECTORS`] is the list, the specific before the
//! general: the first that recognises a site names it.

mod code;
mod finalizer_backlog;
mod goroutine_leak;
mod growth;
mod holding;
mod listener_retention;
mod map_bloat;
mod native_growth;
mod pool_misuse;
mod slice_growth;
pub(crate) mod symbols;
mod tags;
#[cfg(test)]
pub(crate) mod tests;

use memtrace_model::{FINDING_SCHEMA, Finding, Frame, Pattern, SampleKind, Status, Tier, Time};

use crate::series::{Assessment, Exhaustion, History, StackGrowth};

pub use code::Code;
pub use goroutine_leak::makes_goroutines;
pub use holding::from_ways;
pub(crate) use holding::of_container;
pub(crate) use symbols::culprit;

/// Names the cause of a site, where it recognises it.
type Detector = fn(&Site<'_>) -> Option<Cause>;

/// All patterns, the specific before the general.
const DETECTORS: &[Detector] = &[
    goroutine_leak::detect,
    finalizer_backlog::detect,
    native_growth::detect,
    pool_misuse::detect,
    listener_retention::detect,
    map_bloat::detect,
    slice_growth::detect,
    map_bloat::detect_kept,
    growth::detect,
];

/// What a detector recognised.
struct Cause {
    pattern: Pattern,
    evidence: Vec<String>,
    advice: String,
    /// The stack that shows it, where that is not the site's main one.
    stack: Option<Vec<Frame>>,
}

/// Stacks that grow together for one reason.
struct Site<'a> {
    history: &'a History,
    kind: SampleKind,
    members: Vec<Member<'a>>,
    objects_per_min: f64,
    bytes_per_min: f64,
    live_objects: u64,
    live_bytes: u64,
}

#[derive(Clone, Copy)]
struct Member<'a> {
    growth: &'a StackGrowth,
    stack: &'a [Frame],
}

/// Least stack of a goroutine, bytes (`runtime.stackMin` × the first growth that
/// any blocking call needs is more; this is the sure part).
const GOROUTINE_STACK: f64 = 2048.0;

impl<'a> Site<'a> {
    fn new(history: &'a History, kind: SampleKind, members: Vec<Member<'a>>) -> Self {
        let mut site = Self {
            history,
            kind,
            members,
            objects_per_min: 0.0,
            bytes_per_min: 0.0,
            live_objects: 0,
            live_bytes: 0,
        };
        site.members
            .sort_by(|a, b| b.weight().total_cmp(&a.weight()));
        for member in &site.members {
            let g = member.growth;
            if g.source == kind {
                site.objects_per_min += g.rate_objects_per_min;
                site.live_objects += g.live_objects;
            }
            site.bytes_per_min += member.bytes_per_min();
            site.live_bytes += member.live_bytes();
        }
        site
    }

    /// The stack, of those that grow most, on which the culprit calls a function for
    /// which `grows` holds, and whose memory is as `part` says.
    fn container(
        &self,
        grows: fn(&str) -> bool,
        part: fn(&[Frame], &StackGrowth) -> bool,
    ) -> Option<&'a [Frame]> {
        let found =
            |m: &&Member<'_>| symbols::callee_frames(m.stack).any(grows) && part(m.stack, m.growth);
        self.members.iter().find(found).map(|m| m.stack)
    }

    /// What the program's code calls, where it is known.
    fn code(&self) -> Option<&'a Code> {
        self.history.code()
    }

    /// Whether a function calls one for which `is` holds: by its code or, where that is
    /// unknown, on a stack.
    fn calls(&self, function: &str, is: fn(&str) -> bool) -> bool {
        match self.code() {
            Some(code) => code.callee(function, is).is_some(),
            None => self.history.seen_calling(function, is),
        }
    }

    /// Heap stacks that grew since this site did.
    fn heap_growing_along(&self) -> Vec<&'a [Frame]> {
        let onset = self.main().and_then(|m| m.growth.onset);
        self.history.grown_since(onset)
    }

    /// Every stack of the site, the one that grows most first.
    fn stacks(&self) -> impl Iterator<Item = &'a [Frame]> {
        self.members.iter().map(|m| m.stack)
    }

    /// The stack that stands for the site: of its own kind, the one that grows most.
    fn main_stack(&self) -> &'a [Frame] {
        self.main().map_or(&[], |m| m.stack)
    }

    fn main(&self) -> Option<&Member<'a>> {
        self.members.iter().find(|m| m.growth.source == self.kind)
    }

    /// The function a goroutine of this site was started with.
    fn goroutine_entry(&self) -> Option<&'a str> {
        let entry = self
            .main_stack()
            .iter()
            .rev()
            .find(|f| f.function != "runtime.goexit")?;
        Some(&entry.function)
    }
}

impl Member<'_> {
    fn bytes_per_min(&self) -> f64 {
        match self.growth.source {
            SampleKind::Goroutine => self.growth.rate_objects_per_min * GOROUTINE_STACK,
            _ => self.growth.rate_bytes_per_min,
        }
    }

    fn live_bytes(&self) -> u64 {
        match self.growth.source {
            SampleKind::Goroutine => self
                .growth
                .live_objects
                .saturating_mul(GOROUTINE_STACK as u64),
            _ => self.growth.live_bytes,
        }
    }

    fn weight(&self) -> f64 {
        self.bytes_per_min()
    }

    fn culprit(&self) -> Option<&str> {
        symbols::culprit(self.stack).map(|f| f.function.as_str())
    }

    /// How many frames the culprit called down to the allocation.
    fn culprit_depth(&self) -> Option<usize> {
        let culprit = symbols::culprit(self.stack)?;
        self.stack.iter().position(|f| std::ptr::eq(f, culprit))
    }

    fn calls_through(&self, function: &str) -> bool {
        self.stack.iter().any(|f| f.function == function)
    }
}

/// The findings of an assessment, rank 1 first. `limit` is a memory limit that the
/// user names, bytes; `now` the time of the newest profile.
#[must_use]
pub fn findings(
    history: &History,
    assessment: &Assessment,
    limit: Option<u64>,
    target: &str,
    now: Time,
) -> Vec<Finding> {
    let member = |growth| Member {
        growth,
        stack: history.frames(growth.key),
    };
    let exhaustion = history.exhaustion(assessment, limit);
    let native = |growth| Site::new(history, SampleKind::Process, vec![member(growth)]);
    let mut found: Vec<Finding> = sites(
        history,
        assessment.stacks.iter().map(member).collect(),
        assessment.companions.iter().map(member).collect(),
    )
    .iter()
    .chain(&assessment.native.as_ref().map(native))
    .filter_map(|site| {
        let mut found = finding(site, exhaustion.as_ref(), target, now)?;
        tags::name(history, site, &mut found);
        Some(found)
    })
    .collect();
    rank(&mut found);
    if let Some(first) = found.first_mut()
        && assessment.process.exact
    {
        let exact = assessment.process.rate_bytes_per_min;
        first.evidence.push(format!(
            "after garbage collections the live heap of the service grew by {:.1} MiB/min (exact, from its SDK)",
            exact / f64::from(1 << 20)
        ));
        // Where this is nearly all of the growth, the interval must hold what is exact.
        if first.explains >= 0.9 {
            let [low, high] = first.rate_interval;
            first.rate_interval = [low.min(exact * first.explains), high.max(exact)];
        }
    }
    found
}

/// Whether a function is the service's own code: neither runtime nor standard
/// library, nor the main function that calls everything.
#[must_use]
pub fn is_own_code(function: &str) -> bool {
    !symbols::is_standard(function) && function != "main.main"
}

/// Sorts findings by how much they matter, and numbers them.
pub fn rank(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        b.tier
            .cmp(&a.tier)
            .then(b.rate_bytes_per_min.total_cmp(&a.rate_bytes_per_min))
    });
    for (i, finding) in findings.iter_mut().enumerate() {
        finding.rank = i as u32 + 1;
    }
}

/// Puts together what grows for one reason: stacks with the same culprit; what a
/// growing function's callees allocate, with that function; what the heap holds
/// for piled-up goroutines, with those goroutines. `companions` found no verdict of
/// their own: they only add to a site.
fn sites<'a>(
    history: &'a History,
    members: Vec<Member<'a>>,
    companions: Vec<Member<'a>>,
) -> Vec<Site<'a>> {
    let (goroutines, heap): (Vec<_>, Vec<_>) = members
        .into_iter()
        .partition(|m| m.growth.source == SampleKind::Goroutine);

    let mut groups: Vec<(SampleKind, Vec<Member<'_>>)> = Vec::new();
    for member in goroutines {
        let entry = |m: &Member<'_>| {
            m.stack
                .iter()
                .rev()
                .find(|f| f.function != "runtime.goexit")
                .cloned()
        };
        match groups
            .iter_mut()
            .find(|(_, g)| g[0].culprit() == member.culprit() && entry(&g[0]) == entry(&member))
        {
            Some((_, group)) => group.push(member),
            None => groups.push((SampleKind::Goroutine, vec![member])),
        }
    }
    // A growing stack that passes through another's culprit was called by it. The
    // outermost culprits come first, so that a chain ends up in one group.
    let mut heap = heap;
    heap.sort_by_key(|m| m.stack.len() - m.culprit_depth().unwrap_or(0));
    for member in heap {
        let together = groups.iter_mut().find(|(kind, group)| match kind {
            SampleKind::Goroutine => serves_goroutine(&member, &group[0]),
            _ => {
                let owner = group[0].culprit();
                one_job(&member, &group[0])
                    || owner.is_some_and(|f| member.calls_through(f) && coeval(&member, &group[0]))
            }
        });
        match together {
            Some((_, group)) => group.push(member),
            None => groups.push((SampleKind::Heap, vec![member])),
        }
    }
    for companion in companions {
        let goroutine = companion.growth.source == SampleKind::Goroutine;
        let owner = groups.iter_mut().find(|(kind, group)| match kind {
            _ if goroutine => group.iter().any(|m| serves_goroutine(m, &companion)),
            SampleKind::Goroutine => serves_goroutine(&companion, &group[0]),
            _ => group.iter().any(|m| one_job(&companion, m)),
        });
        match owner {
            // What grows is held by goroutines that pile up: they are the cause.
            Some((kind, group)) if goroutine && *kind != SampleKind::Goroutine => {
                *kind = SampleKind::Goroutine;
                group.insert(0, companion);
            }
            Some((_, group)) => group.push(companion),
            None => {}
        }
    }
    groups
        .into_iter()
        .map(|(kind, group)| Site::new(history, kind, group))
        .collect()
}

/// Whether what this heap stack allocates is held by goroutines of that group:
/// it is allocated by the goroutines' function, by the function that starts them,
/// or it is the runtime's own descriptor of a goroutine.
fn serves_goroutine(heap: &Member<'_>, goroutine: &Member<'_>) -> bool {
    if heap.growth.source == SampleKind::Goroutine {
        return false;
    }
    if heap.culprit().is_none() {
        return heap.calls_through("runtime.malg") || heap.calls_through("runtime.newproc1");
    }
    let entry = goroutine
        .stack
        .iter()
        .rev()
        .find(|f| !symbols::is_standard(&f.function));
    let starter = entry.map(|f| symbols::enclosing(&f.function));
    heap.stack
        .iter()
        .any(|f| Some(symbols::enclosing(&f.function)) == starter)
}

/// Whether two stacks allocate for one job: at the same culprit, or one culprit
/// was called by the other's, a few calls away.
fn one_job(a: &Member<'_>, b: &Member<'_>) -> bool {
    const FEW: usize = 3;
    let (Some(at_a), Some(at_b)) = (a.culprit_depth(), b.culprit_depth()) else {
        return false;
    };
    let (outside_a, outside_b) = (&a.stack[at_a..], &b.stack[at_b..]);
    let apart = outside_a.len().abs_diff(outside_b.len());
    let common = outside_a.len().min(outside_b.len());
    let same = |x: &[Frame], y: &[Frame]| x.iter().zip(y).all(|(x, y)| x.function == y.function);
    a.culprit() == b.culprit()
        || (apart <= FEW
            && same(
                &outside_a[outside_a.len() - common..],
                &outside_b[outside_b.len() - common..],
            ))
}

/// Whether two growths may have begun together.
fn coeval(a: &Member<'_>, b: &Member<'_>) -> bool {
    match (a.growth.onset_interval, b.growth.onset_interval) {
        (Some(a), Some(b)) => {
            // Two fits on noisy data: their intervals need only come close.
            let slack = 30_000 + (a[1].0 - a[0].0).max(b[1].0 - b[0].0);
            a[0].0 - slack <= b[1].0 && b[0].0 - slack <= a[1].0
        }
        _ => true,
    }
}

fn finding(
    site: &Site<'_>,
    exhaustion: Option<&Exhaustion>,
    target: &str,
    now: Time,
) -> Option<Finding> {
    let cause = DETECTORS.iter().find_map(|detect| detect(site))?;
    // The surest verdict speaks for the site, of several the one that grows most.
    let sure = |m: &&Member<'_>| (!m.growth.evidence.is_empty(), m.growth.tier);
    let main = site.members.iter().rev().max_by_key(sure)?.growth;
    let own: Vec<&Member<'_>> = site
        .members
        .iter()
        .filter(|m| m.growth.source == site.kind)
        .collect();
    let explains = match site.kind {
        SampleKind::Goroutine if own.len() == site.members.len() => main.explains,
        SampleKind::Process => main.explains,
        _ => site
            .members
            .iter()
            .filter(|m| m.growth.source == SampleKind::Heap)
            .map(|m| m.growth.explains)
            .sum(),
    };
    // Independent samples: half widths add as squares.
    let half = |pick: fn(&StackGrowth) -> f64| {
        site.members
            .iter()
            .filter(|m| m.growth.source != SampleKind::Goroutine)
            .map(|m| pick(m.growth).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let below = half(|g| g.rate_bytes_per_min - g.rate_interval[0]);
    let above = half(|g| g.rate_interval[1] - g.rate_bytes_per_min);
    // Growth of the process that no stack explains may belong to this one.
    let unexplained = if explains > 0.0 && explains < 1.0 {
        site.bytes_per_min * (1.0 - explains)
    } else {
        0.0
    };
    // The stack that stands for the site must show the cause: for a container, the
    // function that fills it, even where its contents weigh more.
    let stack = match &cause.stack {
        Some(stack) => stack,
        None => symbols::culprit(site.main_stack())
            .map_or_else(|| site.main_stack(), |_| shown_stack(site, &cause)),
    };
    let mut evidence = cause.evidence.clone();
    evidence.extend(main.evidence.iter().cloned());
    if site.members.len() > 1 {
        evidence.push(format!(
            "{} stacks grow together here; their rates are added",
            site.members.len()
        ));
    }
    Some(Finding {
        schema: FINDING_SCHEMA.to_owned(),
        id: String::new(),
        at: now,
        pattern: cause.pattern,
        tier: site
            .members
            .iter()
            .map(|m| m.growth.tier)
            .max()
            .unwrap_or(Tier::Growing),
        status: Status::Open,
        rank: 0,
        confidence: site
            .members
            .iter()
            .map(|m| m.growth.confidence)
            .fold(0.0, f64::max),
        target: target.to_owned(),
        source: site.kind,
        culprit: symbols::culprit(stack).cloned(),
        stack: stack.to_vec(),
        type_name: None,
        retained_bytes: None,
        retained_by: Vec::new(),
        tags: Default::default(),
        onset: main.onset,
        onset_interval: main.onset_interval,
        rate_bytes_per_min: site.bytes_per_min,
        rate_interval: [
            site.bytes_per_min - below,
            site.bytes_per_min + above + unexplained,
        ],
        rate_objects_per_min: site.objects_per_min,
        live_bytes: site.live_bytes,
        live_objects: site.live_objects,
        explains: explains.clamp(0.0, 1.0),
        oom_at: exhaustion.map(|e| e.oom_at),
        oom_interval: exhaustion.map(|e| e.interval),
        bound: exhaustion.map(|e| e.bound.clone()),
        before_onset: main.before_onset.clone(),
        points: main.points.clone(),
        evidence,
        advice: cause.advice,
    })
}

/// Of a container that grows, the stack that fills it; else the stack that grows most.
fn shown_stack<'a>(site: &Site<'a>, cause: &Cause) -> &'a [Frame] {
    if matches!(cause.pattern, Pattern::MapBloat | Pattern::SliceGrowth) {
        let alone = |stack| {
            let member = site
                .members
                .iter()
                .find(|m| std::ptr::eq(m.stack, stack))
                .copied();
            let single = Site::new(site.history, site.kind, member.into_iter().collect());
            DETECTORS
                .iter()
                .find_map(|detect| detect(&single))
                .is_some_and(|c| c.pattern == cause.pattern)
        };
        if let Some(stack) = site.stacks().find(|s| alone(*s)) {
            return stack;
        }
    }
    site.main_stack()
}
