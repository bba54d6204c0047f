//! `memtrace top`: which functions hold or allocate the memory of a profile.

use memtrace_analysis::top::{Granularity, Row, Top, top};
use memtrace_model::Profile;
use serde_json::json;

use crate::args::{TopArgs, ViewArgs};
use crate::failure::Failure;
use crate::out::Out;
use crate::source;
use crate::units::bytes;

pub(crate) fn run(args: &TopArgs) -> Result<(), Failure> {
    let profile = source::profile(&args.target, &args.access)?;
    let column = source::sample_type(&profile, args.view.sample_type.as_deref())?;
    let table = top(&profile, column, granularity(&args.view));
    print(&profile, column, table, &args.view, None)
}

pub(crate) fn granularity(view: &ViewArgs) -> Granularity {
    if view.lines {
        Granularity::Lines
    } else {
        Granularity::Functions
    }
}

/// Prints the heaviest rows of `table`, a table for people or JSON; `change` are the
/// totals before and after where the rows are differences.
pub(crate) fn print(
    profile: &Profile,
    column: usize,
    mut table: Top,
    view: &ViewArgs,
    change: Option<[i64; 2]>,
) -> Result<(), Failure> {
    if view.cum {
        table.sort_by_cum();
    }
    let wanted = if view.rows == 0 {
        table.rows.len()
    } else {
        view.rows
    };
    let kind = profile.text(profile.sample_types[column].kind);
    let unit = profile.text(profile.sample_types[column].unit);
    let mut out = Out::open();
    if view.json {
        let rows: Vec<_> = table.rows.iter().take(wanted).map(row_json).collect();
        let whole = json!({
            "schema": "memtrace.top/1", "type": kind, "unit": unit, "total": table.total, "rows": rows
        });
        out.json(&whole)?;
        return Ok(out.done()?);
    }
    let show = |n: i64| {
        if unit == "bytes" && !view.raw {
            bytes(n as f64)
        } else {
            n.to_string()
        }
    };
    let total = match change {
        None => show(table.total),
        Some([before, after]) => {
            let sign = if after > before { "+" } else { "" };
            format!(
                "{} → {} ({sign}{}), in % of the former",
                show(before),
                show(after),
                show(after - before)
            )
        }
    };
    let percent = |n: i64| 100.0 * n as f64 / (table.total.unsigned_abs().max(1)) as f64;
    out.line(format_args!(
        "{kind} in {unit}, total {total}; {} of {} rows",
        wanted.min(table.rows.len()),
        table.rows.len()
    ))?;
    out.line(format_args!(
        "{:>12} {:>7} {:>12} {:>7}  function",
        "flat", "flat%", "cum", "cum%"
    ))?;
    for row in table.rows.iter().take(wanted) {
        out.line(format_args!(
            "{:>12} {:>6.2}% {:>12} {:>6.2}%  {}",
            show(row.flat),
            percent(row.flat),
            show(row.cum),
            percent(row.cum),
            row.name
        ))?;
    }
    Ok(out.done()?)
}

fn row_json(row: &Row) -> serde_json::Value {
    json!({"name": row.name, "flat": row.flat, "cum": row.cum})
}
