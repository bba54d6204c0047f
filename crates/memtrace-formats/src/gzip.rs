use std::borrow::Cow;
use std::io::Read;

use flate2::Compression;
use flate2::read::{GzEncoder, MultiGzDecoder};

use crate::Error;

/// Bounds on what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes that compressed data may unpack to.
    pub max_decompressed: u64,
    /// Bytes that the profile, and what it takes to follow its samples, may take in memory.
    /// Beyond, the lightest samples are folded into one, and further definitions are left out.
    /// A text form, which is whole in memory, has half of it, and what it becomes the other.
    pub max_memory: usize,
}

impl Default for Limits {
    /// For a file that somebody named: 1 GiB, some ten million samples, and what they take.
    fn default() -> Self {
        Self {
            max_decompressed: 1 << 30,
            max_memory: 4 << 30,
        }
    }
}

impl Limits {
    /// For one of many services that are watched: 32 MiB to read and 16 MiB to hold, a heap
    /// profile of 20,000 stacks. The largest programs have half of that.
    #[must_use]
    pub fn live() -> Self {
        Self {
            max_decompressed: 32 << 20,
            max_memory: 16 << 20,
        }
    }
}

/// Why a [`Window`] has no more bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All there was.
    End,
    /// The compressed data are damaged.
    Corrupt(String),
    /// The limit was reached.
    Limit,
}

pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// A part of the uncompressed data that moves forward: the reader consumes what it
/// understood and asks for more, so that a profile is never whole in memory.
pub(crate) enum Window<'a> {
    /// The input is not compressed; all of it is here.
    Plain { bytes: &'a [u8] },
    /// The input is compressed.
    Gzip(Box<Inflate<'a>>),
}

pub(crate) struct Inflate<'a> {
    decoder: MultiGzDecoder<&'a [u8]>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    left: u64,
    /// Bytes that the buffer may have, for one field.
    longest: usize,
    stop: Option<Stop>,
}

/// First size of the buffer; it grows only when one field is larger.
const WINDOW: usize = 256 << 10;
/// A single field takes this part of the memory at most.
const FIELDS: usize = 8;

impl<'a> Window<'a> {
    pub(crate) fn new(bytes: &'a [u8], limits: &Limits) -> Self {
        if is_gzip(bytes) {
            Self::Gzip(Box::new(Inflate {
                decoder: MultiGzDecoder::new(bytes),
                buffer: vec![0; WINDOW],
                start: 0,
                end: 0,
                left: limits.max_decompressed,
                longest: (limits.max_memory / FIELDS).max(WINDOW),
                stop: None,
            }))
        } else {
            Self::Plain { bytes }
        }
    }

    /// What is here and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain { bytes } => bytes,
            Self::Gzip(g) => &g.buffer[g.start..g.end],
        }
    }

    /// Gives up the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        match self {
            Self::Plain { bytes } => *bytes = bytes.get(count..).unwrap_or(&[]),
            Self::Gzip(g) => g.start = (g.start + count).min(g.end),
        }
    }

    /// Makes more bytes visible; says why when there are none.
    pub(crate) fn more(&mut self) -> Result<(), Stop> {
        match self {
            Self::Plain { .. } => Err(Stop::End),
            Self::Gzip(g) => g.more(),
        }
    }
}

impl Inflate<'_> {
    fn more(&mut self) -> Result<(), Stop> {
        if let Some(stop) = &self.stop {
            return Err(stop.clone());
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // One field fills the buffer. It doubles only after as many bytes came.
            if self.buffer.len() >= self.longest {
                self.stop = Some(Stop::Limit);
                return Err(Stop::Limit);
            }
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let before = self.end;
        while self.end < self.buffer.len() {
            if self.left == 0 {
                // The limit itself is fine; one byte more is not.
                self.stop = Some(match self.decoder.read(&mut [0u8]) {
                    Ok(0) => Stop::End,
                    Ok(_) => Stop::Limit,
                    Err(e) => Stop::Corrupt(e.to_string()),
                });
                break;
            }
            let room = (self.buffer.len() - self.end)
                .min(usize::try_from(self.left).unwrap_or(usize::MAX));
            match self
                .decoder
                .read(&mut self.buffer[self.end..self.end + room])
            {
                Ok(0) => {
                    self.stop = Some(Stop::End);
                    break;
                }
                Ok(n) => {
                    self.end += n;
                    self.left -= n as u64;
                }
                Err(e) => {
                    self.stop = Some(Stop::Corrupt(e.to_string()));
                    break;
                }
            }
        }
        match &self.stop {
            Some(stop) if self.end == before => Err(stop.clone()),
            _ => Ok(()),
        }
    }
}

/// `bytes` as one gzip member.
pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() / 4 + 64);
    // Reading from a slice into a vector: neither side can fail.
    let _ = GzEncoder::new(bytes, Compression::default()).read_to_end(&mut out);
    out
}

/// The text of `window`, `most` bytes of it at most, and why it ended.
pub(crate) fn rest<'a>(window: &mut Window<'a>, most: usize) -> (Cow<'a, [u8]>, Stop) {
    if let Window::Plain { bytes } = window {
        let all = std::mem::take(bytes);
        return match all.get(..most) {
            Some(some) if some.len() < all.len() => (Cow::Borrowed(some), Stop::Limit),
            _ => (Cow::Borrowed(all), Stop::End),
        };
    }
    let mut all = Vec::new();
    loop {
        let bytes = window.bytes();
        let some = bytes.len().min(most - all.len());
        all.extend_from_slice(&bytes[..some]);
        if some < bytes.len() {
            return (Cow::Owned(all), Stop::Limit);
        }
        window.consume(some);
        if let Err(stop) = window.more() {
            return (Cow::Owned(all), stop);
        }
    }
}

/// What to say when `stop` came before anything usable.
pub(crate) fn nothing_usable(stop: &Stop, limits: &Limits) -> Option<Error> {
    match stop {
        Stop::End => None,
        Stop::Corrupt(what) => Some(Error::Damaged { what: what.clone() }),
        Stop::Limit => Some(Error::TooLarge {
            limit: limits.max_decompressed,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], limit: u64) -> (usize, Stop) {
        let mut window = Window::new(
            bytes,
            &Limits {
                max_decompressed: limit,
                ..Limits::default()
            },
        );
        let (text, stop) = rest(&mut window, usize::MAX);
        (text.len(), stop)
    }

    #[test]
    fn limit_counts_decompressed_bytes() {
        let packed = compress(&vec![7; 3 << 20]);
        assert_eq!(all(&packed, 3 << 20), (3 << 20, Stop::End));
        assert_eq!(all(&packed, (3 << 20) - 1), ((3 << 20) - 1, Stop::Limit));
        assert_eq!(all(&packed, 0), (0, Stop::Limit));
    }

    #[test]
    fn damage_keeps_what_came_before() {
        let data: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
        let packed = compress(&data);
        let (n, stop) = all(&packed[..packed.len() / 2], u64::MAX);
        assert!(n > 100_000 && n < data.len());
        assert!(matches!(stop, Stop::Corrupt(_)));
        let (n, stop) = all(&packed[..5], u64::MAX);
        assert_eq!(n, 0);
        assert!(matches!(stop, Stop::Corrupt(_)));
    }

    #[test]
    fn members_are_one_stream_as_gzip_reads_them() {
        let mut two = compress(b"ab");
        two.extend(compress(b"cd"));
        assert_eq!(all(&two, 100), (4, Stop::End));
        assert_eq!(all(b"plain", 0), (5, Stop::End));
    }
}
