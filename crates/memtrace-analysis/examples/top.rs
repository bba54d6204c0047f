//! `top FILE [ROWS]`: the table of a profile in raw numbers, and nothing else. It is
//! what `cargo xtask bench pprof` measures beside `go tool pprof -top`.

use std::io::Write;
use std::process::ExitCode;

use memtrace_analysis::top::{Granularity, top};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(file) = args.next() else {
        eprintln!("usage: top FILE [ROWS]");
        return ExitCode::from(2);
    };
    let rows = args.next().and_then(|n| n.parse().ok()).unwrap_or(20);
    match print(&file, rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(file: &str, rows: usize) -> Result<(), Box<dyn std::error::Error>> {
    let parsed = memtrace_formats::pprof::parse(&std::fs::read(file)?)?;
    let profile = parsed.profile;
    let shown = profile.shown_sample_type().ok_or("no sample type")?;
    let table = top(&profile, shown, Granularity::Functions);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for row in table.rows.iter().take(rows) {
        writeln!(out, "{:>20} {:>20}  {}", row.flat, row.cum, row.name)?;
    }
    // The process ends here: giving back a million rows one by one is no work that
    // anyone waits for.
    out.flush()?;
    std::mem::forget(profile);
    Ok(())
}
