//! `memtrace convert`: the same profile in another format.

use std::path::Path;

use memtrace_formats::{folded, pprof, speedscope};
use memtrace_model::Profile;

use crate::args::ConvertArgs;
use crate::failure::Failure;
use crate::out::note;
use crate::{diff, source};

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let text = args.input.to_string_lossy();
    let profile = if let Some((dir, at)) = source::in_store(&text) {
        source::stored(dir, at)?
    } else if is_folded(&args.input) {
        let text =
            std::fs::read(&args.input).map_err(|e| Failure::failed(args.input.display(), e))?;
        let parsed = folded::parse(&text).map_err(|e| Failure::failed(args.input.display(), e))?;
        for warning in &parsed.warnings {
            note(format_args!("{}: {warning}", args.input.display()));
        }
        parsed.profile
    } else {
        source::profile(&text, &args.access)?
    };
    let bytes = encode(&profile, &args.output, args.sample_type.as_deref())?;
    write(&args.output, &bytes)
}

fn encode(profile: &Profile, output: &Path, wanted: Option<&str>) -> Result<Vec<u8>, Failure> {
    let name = output.to_string_lossy().to_lowercase();
    let column = || source::sample_type(profile, wanted);
    if name.ends_with(".pb.gz") || name.ends_with(".pprof") || name.ends_with(".pb") {
        Ok(pprof::write(profile))
    } else if is_folded(output) {
        Ok(folded::write(profile, column()?).into_bytes())
    } else if name.ends_with(".speedscope.json") || name.ends_with(".json") {
        Ok(speedscope::write(profile, column()?))
    } else if name.ends_with(".svg") {
        diff::flame_graph(profile, column()?)
    } else {
        Err(Failure::Usage(format!(
            "{}: the name tells the format; end it in .pb.gz, .folded, .speedscope.json or .svg",
            output.display()
        )))
    }
}

fn is_folded(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "folded" || e == "txt")
        && !std::fs::read(path).is_ok_and(|head| {
            head.starts_with(b"heap profile:") || head.starts_with(b"goroutine profile:")
        })
}

/// Writes all or nothing: a full disk leaves no half file behind under the name asked for.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |error| Failure::failed(path.display(), error);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let beside = Path::new(&beside);
    std::fs::write(beside, bytes)
        .and_then(|()| std::fs::rename(beside, path))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(beside);
        })
        .map_err(fail)
}
