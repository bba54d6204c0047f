//! `memtrace hot`: who is upstream of the allocator, how often, and what to change.

mod readings;
mod report;

use memtrace_analysis::hot::{By, Hot, QUIET, hot};
use memtrace_model::{HOT_SCHEMA, HotLine, HotTotal, Profile};

use crate::args::{HotArgs, HotBy};
use crate::convert::write;
use crate::diff::draw;
use crate::failure::Failure;
use crate::out::{Out, note};

pub(crate) fn run(args: &HotArgs) -> Result<(), Failure> {
    if args.duration.is_some_and(|d| d.is_zero()) {
        return Err(Failure::Usage("--for 0: a rate needs time".into()));
    }
    let readings = readings::take(args)?;
    let runtime = readings.runtime()?;
    let mut total = HotTotal {
        schema: HOT_SCHEMA.to_owned(),
        target: match &args.new {
            None => args.target.clone(),
            Some(new) => format!("{} → {new}", args.target),
        },
        ..HotTotal::default()
    };
    // Whoever allocates next to nothing need not collect for us to say so.
    let silent = runtime.as_ref().is_some_and(|r| r.bytes_per_s < QUIET) && !args.all;
    let (old, new) = (&readings.old.profile, &readings.new.profile);
    let column = |p: &Profile| p.sample_type("alloc_space").map(|c| p.total(c) as f64);
    let bytes = column(new).unwrap_or(0.0) - column(old).unwrap_or(0.0);
    let rate = runtime.as_ref().map(|r| r.bytes_per_s);
    let mut found = match readings.window(args, bytes, rate) {
        Err(_) if silent => Hot::default(),
        window => {
            let window = window?;
            let by = match args.by {
                HotBy::Site => By::Site,
                HotBy::Function => By::Function,
                HotBy::Package => By::Package,
            };
            let found = hot(old, new, window.seconds, by)
                .map_err(|error| Failure::failed(&total.target, error))?;
            total.from = window.from;
            total.to = window.to;
            total.seconds = window.seconds;
            total.bytes_per_s = found.bytes as f64 / window.seconds;
            total.objects_per_s = found.objects as f64 / window.seconds;
            found
        }
    };
    total.bytes = found.bytes;
    total.objects = found.objects;
    let rate = rate.unwrap_or(total.bytes_per_s);
    total.explains = runtime
        .as_ref()
        .filter(|r| r.bytes_per_s > 0.0 && total.seconds > 0.0)
        .map(|r| total.bytes_per_s / r.bytes_per_s);
    total.runtime = runtime;
    total.quiet = rate < QUIET;
    if total.quiet && !args.all {
        found.sites.clear();
    }

    // A flame graph of nothing cannot be drawn.
    let wants_picture = args.svg.is_some() || args.html.is_some();
    let picture = (wants_picture && !found.folded.is_empty())
        .then(|| draw(&found.folded, "allocation, bytes a second", "bytes/s"))
        .transpose()?;
    match (&args.svg, &picture) {
        (Some(path), Some(picture)) => write(path, picture)?,
        (Some(path), None) => note(format_args!(
            "nothing was allocated, {} is not drawn",
            path.display()
        )),
        (None, _) => {}
    }
    if let Some(path) = &args.html {
        let page = report::html(&total, &found.sites, picture.as_deref());
        write(path, page.as_bytes())?;
    }
    let wanted = match args.rows {
        0 => found.sites.len(),
        rows => rows.min(found.sites.len()),
    };
    let mut out = Out::open();
    if args.json {
        let total = std::iter::once(HotLine::Total(total));
        let sites = found.sites.into_iter().take(wanted).map(HotLine::Site);
        for line in total.chain(sites) {
            out.json(&line)?;
        }
    } else {
        out.lines(&report::text(&total, &found.sites, wanted))?;
    }
    Ok(out.done()?)
}
