//! The only way to the terminal: lines and JSON on stdout, notes on stderr.
//!
//! All that is shown may hold text from outside: names of a profile, answers of a server,
//! paths. So nothing here takes text with line ends or colours in it. A line goes through
//! [`visible_start`] and ends where this module ends it; `cargo xtask tidy` sees to it that no
//! other file writes to stdout or stderr.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use memtrace_model::{to_json, visible_start};
use serde::Serialize;

/// Characters of a line: fifty rows of a terminal. JSON has all.
const LONGEST_LINE: usize = 4000;
/// Characters of the line that tells of work going on: it must not wrap, or its beginning
/// would stay.
const LONGEST_STEP: usize = 60;

/// Data for stdout.
pub(crate) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(crate) fn open() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    /// One line, whatever is in `text`.
    pub(crate) fn line(&mut self, text: impl Display) -> io::Result<()> {
        writeln!(self.0, "{}", one_line(&text.to_string()))
    }

    /// Each of them one line.
    pub(crate) fn lines(&mut self, lines: &[impl Display]) -> io::Result<()> {
        lines.iter().try_for_each(|line| self.line(line))
    }

    /// A document in one line.
    pub(crate) fn json(&mut self, document: &impl Serialize) -> io::Result<()> {
        writeln!(self.0, "{}", to_json(document)?)
    }

    /// What this program says of itself: nothing from outside is in it.
    pub(crate) fn own(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Hands on what was written, and says whether that worked.
    pub(crate) fn done(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// One line on stderr.
pub(crate) fn note(text: impl Display) {
    // Where nobody listens any more there is nobody to tell.
    let _ = writeln!(io::stderr(), "memtrace: {}", one_line(&text.to_string()));
}

/// A panic is told like all else: its message may hold text from outside.
pub(crate) fn tell_of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        note(panic);
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            trace.to_string().lines().for_each(note);
        }
    }));
}

/// The line on stderr that tells of work going on; it stands where the one before it stood.
/// Without a text it is gone.
pub(crate) fn step(text: Option<(&str, &str)>) {
    let line = text.map_or(String::new(), |(what, so_far)| {
        let what = visible_start(what, LONGEST_STEP);
        format!("memtrace: {what}: {so_far}")
    });
    let mut err = io::stderr();
    let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
}

pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

pub(crate) fn notes_are_read() -> bool {
    io::stderr().is_terminal()
}

/// Text from outside as it stands in a line; cut where it is longer than anything one reads.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    visible_start(text, LONGEST_LINE)
}
