use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use memtrace_model::Time;

/// Which build of which program a process runs: two processes with the same
/// build id have the same code addresses and types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exe {
    /// Its path when it was started.
    pub path: PathBuf,
    /// Whether the file was replaced or removed since.
    pub deleted: bool,
    /// Bytes of the file.
    pub size: u64,
    /// When the file was last changed.
    pub modified: Time,
    /// The linker's id: GNU's in hex, or Go's as text.
    pub build_id: Option<String>,
}

impl Exe {
    /// Reads `/proc/PID/exe`, which stays readable after the file is removed.
    pub(super) fn read(link: &Path) -> Option<Self> {
        let target = std::fs::read_link(link).ok()?;
        let text = target.to_string_lossy();
        let (path, deleted) = match text.strip_suffix(" (deleted)") {
            Some(path) => (PathBuf::from(path), true),
            None => (target.clone(), false),
        };
        let meta = std::fs::metadata(link).ok()?;
        let modified = meta
            .modified()
            .ok()
            .and_then(|m| m.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        let build_id = File::open(link).ok().and_then(|file| build_id(&file));
        Some(Self {
            path,
            deleted,
            size: meta.len(),
            modified: Time(modified),
            build_id,
        })
    }
}

/// The build id from the notes of a 64-bit little-endian ELF file.
fn build_id(file: &File) -> Option<String> {
    const MAX_HEADERS: usize = 128;
    const MAX_NOTES: usize = 64 * 1024;
    const PT_NOTE: u32 = 4;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let offset = u64_at(&head, 32)?;
    let size = usize::from(u16_at(&head, 54)?);
    let count = usize::from(u16_at(&head, 56)?).min(MAX_HEADERS);
    if size < 56 {
        return None;
    }
    let mut go = None;
    for i in 0..count {
        let mut header = [0; 56];
        file.read_exact_at(&mut header, offset.checked_add((i * size) as u64)?)
            .ok()?;
        if u32_at(&header, 0)? != PT_NOTE {
            continue;
        }
        let length = usize::try_from(u64_at(&header, 32)?)
            .unwrap_or(MAX_NOTES)
            .min(MAX_NOTES);
        let mut notes = vec![0; length];
        if file.read_exact_at(&mut notes, u64_at(&header, 8)?).is_err() {
            continue;
        }
        match note_id(&notes) {
            Some((true, id)) => return Some(id),
            Some((false, id)) => go = Some(id),
            None => {}
        }
    }
    go
}

/// The first id among the notes of one segment, and whether it is GNU's.
fn note_id(mut notes: &[u8]) -> Option<(bool, String)> {
    const NT_GNU_BUILD_ID: u32 = 3;
    const NT_GO_BUILD_ID: u32 = 4;
    let mut go = None;
    while notes.len() >= 12 {
        let name_size = u32_at(notes, 0)? as usize;
        let desc_size = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let desc_at = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let next = desc_at.checked_add(desc_size.checked_next_multiple_of(4)?)?;
        let Some(name) = notes.get(12..12_usize.checked_add(name_size)?) else {
            break;
        };
        let Some(desc) = notes.get(desc_at..desc_at.checked_add(desc_size)?) else {
            break;
        };
        match (name, kind) {
            (b"GNU\0", NT_GNU_BUILD_ID) if desc.len() <= 64 => {
                return Some((true, desc.iter().map(|b| format!("{b:02x}")).collect()));
            }
            (b"Go\0\0", NT_GO_BUILD_ID) if desc.len() <= 256 => {
                let text = String::from_utf8_lossy(desc);
                go = Some((false, crate::scrape::sanitise(&text, 256)));
            }
            _ => {}
        }
        notes = notes.get(next..).unwrap_or_default();
    }
    go
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [name.len() as u32, desc.len() as u32, kind] {
            out.extend(n.to_le_bytes());
        }
        for part in [name, desc] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn ids_in_notes() {
        let gnu = note(b"GNU\0", 3, &[0xde, 0xad, 0x01]);
        let go = note(b"Go\0\0", 4, b"abc/def");
        let other = note(b"GNU\0", 1, &[0; 16]);
        assert_eq!(
            note_id(&[other.clone(), gnu.clone()].concat()),
            Some((true, "dead01".into()))
        );
        assert_eq!(note_id(&go), Some((false, "abc/def".into())));
        assert_eq!(note_id(&[go, gnu].concat()), Some((true, "dead01".into())));
        assert_eq!(note_id(&other), None);
        assert_eq!(note_id(&[0xff; 64]), None);
        assert_eq!(note_id(&[0; 13]), None);
    }

    #[test]
    fn the_running_test_is_an_elf_file() {
        let exe = Exe::read(Path::new("/proc/self/exe")).unwrap();
        assert_eq!(exe.path, std::env::current_exe().unwrap());
        assert!(exe.modified.0 > 1_600_000_000_000);
    }

    #[test]
    fn damaged_files_have_no_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in [&b""[..], b"#!/bin/sh\n", &[0x7f; 200], b"\x7fELF\x02\x01"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(build_id(&File::open(&path).unwrap()), None);
        }
        let mut elf = vec![0xff; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        std::fs::write(&path, &elf).unwrap();
        assert_eq!(build_id(&File::open(&path).unwrap()), None);
    }
}
