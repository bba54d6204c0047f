//! The live table on a terminal: one row per target, the findings below.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use memtrace_model::{Finding, Gauge, Status, Tier, is_visible};
use memtrace_watch::{Point, Summary, Update};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::lines::{Lines, event_text};
use super::{View, words};
use crate::out::one_line;
use crate::units::bytes;

/// How many points the trend column remembers.
const TREND: usize = 24;
/// How many lines of what happened are remembered.
const NOTES: usize = 3;

/// The live view; it owns the terminal until `finish`.
pub(super) struct Screen {
    terminal: ratatui::DefaultTerminal,
    targets: BTreeMap<String, Target>,
    selected: TableState,
    notes: Vec<String>,
    summaries: Vec<Summary>,
    changed: bool,
}

#[derive(Default)]
struct Target {
    how: String,
    point: Option<Point>,
    heap: Vec<f64>,
    /// At the last goroutine profile: there is not one with every point.
    goroutines: Option<f64>,
    findings: Vec<Finding>,
    lost: Option<String>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            // Installs a panic hook that gives the terminal back.
            terminal: ratatui::try_init()?,
            targets: BTreeMap::new(),
            selected: TableState::default().with_selected(0),
            notes: Vec::new(),
            summaries: Vec::new(),
            changed: true,
        })
    }

    fn note(&mut self, text: String) {
        self.notes.push(text);
        let excess = self.notes.len().saturating_sub(NOTES);
        self.notes.drain(..excess);
    }

    fn target(&mut self, name: &str) -> &mut Target {
        self.targets.entry(name.to_owned()).or_default()
    }
}

impl View for Screen {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        self.changed = true;
        match update {
            Update::Attached(a) => self.target(&a.target).how.clone_from(&a.how),
            Update::Point(point) => {
                let target = self.target(&point.target);
                target.lost = None;
                if let Some(heap) = point.gauges.get(Gauge::HeapInuse) {
                    target.heap.push(heap);
                    let excess = target.heap.len().saturating_sub(TREND);
                    target.heap.drain(..excess);
                }
                let goroutines = point.gauges.get(Gauge::Goroutines);
                target.goroutines = goroutines.or(target.goroutines);
                target.findings.clone_from(&point.findings);
                target.point = Some(point.clone());
            }
            Update::Event { target, event } => {
                if let memtrace_model::EventKind::Lost { reason } = &event.kind {
                    self.target(target).lost = Some(reason.clone());
                }
                let text = event_text(&event.kind);
                self.note(format!("{} {target}: {text}", words::clock(event.at)));
            }
            Update::Finding(finding) => self.note(format!(
                "{} {}: {} {}  {}",
                words::clock(finding.at),
                finding.target,
                words::tier(finding),
                words::pattern(finding.pattern),
                words::place(finding)
            )),
            Update::Store(unkept) => self.note(unkept.to_string()),
            Update::Summary(s) => {
                self.target(&s.target).findings.clone_from(&s.findings);
                self.summaries.push(s.clone());
            }
        }
        Ok(())
    }

    fn refresh(&mut self) -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            self.changed = true;
            let Input::Key(key) = event::read()? else {
                continue;
            };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if control => return Ok(true),
                KeyCode::Down | KeyCode::Char('j') => self.selected.select_next(),
                KeyCode::Up | KeyCode::Char('k') => self.selected.select_previous(),
                _ => {}
            }
        }
        if self.changed {
            self.changed = false;
            let (targets, selected, notes) = (&self.targets, &mut self.selected, &self.notes);
            self.terminal
                .draw(|frame| draw(frame, targets, selected, notes))?;
        }
        Ok(false)
    }

    fn finish(&mut self) -> io::Result<()> {
        ratatui::try_restore()?;
        let mut lines = Lines;
        for s in &self.summaries {
            lines.update(&Update::Summary(s.clone()))?;
        }
        Ok(())
    }
}

fn draw(
    frame: &mut Frame<'_>,
    targets: &BTreeMap<String, Target>,
    selected: &mut TableState,
    notes: &[String],
) {
    let height = (targets.len() as u16 + 1)
        .min(frame.area().height / 2)
        .max(2);
    let note_height = notes.len() as u16;
    let [head, table, details, log, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(height),
        Constraint::Min(3),
        Constraint::Length(note_height),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    let leaking = targets
        .values()
        .filter(|t| t.worst() == Some(Tier::Leaking))
        .count();
    let title = match targets.len() {
        1 => format!("memtrace watch: 1 target, {leaking} leaking"),
        n => format!("memtrace watch: {n} targets, {leaking} leaking"),
    };
    frame.render_widget(Line::styled(title, Modifier::BOLD), head);

    let rows = targets.iter().map(|(name, t)| t.row(name));
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(11),
        Constraint::Length(TREND as u16),
    ];
    let columns = [
        "target",
        "state",
        "heap",
        "rss",
        "goroutines",
        "heap over time",
    ];
    let view = Table::new(rows, widths)
        .header(Row::new(columns).style(Modifier::DIM))
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(view, table, selected);

    let chosen = selected.selected().and_then(|i| targets.values().nth(i));
    frame.render_widget(
        Paragraph::new(chosen.map_or(Text::default(), Target::details)).wrap(Wrap { trim: false }),
        details,
    );
    let notes = notes.iter().map(|n| line(n, Modifier::DIM));
    frame.render_widget(Paragraph::new(Text::from_iter(notes)), log);
    frame.render_widget(Line::styled("↑↓ target   q quit", Modifier::DIM), foot);
    // Should one have been forgotten above: nothing is drawn but what shows as itself.
    for cell in &mut frame.buffer_mut().content {
        if !cell.symbol().chars().all(is_visible) {
            cell.set_symbol("\u{fffd}");
        }
    }
}

