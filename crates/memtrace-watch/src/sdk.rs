//! What the memtrace SDK in a service adds to its profiles: names of tags, and every
//! garbage collection with what it found alive.

use memtrace_collect::Scraper;
use memtrace_formats::pprof::tags;
use memtrace_formats::sdk::{Events, TagNames};
use memtrace_model::Profile;

/// The conversation with one service's SDK.
#[derive(Debug, Default)]
pub struct Sdk {
    /// Whether it has one; not known before the first answer.
    offered: Option<bool>,
    /// Newest collection that it told of.
    seen: u64,
    told: bool,
}

impl Sdk {
    /// Gives the samples of a heap profile their tags. Asks the service for the names
    /// only where there are tags.
    pub async fn label(&mut self, scraper: &mut Scraper, profile: &mut Profile) {
        if !tags::has_tags(profile) {
            return;
        }
        let page = scraper.sdk("tags").await.ok();
        let names = page.and_then(|p| TagNames::parse(&p.body));
        // Without names the numbers must do.
        tags::label(profile, &names.unwrap_or_default());
    }

    /// What happened since the last call; `None` where the service has no SDK, or does
    /// not answer now. A service that has none is asked once.
    pub(crate) async fn events(&mut self, scraper: &mut Scraper) -> Option<Events> {
        if self.offered == Some(false) {
            return None;
        }
        let answer = scraper.sdk(&format!("events?since={}", self.seen)).await;
        let events = match answer {
            Ok(page) => Events::parse(&page.body),
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

    /// Which figures of the heap a watch has, in words; once.
    pub(crate) fn source(&mut self, events: Option<&Events>) -> Option<String> {
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(match events {
            Some(e) if !e.tracers.is_empty() => format!(
                "heap: exact after each garbage collection, from the memtrace SDK in the service ({})",
                e.tracers.join(", ")
            ),
            Some(_) => "heap: sampled profiles; the memtrace SDK in the service runs no tracer (memtrace.Start)".to_owned(),
            None => return None,
        })
    }
}
