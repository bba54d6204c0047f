//! Plain lines, for pipes and logs.

use std::io;

use memtrace_model::{EventKind, Gauge};
use memtrace_watch::{LEAST_PROFILES, Point, Update};

use super::{View, words};
use crate::out::{Out, note};
use crate::units::bytes;

/// Plain lines on stdout.
pub(super) struct Lines;

impl View for Lines {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        let mut out = Out::open();
        match update {
            Update::Attached(a) => out.line(format_args!(
                "{}  {}  watching {}",
                words::clock(a.at),
                a.target,
                a.how
            ))?,
            Update::Point(point) => out.line(point_line(point))?,
            Update::Event { target, event } => out.line(format_args!(
                "{}  {target}  {}",
                words::clock(event.at),
                event_text(&event.kind)
            ))?,
            Update::Finding(finding) => {
                out.line("")?;
                out.lines(&words::lines(finding))?;
                out.line("")?;
            }
            Update::Store(unkept) => note(format_args!("{unkept}")),
            Update::Summary(s) => {
                out.line("")?;
                out.line(format_args!("{}: {}", s.target, summary(s)))?;
                for finding in &s.findings {
                    out.lines(&words::lines(finding))?;
                }
            }
        }
        out.done()
    }
}

fn summary(s: &memtrace_watch::Summary) -> String {
    if s.profiles == 0 {
        return "no profile could be read".into();
    }
    let seen = format!(
        "{} profiles in {}",
        s.profiles,
        crate::units::span(s.watched.as_secs_f64())
    );
    match s.findings.len() {
        0 if s.profiles < LEAST_PROFILES => {
            format!("{seen}: too few to tell whether anything grows, which takes {LEAST_PROFILES}")
        }
        // What is called leaking must have gone on for longer than this.
        0 if s.watched < s.settle * 3 / 2 => format!(
            "{seen}; no leak found, but growth must go on for {} to be called a leak (see --settle)",
            crate::units::span(s.settle.as_secs_f64() * 1.5)
        ),
        0 => format!("{seen}; no leak found"),
        1 => format!("{seen}; 1 finding"),
        n => format!("{seen}; {n} findings"),
    }
}

pub(super) fn event_text(kind: &EventKind) -> String {
    match kind {
        EventKind::Attach { started: Some(at) } => format!("attached; the process runs since {at}"),
        EventKind::Attach { started: None } => "attached".into(),
        EventKind::Restart { reason } => {
            format!("the service was restarted ({reason}); its history begins anew")
        }
        EventKind::Lost { reason } => format!("cannot be read: {reason}"),
        EventKind::Recovered => "can be read again".into(),
        EventKind::Warning { text } | EventKind::Source { text } => text.clone(),
        EventKind::Snapshot { file, text } => format!("snapshot {file}: {text}"),
        _ => String::new(),
    }
}

fn point_line(point: &Point) -> String {
    let mut line = format!("{}  {}", words::clock(point.at), point.target);
    for (name, gauge) in [("heap", Gauge::HeapInuse), ("rss", Gauge::Rss)] {
        if let Some(v) = point.gauges.get(gauge) {
            line += &format!("  {name} {}", bytes(v));
        }
    }
    if let Some(n) = point.gauges.get(Gauge::Goroutines) {
        line += &format!("  goroutines {n:.0}");
    }
    line += &format!("  {}", point.state());
    line
}
