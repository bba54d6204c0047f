//! The functions and calls of programs that Go builds here, in every form that its
//! linker gives them.

#![allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_formats::goexe::{self, Architecture, Program};

/// Builds the fixture; `None`, with a message, where Go or a C compiler is missing.
fn build(folder: &Path, name: &str, env: &[(&str, &str)], flags: &[&str]) -> Option<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let program = folder.join(name);
    let built = Command::new(&go)
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg(".")
        .envs(env.iter().copied())
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gocalls"))
        .output();
    match built {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(why.contains("C compiler"), "{name}: {why}");
            eprintln!("skipped {name}: {why}");
            None
        }
        Err(error) => {
            eprintln!("skipped: {go:?}: {error}; set MEMTRACE_GO");
            None
        }
    }
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

/// What the fixture's functions take from a pool and put back.
fn check_types(program: &Path, known: bool) {
    let shown = program.display();
    let mut program = Program::read(File::open(program).unwrap()).unwrap();
    let users = ["main.parse", "main.parseDeferred", "main.(*command).fill"];
    let found = program.pointer_types(users.map(str::to_owned)).unwrap();
    if known {
        assert_eq!(found.len(), 2, "{shown}: {found:?}");
        for (user, types) in &found {
            assert_eq!(*types, names(&["*main.command"]), "{shown}: {user}");
        }
    } else {
        assert!(found.is_empty(), "{shown}: {found:?}");
    }
}

fn check(program: &Path, cgo: bool) {
    let shown = program.display();
    let mut program = Program::read(File::open(program).unwrap()).unwrap();
    assert!(program.len() > 1000, "{shown}: {}", program.len());

    let calls = program.calls("main.parse").unwrap();
    for callee in [
        "sync.(*Pool).Get",
        "sync.(*Pool).Put",
        "main.(*command).fill",
    ] {
        assert!(calls.contains(callee), "{shown}: {calls:?}");
    }
    let calls = program.calls("main.(*command).fill").unwrap();
    assert!(
        calls.iter().any(|c| c.starts_with("runtime.mapassign")),
        "{shown}: {calls:?}"
    );
    assert!(
        !calls.iter().any(|c| c.starts_with("sync.")),
        "{shown}: {calls:?}"
    );
    assert_eq!(program.calls("main.nothing").unwrap(), BTreeSet::new());

    let wanted = |name: &str| {
        matches!(name, "sync.(*Pool).Put" | "runtime.SetFinalizer") || name.contains("_Cfunc_")
    };
    let mut callers = program.callers(wanted).unwrap();
    callers.retain(|caller, _| caller.starts_with("main."));
    assert_eq!(
        callers.remove("main.parse"),
        Some(names(&["sync.(*Pool).Put"])),
        "{shown}"
    );
    // A deferred call is a function of its own; Go 1.21 named it like a literal.
    let deferred = callers
        .remove("main.parseDeferred.deferwrap1")
        .or_else(|| callers.remove("main.parseDeferred.func1"));
    assert_eq!(deferred, Some(names(&["sync.(*Pool).Put"])), "{shown}");
    assert_eq!(
        callers.remove("main.newBuffer"),
        Some(names(&["runtime.SetFinalizer"])),
        "{shown}"
    );
    if cgo {
        let native = program.calls("main.native").unwrap();
        // C.malloc is inlined down to what never gives nil.
        let malloc = native.contains("main._cgo_cmalloc");
        assert!(malloc, "{shown}: {native:?}");
        // Some versions call from a literal that cgo writes.
        let frees = |(caller, callees): (&String, &BTreeSet<String>)| {
            caller.starts_with("main.native") && callees.contains("main._Cfunc_free")
        };
        assert!(callers.iter().any(frees), "{shown}: {callers:?}");
        callers.retain(|caller, _| {
            !caller.starts_with("main.native") && !caller.starts_with("main._C")
        });
    }
    assert!(callers.is_empty(), "{shown}: {callers:?}");
}

