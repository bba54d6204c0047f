use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use reqwest::header::HeaderValue;

use super::ScrapeError;

/// A token longer than this is a mistaken file.
const MAX_TOKEN: u64 = 16 * 1024;

/// Where the token is kept. Never the token itself: what is on a command line
/// is public on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenSource {
    /// No token is sent.
    #[default]
    None,
    /// The content of a file, without surrounding white space. Read again when
    /// the service refuses the token, so that a rotated token is picked up.
    File(PathBuf),
    /// The value of an environment variable of memtrace.
    Env(String),
}

/// A token on its way to a header; shows nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(pub(super) HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl TokenSource {
    /// Reads the token now.
    pub(super) fn read(&self) -> Result<Option<Token>, ScrapeError> {
        let (from, text) = match self {
            Self::None => return Ok(None),
            Self::File(path) => (format!("file {}", path.display()), read_file(path)),
            Self::Env(name) => (
                format!("variable {name}"),
                match std::env::var(name) {
                    Ok(text) => Ok(text),
                    Err(std::env::VarError::NotPresent) => Err("not set".to_owned()),
                    Err(std::env::VarError::NotUnicode(_)) => Err("not text".to_owned()),
                },
            ),
        };
        let value = text.and_then(|text| {
            let text = text.trim();
            if text.is_empty() {
                return Err("it is empty".to_owned());
            }
            // The parser's own error is dropped on purpose: it must not carry the value.
            let mut value = HeaderValue::from_str(text)
                .map_err(|_| "it holds characters that no header may carry".to_owned())?;
            value.set_sensitive(true);
            Ok(value)
        });
        match value {
            Ok(value) => Ok(Some(Token(value))),
            Err(reason) => Err(ScrapeError::Token { from, reason }),
        }
    }
}

fn read_file(path: &PathBuf) -> Result<String, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if meta.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_TOKEN + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_TOKEN {
        return Err(format!("longer than {MAX_TOKEN} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "not text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_trimmed_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "  s3cret-value\n").unwrap();
        let token = TokenSource::File(path).read().unwrap().unwrap();
        assert_eq!(token.0.to_str().unwrap(), "s3cret-value");
        for shown in [format!("{token:?}"), format!("{:?}", token.0)] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        assert!(TokenSource::None.read().unwrap().is_none());
    }

    #[test]
    fn unusable_tokens_are_explained_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (content, want) in [
            (&b" \n"[..], "empty"),
            (&b"s3cret\nsecond"[..], "no header"),
            (&[0xff, 0xfe][..], "not text"),
            (&[b'a'; 20_000][..], "longer than"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = TokenSource::File(path.clone()).read().unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"));
            assert!(error.is_fatal());
        }
        for source in [
            TokenSource::File(dir.path().join("none")),
            TokenSource::File(dir.path().to_owned()),
            TokenSource::Env("MEMTRACE_TEST_UNSET".to_owned()),
        ] {
            assert!(matches!(source.read(), Err(ScrapeError::Token { .. })));
        }
    }
}
