//! pprof's profiles: the protocol buffer and the text forms that came before it.
//!
//! What a file is follows from its bytes alone: compressed or not, message or
//! text. Source: `profile.proto` and the description of the legacy forms in the
//! google/pprof repository; the text forms of Go are those of `runtime/pprof`.

mod decode;
mod encode;
pub mod tags;
mod text;
mod wire;

use memtrace_model::Profile;

pub use text::{MemStats, RuntimeCalls, runtime_calls, with_runtime_calls};

use crate::gzip::{self, Limits, Stop, Window};
use crate::{Error, Warning, budget};

/// A profile that was read.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Parsed {
    /// The profile.
    pub profile: Profile,
    /// What was wrong with it.
    pub warnings: Vec<Warning>,
    /// What Go's `heap?debug=1` says about the process besides.
    pub mem_stats: Option<MemStats>,
}

/// Reads a profile in any form that is known, within the default [`Limits`].
///
/// # Errors
/// When nothing of it is usable; see [`Error`].
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    parse_with(bytes, &Limits::default())
}

/// Reads a profile in any form that is known.
///
/// # Errors
/// When nothing of it is usable; see [`Error`].
pub fn parse_with(bytes: &[u8], limits: &Limits) -> Result<Parsed, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let mut window = Window::new(bytes, limits);
    let mut ended = None;
    if window.bytes().is_empty()
        && let Err(stop) = window.more()
    {
        ended = Some(stop);
    }
    if let Some(stop) = ended {
        return Err(gzip::nothing_usable(&stop, limits).unwrap_or(Error::Empty));
    }

    match recognise(window.bytes()) {
        Form::Html => Err(Error::Html {
            title: title(window.bytes()),
        }),
        Form::Unsupported(what) => Err(Error::Unsupported { what }),
        Form::Message => {
            let start = printable(window.bytes());
            let (profile, warnings) = decode::decode(&mut window, limits, start)?;
            Ok(Parsed {
                profile,
                warnings,
                mem_stats: None,
            })
        }
        Form::Text(read) => {
            let start = printable(window.bytes());
            // A copy of the text is whole in memory beside what it becomes.
            let half = Limits {
                max_memory: limits.max_memory / 2,
                ..*limits
            };
            let is_copied = gzip::is_gzip(bytes) || std::str::from_utf8(bytes).is_err();
            let most = if is_copied { &half } else { limits }.max_memory;
            let (text, stop) = gzip::rest(&mut window, most);
            let text = budget::text(&text);
            let mut parsed = read(&text, &half).ok_or(Error::NotAProfile { start })?;
            match stop {
                Stop::End => {}
                Stop::Corrupt(what) => parsed.warnings.push(Warning::Compression { what }),
                Stop::Limit => parsed.warnings.push(Warning::Limit {
                    limit: limits.max_decompressed.min(most as u64),
                }),
            }
            Ok(parsed)
        }
    }
}

/// The profile as gzip-compressed `profile.proto`, as `go tool pprof` reads it.
/// Everything that [`Profile`] holds is in it.
#[must_use]
pub fn write(profile: &Profile) -> Vec<u8> {
    gzip::compress(&encode::encode(profile))
}

/// Like [`write`], not compressed.
#[must_use]
pub fn write_uncompressed(profile: &Profile) -> Vec<u8> {
    encode::encode(profile)
}

/// Puts the lines in the order of their locations: walking the locations then walks
/// one column, and what is written reads back as the same columns.
fn lines_in_order(profile: &mut Profile) {
    let lines = std::mem::take(&mut profile.lines);
    profile.lines.reserve(lines.len());
    for l in &mut profile.locations {
        let first = l.first_line as usize;
        let own = lines
            .get(first..first + l.line_count as usize)
            .unwrap_or(&[]);
        l.first_line = match own {
            [] => 0,
            _ => profile.lines.len() as u32,
        };
        profile.lines.extend_from_slice(own);
    }
}

/// What the bytes are.
enum Form {
    Message,
    Text(fn(&str, &Limits) -> Option<Parsed>),
    Html,
    Unsupported(&'static str),
}

fn recognise(bytes: &[u8]) -> Form {
    let start = bytes.trim_ascii_start();
    let line = start.split(|&b| b == b'\n').next().unwrap_or(start);
    let line = line.trim_ascii_end();
    if is_html(start) {
        return Form::Html;
    }
    // A message can hold any of these words in its strings; it is never all text.
    let is_text = !line.iter().any(|b| b.is_ascii_control() && *b != b'\t');
    if is_text && contains(line, b"heap profile:") {
        return Form::Text(text::heap);
    }
    if line.starts_with(b"--- ") {
        return match line {
            b"--- heapz 1 ---" => Form::Text(text::java_heap),
            _ if line.starts_with(b"--- contention") || line.starts_with(b"--- mutex:") => {
                Form::Unsupported("a contention profile")
            }
            _ if line.starts_with(b"--- thread") || line.starts_with(b"--- Thread") => {
                Form::Unsupported("a thread dump")
            }
            _ => Form::Message,
        };
    }
    if start.starts_with(b"goroutine ") && contains(line, b"[") && line.ends_with(b":") {
        return Form::Unsupported("a list of goroutines (debug=2), which is no profile,");
    }
    if is_text && first_content_line(start).is_some_and(text::is_count_header) {
        return Form::Text(text::count);
    }
    if is_binary_cpu(bytes) {
        return Form::Unsupported("a legacy CPU profile");
    }
    Form::Message
}

/// The first line that is neither empty nor a comment.
fn first_content_line(bytes: &[u8]) -> Option<&str> {
    bytes
        .split(|&b| b == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && line[0] != b'#')
        .and_then(|line| std::str::from_utf8(line).ok())
}

fn is_html(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let head: Vec<u8> = start.iter().take(64).map(u8::to_ascii_lowercase).collect();
    [
        "<!doctype",
        "<html",
        "<head",
        "<body",
        "<title",
        "<?xml",
        "<!--",
    ]
    .iter()
    .any(|tag| head.starts_with(tag.as_bytes()))
}

fn title(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(&page[..page.len().min(16 << 10)]);
    let lower = page.to_ascii_lowercase();
    let title = lower.find("<title").and_then(|tag| {
        let from = tag + lower[tag..].find('>')? + 1;
        let to = from + lower[from..].find("</title")?;
        page.get(from..to)
    });
    title.unwrap_or_default().trim().chars().take(80).collect()
}

/// The header of gperftools' CPU profile: the words 0, 3, 0 or 1 (Java), period, 0,
/// of 32 or 64 bits in either order of bytes.
fn is_binary_cpu(bytes: &[u8]) -> bool {
    let words = |width: usize, big: bool| -> Option<Vec<u64>> {
        let header = bytes.get(..5 * width)?;
        let word = |w: &[u8]| {
            let digit = |n: u64, &b: &u8| n << 8 | u64::from(b);
            if big {
                w.iter().fold(0, digit)
            } else {
                w.iter().rev().fold(0, digit)
            }
        };
        Some(header.chunks_exact(width).map(word).collect())
    };
    [(4, false), (4, true), (8, false), (8, true)]
        .into_iter()
        .filter_map(|(width, big)| words(width, big))
        .any(|w| matches!(w[..], [0, 3, 0 | 1, period, 0] if period > 0))
}

fn contains(line: &[u8], what: &[u8]) -> bool {
    line.windows(what.len()).any(|w| w == what)
}

/// The first bytes for a message to a person.
fn printable(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(24)];
    format!("\"{}\"", head.escape_ascii())
}

#[cfg(test)]
mod bombs;
#[cfg(test)]
mod tests;
