//! Two readings of what a process has allocated, and the time between them.

use std::collections::BTreeSet;
use std::time::Duration;

use memtrace_collect::{CollectError, Fetched, Scraper, Target, TargetError};
use memtrace_formats::pprof::{self, MemStats, Parsed};
use memtrace_model::{HotRuntime, Profile, Time};
use memtrace_watch::{MOST_NAMES, Sdk};

use crate::args::HotArgs;
use crate::failure::Failure;
use crate::out::{note, notes_are_read};
use crate::source;

/// A cumulative profile.
pub(super) struct Reading {
    pub(super) profile: Profile,
    stats: Option<MemStats>,
    /// When it was taken.
    at: Option<Time>,
}

/// Two readings of one process.
pub(super) struct Readings {
    pub(super) old: Reading,
    pub(super) new: Reading,
}

/// The time between what two profiles count.
pub(super) struct Window {
    pub(super) from: Option<Time>,
    pub(super) to: Option<Time>,
    pub(super) seconds: f64,
}

pub(super) fn take(args: &HotArgs) -> Result<Readings, Failure> {
    let Some(new) = &args.new else {
        return live(args);
    };
    Ok(Readings {
        old: stored(&args.target)?,
        new: stored(new)?,
    })
}

/// A reading that was kept: a file, or what a store has of a time.
fn stored(from: &str) -> Result<Reading, Failure> {
    let parsed = match source::in_store(from) {
        Some((dir, at)) => {
            let mut parsed = Parsed::default();
            parsed.profile = source::stored(dir, at)?;
            parsed
        }
        None => match Target::parse(from).map_err(|e| source::target_failure(&e))? {
            Target::File(path) => source::parsed_file(&path)?,
            _ => {
                return Err(Failure::Usage(format!(
                    "{from} is no profile; OLD and NEW are files or DIR@TIME of a store"
                )));
            }
        },
    };
    Ok(Reading {
        at: parsed.profile.taken_at(),
        profile: parsed.profile,
        stats: parsed.mem_stats,
    })
}

fn live(args: &HotArgs) -> Result<Readings, Failure> {
    let name = &args.target;
    let target = Target::parse(name).map_err(|error| source::target_failure(&error))?;
    if matches!(target, Target::File(_)) || source::in_store(name).is_some() {
        return Err(Failure::Usage(format!(
            "{name}: one profile tells no rate; give two, OLD NEW, or a running service"
        )));
    }
    let between = args.duration.unwrap_or(Duration::from_secs(10));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting", error))?;
    let options = source::access(&args.access);
    runtime.block_on(async {
        let lost = |error: CollectError| source::watch_failure(error.into());
        let place = (target.attach(&options).await).map_err(|e| lost(e.into()))?;
        let endpoint = place.endpoint.ok_or_else(|| {
            let text = name.clone();
            source::target_failure(&TargetError::Unrecognised { text })
        })?;
        let mut scraper = Scraper::new(endpoint, options).map_err(|e| lost(e.into()))?;
        for warning in scraper.warnings() {
            note(warning);
        }
        // The text form: it has the calls into the runtime, and the memory statistics.
        let first = scraper.heap_text().await.map_err(|e| lost(e.into()))?;
        let mut old = reading(name, first)?;
        if notes_are_read() {
            note(format_args!("reading again in {} s", between.as_secs_f64()));
        }
        tokio::time::sleep(between).await;
        let second = scraper.heap_text().await.map_err(|e| lost(e.into()))?;
        let mut new = reading(name, second)?;
        name_calls(&mut scraper, &mut old.profile, &mut new.profile).await;
        // Who works under which tag allocates at the same stacks.
        let mut sdk = Sdk::default();
        for profile in [&mut old.profile, &mut new.profile] {
            if !sdk.label(&mut scraper, profile).await {
                let reason = format!("{name}: its tags cannot be read");
                return Err(Failure::Failed(reason));
            }
        }
        Ok(Readings { old, new })
    })
}

fn reading(name: &str, fetched: Fetched) -> Result<Reading, Failure> {
    let parsed = match pprof::with_runtime_calls(&fetched.body) {
        Some(parsed) => parsed,
        None => source::parsed(name, &fetched.body)?,
    };
    Ok(Reading {
        profile: parsed.profile,
        stats: parsed.mem_stats,
        at: Some(fetched.started),
    })
}

