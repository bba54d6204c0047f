use std::fmt;

use memtrace_model::OTHER;

/// Why nothing of the input is usable.
///
/// Sorted by who must act: the one who chose the input, the one who produced it,
/// the one who set the limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Choose another source: this is a web page (a login form, a proxy's message).
    #[error("this is HTML, not a profile{}", titled(.title))]
    Html {
        /// The page's title, empty when it has none.
        title: String,
    },
    /// Choose another source: this is nothing that is known here.
    #[error("not a profile: it starts with {start}")]
    NotAProfile {
        /// The first bytes, printable.
        start: String,
    },
    /// Choose another source: the form is known, and it has no heap data.
    #[error("{what} is not supported: it has no heap data")]
    Unsupported {
        /// What the input is.
        what: &'static str,
    },
    /// Choose another process or file: this is no program for Linux.
    #[error("not an ELF program: its file {start}")]
    NotAProgram {
        /// What it starts with, printable, or that it is empty.
        start: String,
    },
    /// Choose another process or file: this program is not in Go.
    #[error("{what}")]
    NotAGoProgram {
        /// What it is instead, as a noun phrase.
        what: String,
    },
    /// Build it with another Go, or for another machine: a Go program that cannot be read.
    #[error("{what}")]
    UnsupportedGo {
        /// What it is, as a noun phrase, and what can be read.
        what: String,
    },
    /// Allow more memory, or choose a machine that has more.
    #[error(
        "a Go program of {objects} objects: reading them takes {needed_mib} MiB of memory, and \
         {allowed_mib} MiB are allowed or free"
    )]
    TooManyObjects {
        /// Places for objects.
        objects: u64,
        /// What they take, MiB.
        needed_mib: u64,
        /// What may be used, MiB.
        allowed_mib: u64,
    },
    /// Choose another file: the executable contradicts itself.
    #[error("a program whose file is damaged: {what}")]
    DamagedProgram {
        /// What is wrong.
        what: String,
    },
    /// Its runtime is of a form that is not known, or memory of another process was given.
    #[error("a Go program whose runtime was not found: {what}")]
    RuntimeNotFound {
        /// What was sought.
        what: String,
    },
    /// The runtime's own tables contradict themselves.
    #[error("a Go program whose runtime's tables are damaged: {what}")]
    DamagedRuntime {
        /// What is wrong.
        what: String,
    },
    /// It ended, or the copy of it did, or it was not of one piece.
    #[error("a Go program whose memory could not be read at {address:#x}")]
    UnreadableMemory {
        /// The first address that was needed.
        address: u64,
    },
    /// There are more objects or pointers than can be numbered.
    #[error("a Go program whose heap is too large: {what}")]
    HeapTooLarge {
        /// What there is too much of.
        what: &'static str,
    },
    /// The program never asks for its heap profile, or set `MemProfileRate` to 0.
    #[error("a Go program whose heap profile is off")]
    HeapProfileOff,
    /// The system does not give the executable.
    #[error("a program whose file cannot be read: {what}")]
    UnreadableProgram {
        /// What the system says.
        what: String,
    },
    /// Ask the producer again: there is nothing at all.
    #[error("the profile is empty: no byte was received")]
    Empty,
    /// Ask the producer again: nothing before the damage is usable.
    #[error("the profile is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// Split the file: profiles of one process must not be added up.
    #[error("several profiles in one file; give them one by one")]
    Concatenated,
    /// Raise the limit, or distrust the input.
    #[error("more than {limit} bytes after decompression")]
    TooLarge {
        /// The limit that was passed.
        limit: u64,
    },
}

fn titled(title: &str) -> String {
    if title.is_empty() {
        String::new()
    } else {
        format!(" (its title is {title:?})")
    }
}

