//! What the memtrace SDK in a service adds to its profiles: names of tags, and every
//! garbage collection with what it found alive.

use std::time::{Duration, Instant};

use memtrace_collect::Scraper;
use memtrace_formats::pprof::tags;
use memtrace_formats::sdk::{Events, MapKeys, TagNames};
use memtrace_model::{Finding, Pattern, Profile};

use crate::pool;

/// The conversation with one service's SDK.
#[derive(Debug, Default)]
pub struct Sdk {
    /// Whether it has one; not known before the first answer.
    offered: Option<bool>,
    /// Newest collection that it told of.
    seen: u64,
    told: bool,
    /// It has tags on its stacks and serves no names of them.
    nameless: bool,
    /// Keys that were asked for, and when.
    keys: Option<(Instant, Vec<MapKeys>)>,
}

/// Keys are shown, not counted: never asked for more often than this.
const KEYS_GAP: Duration = Duration::from_secs(60);
/// Keys that a finding shows.
const KEYS: usize = 8;

impl Sdk {
    /// Gives the samples of a heap profile their tags. Asks the service for the names
    /// only where there are tags. False where that panicked, and nothing is left of the profile.
    #[must_use]
    pub async fn label(&mut self, scraper: &mut Scraper, profile: &mut Profile) -> bool {
        if !tags::has_tags(profile) {
            return true;
        }
        let page = match self.nameless {
            true => None,
            false => Some(scraper.sdk("tags").await),
        };
        self.nameless |= matches!(&page, Some(Err(error)) if error.is_absent());
        let page = page.and_then(Result::ok);
        let mut taken = std::mem::take(profile);
        let labelled = pool::run(move || {
            let names = page.and_then(|p| TagNames::parse(&p.body));
            // Without names the numbers must do.
            tags::label(&mut taken, &names.unwrap_or_default());
            taken
        });
        labelled.await.map(|labelled| *profile = labelled).is_some()
    }

    /// What happened since the last call; `None` where the service has no SDK, or does
    /// not answer now. A service that has none is asked once.
    pub(crate) async fn events(&mut self, scraper: &mut Scraper) -> Option<Events> {
        if self.offered == Some(false) {
            return None;
        }
        let answer = scraper.sdk(&format!("events?since={}", self.seen)).await;
        let events = match answer {
            Ok(page) => pool::run(move || Events::parse(&page.body)).await.flatten(),
            Err(error) if error.is_absent() => None,
            Err(_) => return None,
        };
        self.offered = Some(events.is_some());
        let events = events?;
        if let Some(last) = events.collections.last() {
            self.seen = last.number;
        }
        Some(events)
    }

    /// Adds keys of the maps that grow to their findings, where the service lets us see
    /// some. Only for users who asked for content of the target.
    pub(crate) async fn show_keys(&mut self, scraper: &mut Scraper, findings: &mut [Finding]) {
        let grows = |f: &&mut Finding| f.pattern == Pattern::MapBloat;
        if self.offered != Some(true) || !findings.iter_mut().any(|f| grows(&f)) {
            return;
        }
        if self
            .keys
            .as_ref()
            .is_none_or(|(at, _)| at.elapsed() >= KEYS_GAP)
        {
            let page = scraper.sdk(&format!("keys?n={KEYS}")).await;
            let maps = match page {
                Ok(page) => pool::run(move || MapKeys::parse(&page.body)).await,
                Err(_) => None,
            };
            let maps = maps.unwrap_or_default();
            self.keys = Some((Instant::now(), maps));
        }
        let Some((_, maps)) = &self.keys else { return };
        for finding in findings.iter_mut().filter(grows) {
            let culprit = finding.culprit.as_ref().map_or("", |f| f.function.as_str());
            if let Some(map) = maps.iter().find(|m| m.owns(culprit)) {
                // Quoted: what a stranger chose as a key must not reach the terminal as it is.
                let keys: Vec<String> = map.keys.iter().map(|k| format!("{k:?}")).collect();
                finding.evidence.push(format!(
                    "{} of the {} keys of {}: {}",
                    keys.len(),
                    map.size,
                    map.owner,
                    keys.join(", ")
                ));
            }
        }
    }

    /// Where the figures of the heap come from, in words; once, and only where that is not
    /// the sampled profile alone.
    pub(crate) fn source(&mut self, events: Option<&Events>) -> Option<String> {
        let tracers = &events?.tracers;
        if tracers.is_empty() || std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(format!(
            "heap: exact after each garbage collection, from the memtrace SDK in the service ({})",
            tracers.join(", ")
        ))
    }
}