impl Target {
    fn worst(&self) -> Option<Tier> {
        self.findings
            .iter()
            .filter(|f| f.status == Status::Open)
            .map(|f| f.tier)
            .max()
    }

    fn row(&self, name: &str) -> Row<'static> {
        let gauge = |g| self.point.as_ref().and_then(|p| p.gauges.get(g));
        let (state, color) = match (self.lost.is_some(), self.worst()) {
            (true, _) => ("lost", Color::Red),
            (_, Some(Tier::Leaking)) => ("LEAKING", Color::Red),
            (_, Some(Tier::Growing)) => ("growing", Color::Yellow),
            _ => (
                self.point.as_ref().map_or("attaching", Point::state),
                Color::Green,
            ),
        };
        let size = |g| gauge(g).map_or("-".into(), bytes);
        Row::new([
            Cell::from(line(name, Style::new())),
            Cell::from(state).style(Style::new().fg(color)),
            Cell::from(size(Gauge::HeapInuse)),
            Cell::from(size(Gauge::Rss)),
            Cell::from(self.goroutines.map_or("-".into(), |n| format!("{n:.0}"))),
            Cell::from(sparkline(&self.heap)),
        ])
    }

    fn details(&self) -> Text<'static> {
        let mut lines = vec![line(&self.how, Modifier::DIM)];
        if let Some(reason) = &self.lost {
            lines.push(line(reason, Color::Red));
        }
        for finding in &self.findings {
            let color = match (finding.status, finding.tier) {
                (Status::Resolved, _) => Color::DarkGray,
                (_, Tier::Leaking) => Color::Red,
                (_, Tier::Growing) => Color::Yellow,
            };
            lines.push(Line::default());
            for (i, text) in words::lines(finding).into_iter().enumerate() {
                let style = if i == 0 {
                    Style::new().fg(color).add_modifier(Modifier::BOLD)
                } else {
                    Style::new()
                };
                lines.push(line(&text, style));
            }
        }
        if self.findings.is_empty() {
            let text = self.point.as_ref().map_or(String::new(), |p| {
                format!("{} profiles, no leak so far", p.profiles)
            });
            lines.push(Line::raw(text));
        }
        Text::from(lines)
    }
}

/// A line of text from outside.
fn line(text: &str, style: impl Into<Style>) -> Line<'static> {
    Line::styled(one_line(text).into_owned(), style)
}

/// The values as eighth blocks, from zero to their maximum.
fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let top = values.iter().copied().fold(1.0, f64::max);
    values
        .iter()
        .map(|v| BARS[((v / top * 7.0).round() as usize).min(7)])
        .collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    const EVIL: &str =
        "x\x1b[2J\x1b]0;t\x07\r\nFORGED\t\0\u{9b}31m\u{202e}\u{2066}\u{200b}\u{2028}\u{e0041}";

    /// Names, places and reasons come from the service: none may draw over another.
    #[test]
    fn hostile_names_stay_where_they_are() {
        let frame = json!({"function": EVIL, "file": EVIL, "line": 7});
        let finding = json!({
            "schema": EVIL, "at": "2026-01-01T00:00:00Z", "pattern": "growth", "tier": "leaking",
            "status": "open", "rank": 1, "confidence": 1.0, "target": EVIL, "source": "heap",
            "stack": [frame], "culprit": frame, "type": EVIL, "retained_bytes": 1,
            "retained_by": [EVIL], "tags": {EVIL: EVIL}, "onset": null, "onset_interval": null,
            "rate_bytes_per_min": 1.0, "rate_interval": [0.0, 2.0], "rate_objects_per_min": 1.0,
            "live_bytes": 1, "live_objects": 1, "explains": 1.0, "oom_at": null,
            "oom_interval": null, "bound": null, "before_onset": [], "points": [],
            "evidence": [EVIL], "advice": EVIL,
        });
        let target = Target {
            how: EVIL.to_owned(),
            lost: Some(EVIL.to_owned()),
            findings: vec![serde_json::from_value(finding).expect("a finding")],
            ..Target::default()
        };
        let targets = BTreeMap::from([(EVIL.to_owned(), target)]);
        let notes = [EVIL.to_owned(), "last note".to_owned()];
        let mut terminal = Terminal::new(TestBackend::new(160, 60)).expect("a terminal");
        let mut selected = TableState::default().with_selected(0);
        terminal
            .draw(|f| draw(f, &targets, &mut selected, &notes))
            .expect("it draws");
        let buffer = terminal.backend().buffer();
        let cells = buffer.content.chunks(usize::from(buffer.area.width));
        let rows: Vec<String> = cells
            .map(|row| row.iter().map(|c| c.symbol()).collect())
            .collect();
        for row in &rows {
            assert!(row.chars().all(is_visible), "{row:?}");
            assert!(!row.starts_with("FORGED"), "{row:?}");
        }
        let whole = rows.join("\n");
        assert!(
            whole.matches(r"x\x1b[2J\x1b]0;t\x07\r\nFORGED").count() >= 10,
            "{whole}"
        );
        assert!(rows[57].starts_with(r"x\x1b[2J") && rows[58].starts_with("last note"));
    }
}
