//! `cargo xtask layouts`: writes the table by which the runtime of a stripped Go program
//! is read, from the debug information that each release gives to the same program.

use memtrace_formats::goheap::table_of_layouts;

use crate::matrix::VERSIONS;
use crate::tools::{Outcome, go_command, go_version, root, run, target_dir};

pub(crate) fn write() -> Outcome {
    let formats = root().join("crates/memtrace-formats");
    let mut programs = Vec::new();
    for version in VERSIONS {
        let go = go_version(version)?;
        let program = target_dir().join(format!("layouts/{version}"));
        run(go_command(&go, &formats.join("tests/fixtures/goimage"))
            .env("GOCACHE", target_dir().join(format!("go-cache-{version}")))
            .env("CGO_ENABLED", "0")
            .args(["build", "-o"])
            .arg(&program)
            .arg("."))?;
        let bytes = std::fs::read(&program).map_err(|e| format!("{}: {e}", program.display()))?;
        programs.push(bytes);
    }
    let table = table_of_layouts(&programs).map_err(|e| e.to_string())?;
    let path = formats.join("src/goheap/layouts.tsv");
    std::fs::write(&path, table).map_err(|e| format!("{}: {e}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