/// What was wrong with input that could be read in spite of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The compressed data end early or are corrupt; what came before was read.
    Compression {
        /// What the decompressor says.
        what: String,
    },
    /// Reading stopped at the limit of decompressed bytes.
    Limit {
        /// The limit.
        limit: u64,
    },
    /// The last field has fewer bytes than it announces.
    Truncated {
        /// Offset in the uncompressed data where the field starts.
        offset: u64,
    },
    /// Bytes that are no field of a message; the rest was not read.
    Garbage {
        /// Offset in the uncompressed data.
        offset: u64,
    },
    /// Parts that contradict themselves were left out.
    Dropped {
        /// What was left out.
        what: &'static str,
        /// How many.
        count: u64,
    },
    /// References to something that is not there.
    Dangling {
        /// What is referred to.
        what: &'static str,
        /// How many references.
        count: u64,
    },
    /// Two definitions of one id; the first one counts.
    Duplicate {
        /// What is defined twice.
        what: &'static str,
        /// How many definitions were ignored.
        count: u64,
    },
    /// Text that is not UTF-8; the bad bytes were replaced.
    Encoding {
        /// How many strings.
        count: u64,
    },
    /// Samples carry another number of values than there are sample types.
    SampleTypes {
        /// Sample types.
        types: usize,
        /// Values of a sample.
        values: usize,
    },
    /// Lines of a text profile that make no sense; they were left out.
    Lines {
        /// Number of the first such line, counted from 1.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The profile is beyond what one may cost: its lightest samples became one row `[other]`.
    Folded {
        /// How many samples.
        samples: u64,
    },
    /// Stacks that are deeper than any program's were cut at their root.
    Deep {
        /// How many stacks.
        count: u64,
        /// Frames that each of them kept.
        deepest: u64,
    },
    /// Texts that together are too long for the size of the profile were left out.
    Nameless {
        /// Entries that have no text now.
        count: u64,
    },
    /// Single texts that no name is as long as; they were cut.
    Long {
        /// How many.
        count: u64,
    },
    /// A part of a heap could not be read; the rest was.
    Heap {
        /// What is missing.
        what: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compression { what } => write!(
                f,
                "the compressed data are damaged ({what}); what came before was read"
            ),
            Self::Limit { limit } => {
                write!(f, "reading stopped after {limit} decompressed bytes")
            }
            Self::Truncated { offset } => {
                write!(f, "the profile ends within a field (at byte {offset})")
            }
            Self::Garbage { offset } => {
                write!(
                    f,
                    "what follows byte {offset} is no profile and was not read"
                )
            }
            Self::Dropped { what, count } => write!(f, "{count} {what} left out"),
            Self::Dangling { what, count } => {
                write!(
                    f,
                    "{count} references to {what} that the profile does not hold"
                )
            }
            Self::Duplicate { what, count } => {
                write!(
                    f,
                    "{count} {what} with an id that is taken; the first one counts"
                )
            }
            Self::Encoding { count } => {
                write!(f, "{count} strings are not UTF-8; bad bytes were replaced")
            }
            Self::SampleTypes { types, values } => write!(
                f,
                "samples have {values} values, but there are {types} sample types; \
                 only what matches was kept"
            ),
            Self::Folded { samples } => write!(
                f,
                "the profile is too large: the heaviest stacks were kept, and {samples} samples \
                 of the others are one row {OTHER}"
            ),
            Self::Deep { count, deepest } => write!(
                f,
                "{count} stacks are deeper than {deepest} frames; what called them is {OTHER}"
            ),
            Self::Nameless { count } => write!(
                f,
                "the names of the profile are too long: {count} entries are without theirs"
            ),
            Self::Long { count } => write!(f, "{count} strings are too long and were cut"),
            Self::Heap { what } => f.write_str(what),
            Self::Lines { first, count } => write!(
                f,
                "{count} lines make no sense and were left out (the first is line {first})"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_each() {
        let errors = [
            Error::Html {
                title: String::new(),
            },
            Error::Html {
                title: "Sign in".into(),
            },
            Error::NotAProfile {
                start: "\"PK\"".into(),
            },
            Error::Unsupported {
                what: "a thread dump",
            },
            Error::NotAProgram {
                start: "is empty".into(),
            },
            Error::NotAGoProgram {
                what: "a Python program, not a Go program".into(),
            },
            Error::UnsupportedGo {
                what: "a 32-bit Go program (386): memtrace reads 64-bit ones only".into(),
            },
            Error::TooManyObjects {
                objects: 5,
                needed_mib: 7,
                allowed_mib: 3,
            },
            Error::DamagedProgram {
                what: "no code".into(),
            },
            Error::RuntimeNotFound {
                what: "runtime.mheap_".into(),
            },
            Error::DamagedRuntime {
                what: "the table of spans".into(),
            },
            Error::UnreadableMemory { address: 4096 },
            Error::HeapTooLarge { what: "objects" },
            Error::HeapProfileOff,
            Error::UnreadableProgram {
                what: "Permission denied".into(),
            },
            Error::Empty,
            Error::Damaged {
                what: "corrupt deflate stream".into(),
            },
            Error::Concatenated,
            Error::TooLarge { limit: 5 },
        ];
        let warnings = [
            Warning::Compression {
                what: "early end".into(),
            },
            Warning::Limit { limit: 5 },
            Warning::Truncated { offset: 5 },
            Warning::Garbage { offset: 5 },
            Warning::Dropped {
                what: "samples",
                count: 1,
            },
            Warning::Dangling {
                what: "locations",
                count: 1,
            },
            Warning::Duplicate {
                what: "locations",
                count: 1,
            },
            Warning::Encoding { count: 1 },
            Warning::SampleTypes {
                types: 1,
                values: 2,
            },
            Warning::Lines { first: 1, count: 2 },
            Warning::Folded { samples: 3 },
            Warning::Deep {
                count: 1,
                deepest: 2,
            },
            Warning::Nameless { count: 1 },
            Warning::Long { count: 1 },
            Warning::Heap {
                what: "5 spans overlap others".into(),
            },
        ];
        let lines: Vec<String> = errors
            .iter()
            .map(ToString::to_string)
            .chain(warnings.iter().map(ToString::to_string))
            .collect();
        assert_eq!(lines[0], "this is HTML, not a profile");
        assert_eq!(
            lines[1],
            "this is HTML, not a profile (its title is \"Sign in\")"
        );
        for line in lines {
            assert!(!line.is_empty() && !line.contains('\n'), "{line}");
        }
    }
}
