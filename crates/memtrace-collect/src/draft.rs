//! A file that comes to be whole or not at all, readable for this user only.
//!
//! It has no name until it is whole: whatever ends this program, no half file stays.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use rustix::io::Errno;

/// A file that is being written.
#[derive(Debug)]
pub struct Draft {
    file: File,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Nameless,
    /// This file system has no nameless files: the name it has for now.
    Named(PathBuf),
    /// What cannot be replaced, or a draft that has its name.
    Done,
}

impl Draft {
    /// Begins a file that is to be called `path`.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> io::Result<Self> {
        // What is not a file itself (a device, a pipe, a link) is written to, and stays.
        if std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            let file = File::options()
                .write(true)
                .truncate(true)
                .create(true)
                .open(path)?;
            let state = State::Done;
            return Ok(Self { file, state });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        match open(folder, flags | OFlags::TMPFILE, mode) {
            Ok(file) => Ok(Self {
                file: file.into(),
                state: State::Nameless,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let name = for_now(path);
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                Ok(Self {
                    file: open(&name, flags, mode)?.into(),
                    state: State::Named(name),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// It is whole: gives it its name, in the place of what is called so.
    ///
    /// # Errors
    /// The system's; nothing is left of it then.
    pub fn replace(mut self, path: &Path) -> io::Result<()> {
        if self.state == State::Nameless {
            let name = for_now(path);
            self.link(&name)?;
            self.state = State::Named(name);
        }
        if let State::Named(name) = &self.state {
            std::fs::rename(name, path)?;
            self.state = State::Done;
        }
        Ok(())
    }

    /// It is whole: gives it a name that is free.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and the system's; it has no name then, and another
    /// may be tried.
    pub fn name(&mut self, path: &Path) -> io::Result<()> {
        match &self.state {
            State::Nameless => self.link(path)?,
            State::Named(_) if path.exists() => return Err(io::ErrorKind::AlreadyExists.into()),
            State::Named(name) => std::fs::rename(name, path)?,
            State::Done => {}
        }
        self.state = State::Done;
        Ok(())
    }

    fn link(&self, name: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let State::Named(name) = &self.state {
            let _ = std::fs::remove_file(name);
        }
    }
}

/// A name beside that no other draft has.
fn for_now(path: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{number}.part", std::process::id()));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_until_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut draft = Draft::of(&path).unwrap();
        draft.file().write_all(b"half").unwrap();
        assert!(names(folder.path()).is_empty());
        drop(draft);
        assert!(names(folder.path()).is_empty());

        for text in ["first", "second"] {
            let mut draft = Draft::of(&path).unwrap();
            draft.file().write_all(text.as_bytes()).unwrap();
            draft.replace(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(
            (names(folder.path()), mode & 0o777),
            (vec!["a".into()], 0o600)
        );
    }

    #[test]
    fn a_name_that_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (taken, free) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&taken, "theirs").unwrap();
        let mut draft = Draft::of(&taken).unwrap();
        let refused = draft.name(&taken).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        draft.name(&free).unwrap();
        drop(draft);
        assert_eq!(names(folder.path()), ["a", "b"]);
        assert_eq!(std::fs::read_to_string(&taken).unwrap(), "theirs");
    }

    #[test]
    fn a_device_stays_one() {
        let null = Path::new("/dev/null");
        let mut draft = Draft::of(null).unwrap();
        draft.file().write_all(b"x").unwrap();
        draft.replace(null).unwrap();
        let kind = std::fs::metadata(null).unwrap().file_type();
        assert!(kind.is_char_device());
    }

    #[test]
    fn a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::fs::write(&file, "what was there before").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let mut draft = Draft::of(&link).unwrap();
        draft.file().write_all(b"new").unwrap();
        draft.replace(&link).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn no_such_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Draft::of(&folder.path().join("none/a")).is_err());
    }
}