/// Names the calls into the runtime. Where the service does not tell, less is known of
/// how a site allocates.
async fn name_calls(scraper: &mut Scraper, old: &mut Profile, new: &mut Profile) {
    let unnamed = new.locations.iter().filter(|l| l.line_count == 0);
    let addresses: BTreeSet<u64> = unnamed.map(|l| l.address).take(MOST_NAMES).collect();
    if addresses.is_empty() {
        return;
    }
    match scraper
        .symbols(&addresses.into_iter().collect::<Vec<_>>())
        .await
    {
        Ok(names) => {
            old.name_addresses(&names);
            new.name_addresses(&names);
        }
        Err(error) => note(format_args!(
            "calls into the runtime have no names: {error}"
        )),
    }
}

impl Readings {
    /// What the runtime counted in between, where both readings were made live.
    pub(super) fn runtime(&self) -> Result<Option<HotRuntime>, Failure> {
        let (Some(old), Some(new)) = (&self.old.stats, &self.new.stats) else {
            return Ok(None);
        };
        let fell = new.total_alloc < old.total_alloc
            || new.mallocs < old.mallocs
            || new.num_gc < old.num_gc;
        if fell {
            return Err(Failure::Failed(
                "the service's counters fell between the two readings: it was restarted, or they are in the wrong \
                 order"
                    .into(),
            ));
        }
        let (Some(from), Some(to)) = (self.old.at, self.new.at) else {
            return Ok(None);
        };
        let seconds = to.since(from);
        if seconds <= 0.0 {
            return Ok(None);
        }
        Ok(Some(HotRuntime {
            seconds,
            bytes_per_s: (new.total_alloc - old.total_alloc) as f64 / seconds,
            objects_per_s: (new.mallocs - old.mallocs) as f64 / seconds,
            collections: new.num_gc - old.num_gc,
        }))
    }

    /// The time between the moments up to which the two profiles count. Between them
    /// the profile counts `bytes`; `rate` is the runtime's own, bytes a second.
    pub(super) fn window(
        &self,
        args: &HotArgs,
        bytes: f64,
        rate: Option<f64>,
    ) -> Result<Window, Failure> {
        if let (Some(old), Some(new)) = (&self.old.stats, &self.new.stats) {
            return published(old, new, args.access.gc, bytes, rate).ok_or_else(|| {
                Failure::Failed(format!(
                    "the service's heap profile shows nothing new: it counts what was allocated until the last garbage \
                     collection but one, and there were {} before the first reading and {} between the two; read for \
                     longer (--for 1m), or ask for collections (--gc)",
                    old.num_gc,
                    new.num_gc.saturating_sub(old.num_gc)
                ))
            });
        }
        let (from, to) = (self.old.at, self.new.at);
        let between = match (from, to) {
            (Some(from), Some(to)) => Some(to.since(from)),
            _ => args.duration.map(|d| d.as_secs_f64()),
        };
        match between {
            Some(seconds) if seconds > 0.0 => Ok(Window { from, to, seconds }),
            Some(_) => Err(Failure::Failed(
                "no time lies between the two profiles; the earlier one comes first".into(),
            )),
            None => Err(Failure::Usage(
                "the profiles do not say when they were taken; give the time between them with --for".into(),
            )),
        }
    }
}

/// The moments up to which two profiles of Go count: the end of the last collection but
/// one; of the last, where it was forced. Which one was forced is not told, only how many:
/// where there are any, the moments are taken at which `bytes` agrees best with `rate`.
fn published(
    old: &MemStats,
    new: &MemStats,
    forced: bool,
    bytes: f64,
    rate: Option<f64>,
) -> Option<Window> {
    let moments = |s: &MemStats| match (forced, s.num_forced_gc) {
        (true, _) => vec![s.last_gc],
        (false, 0) => vec![s.last_gc_but_one],
        (false, _) => vec![s.last_gc_but_one, s.last_gc],
    };
    let (ends, starts) = (moments(new), moments(old));
    let pairs = starts
        .iter()
        .flat_map(|&from| ends.iter().map(move |&to| (from, to)))
        .filter(|&(from, to)| 0 < from && from < to);
    // Where the moments are guesses, a profile that shows nothing new may be the same one.
    let sure = starts.len() * ends.len() == 1;
    if !sure && bytes <= 0.0 {
        return None;
    }
    let off = |(from, to): (u64, u64)| {
        rate.map_or(0.0, |rate| (bytes - rate * (to - from) as f64 / 1e9).abs())
    };
    let (from, to) = pairs.min_by(|&a, &b| off(a).total_cmp(&off(b)))?;
    let time = |ns: u64| Some(Time(i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)));
    Some(Window {
        from: time(from),
        to: time(to),
        seconds: (to - from) as f64 / 1e9,
    })
}