#[test]
fn calls_of_a_program_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let pure = ("CGO_ENABLED", "0");
    let cgo = ("CGO_ENABLED", "1");
    let arm = [pure, ("GOARCH", "arm64")];
    let stripped = "-ldflags=-s -w";
    for (name, env, flags, with_cgo) in [
        ("pure", &[pure][..], &[][..], false),
        ("stripped", &[pure], &[stripped], false),
        ("pie", &[pure], &["-buildmode=pie", stripped], false),
        ("cgo", &[cgo], &[], true),
        (
            "external",
            &[cgo],
            &["-ldflags=-s -w -linkmode=external"],
            true,
        ),
        (
            "external-pie",
            &[cgo],
            &["-buildmode=pie", "-ldflags=-s -w -linkmode=external"],
            true,
        ),
        ("arm64", &arm, &[stripped], false),
        ("arm64-pie", &arm, &["-buildmode=pie"], false),
    ] {
        if let Some(program) = build(folder.path(), name, env, flags) {
            check(&program, with_cgo);
            if name != "external-pie" {
                check_types(&program, !name.starts_with("arm64"));
            }
        }
    }
}

/// Without section headers there are still segments; `sstrip` takes them away.
#[test]
fn sections_are_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = build(
        folder.path(),
        "bare",
        &[("CGO_ENABLED", "0")],
        &["-ldflags=-s -w"],
    ) else {
        return;
    };
    without_sections(&program, true);
    check(&program, false);
}

/// Addresses of a running position-independent program are told by its mappings.
#[test]
fn addresses_of_a_process_have_names() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = build(
        folder.path(),
        "pie",
        &[("CGO_ENABLED", "0")],
        &["-buildmode=pie"],
    ) else {
        return;
    };
    let program = Program::read(File::open(&path).unwrap()).unwrap();
    // A mapping of the whole file at a page far away.
    let mapped = 0x5555_5555_0000;
    let bias = program.bias(mapped, 0);
    let entry = elf_entry(&std::fs::read(&path).unwrap());
    assert_eq!(program.function_at(entry), Some("_rt0_amd64_linux"));
    assert_eq!(program.function_at(entry.wrapping_add(bias)), None);
    assert_eq!(program.function_at(0), None);
    assert_eq!(program.function_at(u64::MAX), None);
}

fn elf_entry(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[24..32].try_into().unwrap())
}

/// Go's compiler is a large program whose functions call others more often than the one
/// that grows their stack.
#[test]
fn a_large_program() {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let Ok(path) = Command::new(go).args(["tool", "-n", "compile"]).output() else {
        eprintln!("skipped: no Go; set MEMTRACE_GO");
        return;
    };
    let path = String::from_utf8(path.stdout).unwrap();
    let mut program = Program::read(File::open(path.trim()).unwrap()).unwrap();
    let callers = program.callers(|name| name == "sync.(*Pool).Put").unwrap();
    assert!(callers.len() > 10, "{callers:?}");
}

#[test]
fn other_files_are_refused() {
    for bytes in [
        &b""[..],
        b"#!/bin/sh\n",
        b"\x7fELF\x02\x01\x01",
        &[0x7f; 4096],
    ] {
        assert!(Program::read(std::io::Cursor::new(bytes)).is_err());
    }
    let me = File::open(std::env::current_exe().unwrap()).unwrap();
    let error = Program::read(me).unwrap_err().to_string();
    assert_eq!(
        error,
        "a program with no table of functions, not a Go program"
    );
}

fn look(path: impl AsRef<Path>) -> Result<goexe::GoProgram, String> {
    goexe::look(File::open(path).unwrap()).map_err(|error| error.to_string())
}

