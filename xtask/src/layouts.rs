//! `cargo xtask layouts`: writes the table by which the runtime of a stripped Go program
//! is read, from the debug information that each release gives to the same program.

use memtrace_formats::goheap::table_of_layouts;

use crate::matrix::VERSIONS;
use crate::tools::{Outcome, go_command, go_version, root, run, target_dir};

/// Experiments that change the layout of a release.
const EXPERIMENTS: [(&str, &str); 5] = [
    ("1.24", "noswissmap"),
    ("1.25", "noswissmap"),
    ("1.25", "greenteagc"),
    ("1.26", "nogreenteagc"),
    ("1.27", "nogreenteagc"),
];

pub(crate) fn write() -> Outcome {
    let formats = root().join("crates/memtrace-formats");
    let mut programs = Vec::new();
    for version in VERSIONS {
        let go = go_version(version)?;
        let own = EXPERIMENTS.iter().filter(|(of, _)| version.starts_with(of));
        for experiment in [""]
            .into_iter()
            .chain(own.map(|(_, experiment)| *experiment))
        {
            let program = target_dir().join(format!("layouts/{version}{experiment}"));
            run(go_command(&go, &formats.join("tests/fixtures/goimage"))
                .env("GOCACHE", target_dir().join(format!("go-cache-{version}")))
                .env("GOEXPERIMENT", experiment)
                .env("CGO_ENABLED", "0")
                .args(["build", "-o"])
                .arg(&program)
                .arg("."))?;
            let bytes =
                std::fs::read(&program).map_err(|e| format!("{}: {e}", program.display()))?;
            programs.push(bytes);
        }
    }
    let table = table_of_layouts(&programs).map_err(|e| e.to_string())?;
    let path = formats.join("src/goheap/layouts.tsv");
    std::fs::write(&path, table).map_err(|e| format!("{}: {e}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
