//! The functions and calls of programs that Go builds here, in every form that its
//! linker gives them.

#![allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_formats::goexe::Program;

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
    let mut bytes = std::fs::read(&program).unwrap();
    // e_shoff, e_shnum and e_shstrndx.
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    std::fs::write(&program, &bytes).unwrap();
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
    assert!(error.contains("no table of functions"), "{error}");
}