/// Without section headers, as `sstrip` leaves a program.
fn without_sections(path: &Path, is_64_bit: bool) {
    let mut bytes = std::fs::read(path).unwrap();
    // e_shoff, e_shnum and e_shstrndx.
    let (offset, numbers) = if is_64_bit {
        (40..48, 60..64)
    } else {
        (32..36, 48..52)
    };
    bytes[offset].fill(0);
    bytes[numbers].fill(0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_look_tells_go_programs_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let pure = ("CGO_ENABLED", "0");
    let cgo = ("CGO_ENABLED", "1");
    let arm = [pure, ("GOARCH", "arm64")];
    let external = "-ldflags=-s -w -linkmode=external";
    let fixed = "-ldflags=-linkmode=external -extldflags=-static";
    for (name, env, flags, instrumented) in [
        ("pure", &[pure][..], &[][..], None),
        ("stripped", &[pure], &["-ldflags=-s -w"], None),
        ("pie", &[pure], &["-buildmode=pie"], None),
        ("cgo", &[cgo], &[external], None),
        ("cgo-pie", &[cgo], &["-buildmode=pie", external], None),
        ("cgo-static", &[cgo], &[fixed], None),
        ("race", &[cgo], &["-race"], Some("race")),
        ("asan", &[cgo], &["-asan"], Some("asan")),
        ("arm64", &arm, &["-ldflags=-s -w"], None),
    ] {
        let Some(path) = build(folder.path(), name, env, flags) else {
            continue;
        };
        for sections in [true, false] {
            if !sections {
                without_sections(&path, true);
            }
            let program = look(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            let version = program.version.unwrap_or_default();
            assert!(version.contains("go1."), "{name}: {version}");
            assert_eq!(program.instrumented, instrumented, "{name}");
            let is_arm = program.architecture == Architecture::Arm64;
            assert_eq!(is_arm, name == "arm64", "{name}");
        }
    }
}

#[test]
fn a_look_names_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    for (arch, is_64_bit, line) in [
        (
            "386",
            false,
            "a 32-bit Go program (386): memtrace reads 64-bit ones only",
        ),
        (
            "arm",
            false,
            "a 32-bit Go program (arm): memtrace reads 64-bit ones only",
        ),
        (
            "mips",
            false,
            "a 32-bit Go program (mips): memtrace reads 64-bit ones only",
        ),
        (
            "s390x",
            true,
            "a Go program for s390x: memtrace reads those for amd64 and arm64 only",
        ),
    ] {
        let env = [("CGO_ENABLED", "0"), ("GOARCH", arch)];
        let Some(path) = build(folder.path(), arch, &env, &["-ldflags=-s -w"]) else {
            return;
        };
        assert_eq!(look(&path).unwrap_err(), line);
        without_sections(&path, is_64_bit);
        assert_eq!(look(&path).unwrap_err(), line, "without sections");
    }
    let Some(path) = build(folder.path(), "old", &[("CGO_ENABLED", "0")], &[]) else {
        return;
    };
    let bytes = std::fs::read(&path).unwrap();
    let magic = b"\xff Go buildinf:";
    let at = bytes.windows(magic.len()).position(|w| w == magic).unwrap();
    let version = at + 33;
    let mut old = bytes.clone();
    old[version..version + 6].copy_from_slice(b"go1.20");
    let error = goexe::look(std::io::Cursor::new(old)).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("a Go program built by go1.20"), "{error}");
    assert!(
        error.ends_with(": memtrace reads Go 1.21 and newer"),
        "{error}"
    );
    let mut ancient = bytes;
    ancient[at + 15] = 0;
    let error = goexe::look(std::io::Cursor::new(ancient)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a Go program built by a release before Go 1.18: memtrace reads Go 1.21 and newer"
    );
}

#[test]
fn a_look_names_what_is_not_go() {
    let me = std::env::current_exe().unwrap();
    assert_eq!(look(me).unwrap_err(), "a native program, not a Go program");
    for (program, language) in [("python3", "a Python program"), ("java", "a Java program")] {
        let Some(path) = running_file(program) else {
            eprintln!("skipped {program}: it is not here");
            continue;
        };
        assert_eq!(
            look(path).unwrap_err(),
            format!("{language}, not a Go program")
        );
    }
    let start = goexe::look(&mut std::io::Cursor::new(b"#!/bin/sh\necho"));
    assert_eq!(
        start.unwrap_err().to_string(),
        "not an ELF program: its file starts with \"#!/bin/sh\\necho\""
    );
    let empty = goexe::look(std::io::Cursor::new(b"")).unwrap_err();
    assert_eq!(empty.to_string(), "not an ELF program: its file is empty");
}

/// The executable that stands behind a name on the path, scripts and links followed.
fn running_file(name: &str) -> Option<PathBuf> {
    let ask = match name {
        "python3" => Command::new(name)
            .args(["-c", "import sys; print(sys.executable)"])
            .output(),
        _ => Command::new("which").arg(name).output(),
    };
    let ask = ask.ok().filter(|o| o.status.success())?;
    let path = String::from_utf8(ask.stdout).ok()?;
    std::fs::canonicalize(path.trim()).ok()
}

/// Whatever a file says of itself, a look ends, and allocates no more than the file has.
#[test]
fn a_look_survives_any_byte() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = build(folder.path(), "whole", &[("CGO_ENABLED", "0")], &[]) else {
        return;
    };
    let whole = std::fs::read(&path).unwrap();
    for end in [1, 16, 52, 63, 64, 65, 400, 4096, 1 << 20] {
        let _ = goexe::look(std::io::Cursor::new(&whole[..end]));
    }
    let start: Vec<u8> = whole[..64 + 56 * 8].to_vec();
    for at in 0..start.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = start.clone();
            bytes[at] = value;
            let _ = goexe::look(std::io::Cursor::new(bytes));
        }
    }
}
