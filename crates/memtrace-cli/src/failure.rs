use std::fmt::Display;
use std::io;

/// Why the program ends with something else than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit 1: it did not work.
    Failed(String),
    /// Exit 2: the user asked for something that cannot be.
    Usage(String),
    /// Exit 3: the target cannot be reached (any more).
    TargetLost(String),
    /// Exit 10: a leak was found and `--fail-on leak` was given.
    LeakFound,
    /// The reader of our output went away.
    OutputClosed,
}

impl Failure {
    pub(crate) fn failed(what: impl Display, error: impl Display) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::TargetLost(_) => 3,
            Self::LeakFound => 10,
            Self::OutputClosed => 0,
        }
    }

    /// The line for stderr; nothing where the output has said it already.
    pub(crate) fn line(&self) -> Option<&str> {
        match self {
            Self::Failed(line) | Self::Usage(line) | Self::TargetLost(line) => Some(line),
            Self::LeakFound | Self::OutputClosed => None,
        }
    }
}

/// Errors of writing to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::failed("writing", error)
        }
    }
}
