//! `cargo xtask accuracy`: how often the verdict on a stack is right, measured on
//! simulated series whose truth is known.
//!
//! Parameters are chosen on the set `tune`; the set `judge` (other seeds, other
//! parameters, other families) is only looked at. Every series goes through the
//! same [`History`] as in `memtrace watch`, which decides anew at every point.

mod families;
mod judge;
mod sim;
mod tune;
mod tune_more;
mod tune_third;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use memtrace_analysis::series::{History, Settings, StackGrowth};
use memtrace_model::Tier;
use rayon::prelude::*;

use families::{Case, Family, Truth, fast_leak};
use judge::JUDGE;
use sim::{Rng, START, Simulated, profile, simulate, time};
use tune::TUNE;
use tune_more::TUNE_MORE;
use tune_third::TUNE_THIRD;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Which set: tune (parameters may be chosen on it), judge, or both
    #[arg(long, default_value = "judge", value_parser = ["tune", "judge", "both"])]
    set: String,
    /// A short run for every change, with fixed expectations
    #[arg(long)]
    quick: bool,
    /// Write the result to bench/accuracy.md
    #[arg(long)]
    write: bool,
    /// Only families whose name holds this text
    #[arg(long)]
    family: Option<String>,
    /// Print every series that was judged wrongly
    #[arg(long)]
    wrong: bool,
}

const SEED_TUNE: u64 = 20_260_101;
const SEED_JUDGE: u64 = 27_182_818;
const LEAKS: usize = 1_000;
const HEALTHY: usize = 1_100;
const SLOW: usize = 80;
const FAST: usize = 200;
/// One series in this many goes in as whole profiles, the others as rows.
const WHOLE: usize = 16;
const HOUR: f64 = 3600.0;

/// Runs the simulation, prints the tables, and fails when the bar is missed.
pub fn run(options: &Options) -> Result<(), String> {
    let begun = Instant::now();
    let mut text = String::new();
    let mut failed = Vec::new();
    let tune: Vec<&Family> = TUNE.iter().chain(TUNE_MORE).chain(TUNE_THIRD).collect();
    for (name, families, seed) in [
        ("tune", tune, SEED_TUNE),
        ("judge", JUDGE.iter().collect(), SEED_JUDGE),
    ] {
        if options.set != name && options.set != "both" {
            continue;
        }
        let result = measure(families, seed, options);
        text.push_str(&table(name, seed, &result));
        if options.family.is_none() {
            failed.extend(result.misses(name));
        }
    }
    print!("{text}");
    eprintln!("{:.0} s", begun.elapsed().as_secs_f64());
    if options.write {
        write(&text)?;
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("; "))
    }
}

fn write(tables: &str) -> Result<(), String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.parent().unwrap_or(root).join("bench");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let text = format!("{HEAD}\n{tables}");
    std::fs::write(folder.join("accuracy.md"), text).map_err(|e| e.to_string())
}

const HEAD: &str = "# Accuracy of the verdict on a stack

Written by `cargo xtask accuracy --set both --write`. Simulated series of Go heap
profiles: every sampled object is drawn (Poisson, one sample per 512 KiB), every 30 s
a profile goes through the same code as in `memtrace watch`, and a verdict is made
anew at every profile. The thresholds were chosen on the set *tune*; the set *judge*
has other seeds, other parameters and other families. Same seeds, same figures.

*Leaking within 1 h*: share of leaks called leaking within an hour of their onset
(or of the start of the watch). *False*: episodes of a verdict *leaking* on a healthy
series. *Growing*: episodes of the softer verdict. Errors are taken one hour after the
onset: slope in per cent of the true rate, onset in seconds. *Held*: share of the
profiles after the first verdict at which it was reached again. One series in 16 goes
in as whole profiles, scaled as Go scales them, the others as counts.
";

/// What came out of one series.
struct Outcome {
    family: usize,
    days: f64,
    leaking_after: Option<f64>,
    growing_after: Option<f64>,
    leaking_episodes: usize,
    growing_episodes: usize,
    slope_error: Option<f64>,
    slope_covered: Option<bool>,
    onset_error: Option<f64>,
    onset_covered: Option<bool>,
    held: Option<f64>,
    note: String,
}

struct Measured {
    families: Vec<&'static Family>,
    outcomes: Vec<Outcome>,
    fast: Vec<Outcome>,
}

fn measure(families: Vec<&'static Family>, seed: u64, options: &Options) -> Measured {
    let scale = |n: usize| if options.quick { n / 12 } else { n };
    let mut jobs = Vec::new();
    for (truth, total) in [
        (Truth::Leak, scale(LEAKS)),
        (Truth::Healthy, scale(HEALTHY)),
        (Truth::Slow, scale(SLOW)),
    ] {
        let weight: usize = families
            .iter()
            .filter(|f| f.truth == truth)
            .map(|f| f.weight)
            .sum();
        for (i, f) in families
            .iter()
            .enumerate()
            .filter(|(_, f)| f.truth == truth)
        {
            let wanted = options
                .family
                .as_ref()
                .is_none_or(|t| f.name.contains(t.as_str()));
            let n = if wanted {
                (total * f.weight).div_ceil(weight)
            } else {
                0
            };
            jobs.extend((0..n).map(|k| (i, k)));
        }
    }
    let outcomes = jobs
        .into_par_iter()
        .map(|(i, k)| {
            let mut rng = Rng::new(seed ^ ((i as u64 + 1) << 32) ^ k as u64);
            let case = (families[i].make)(&mut rng);
            let series = simulate(&case.scenario, &mut rng);
            let outcome = follow(i, families[i].truth, &case, &series, k % WHOLE == 0);
            if options.wrong {
                report_wrong(families[i], k, &outcome, &case);
            }
            outcome
        })
        .collect();
    let fast = if options.family.is_some() {
        0
    } else {
        scale(FAST)
    };
    let fast = (0..fast)
        .into_par_iter()
        .map(|k| {
            let mut rng = Rng::new(seed ^ (0xFA57 << 32) ^ k as u64);
            let case = fast_leak(&mut rng);
            let series = simulate(&case.scenario, &mut rng);
            follow(usize::MAX, Truth::Leak, &case, &series, k % WHOLE == 0)
        })
        .collect();
    Measured {
        families,
        outcomes,
        fast,
    }
}

fn report_wrong(family: &Family, number: usize, outcome: &Outcome, case: &Case) {
    let wrong = match family.truth {
        Truth::Leak => outcome.leaking_after.is_none_or(|t| t > HOUR),
        Truth::Healthy => outcome.leaking_episodes > 0,
        Truth::Slow => false,
    };
    if wrong {
        eprintln!(
            "{} #{number}: rate {:.1} KB/s onset {:.0} s; {}; {:?}",
            family.name,
            case.rate / 1e3,
            case.onset,
            outcome.note,
            case.scenario
        );
    }
}

/// Feeds a series to a history as a watch would, and looks at every verdict.
fn follow(
    family: usize,
    truth: Truth,
    case: &Case,
    series: &Simulated,
    as_profiles: bool,
) -> Outcome {
    let s = &case.scenario;
    let mut history = History::new(Settings::every(Duration::from_secs_f64(s.interval)));
    if s.start_known {
        history.started(time(-s.age));
    }
    let onset = case.onset.max(0.0);
    let deadline = onset + if s.interval < 10.0 { 180.0 } else { HOUR };
    let mut out = Outcome {
        family,
        days: s.seconds / 86_400.0,
        leaking_after: None,
        growing_after: None,
        leaking_episodes: 0,
        growing_episodes: 0,
        slope_error: None,
        slope_covered: None,
        onset_error: None,
        onset_covered: None,
        held: None,
        note: String::new(),
    };
    let mut before: Option<Tier> = None;
    let mut measured = false;
    let (mut since, mut held) = (0usize, 0usize);
    for &(at, restart, row) in &series.points {
        let now = time(at);
        if restart {
            history.restart(now);
        }
        if as_profiles {
            history.heap(now, &profile(&row, case.scenario.parts[0].1));
        } else {
            history.heap_rows(now, &[row]);
        }
        let assessment = history.assess();
        let found = assessment.stacks.first();
        let tier = found.map(|f| f.tier);
        let fresh = |t: Tier| tier == Some(t) && before != Some(t);
        if fresh(Tier::Leaking) {
            out.leaking_episodes += 1;
            if let (true, Some(f)) = (truth != Truth::Leak, found) {
                let _ = write!(out.note, "at {at:.0} s: {} ", f.evidence.join(" "));
            }
        }
        if fresh(Tier::Growing) && before.is_none() {
            out.growing_episodes += 1;
        }
        if truth == Truth::Leak && at >= onset {
            if tier == Some(Tier::Leaking) && out.leaking_after.is_none() {
                out.leaking_after = Some(at - onset);
            }
            since += usize::from(out.leaking_after.is_some());
            held += usize::from(tier == Some(Tier::Leaking));
            if tier.is_some() && out.growing_after.is_none() {
                out.growing_after = Some(at - onset);
            }
            if at >= deadline && !measured {
                measured = true;
                if let Some(f) = found {
                    errors(&mut out, f, case);
                }
            }
        }
        before = tier;
    }
    out.held = (since > 0).then(|| 100.0 * held as f64 / since as f64);
    out
}

fn errors(out: &mut Outcome, found: &StackGrowth, case: &Case) {
    // Leaks that follow the load have no one rate.
    let steady = case.scenario.load.ramps.is_empty() && case.scenario.load.jitter.is_none();
    if steady {
        let truth = case.rate * 60.0;
        out.slope_error = Some(100.0 * (found.rate_bytes_per_min / truth - 1.0).abs());
        let [low, high] = found.rate_interval;
        out.slope_covered = Some(low <= truth && truth <= high);
    }
    if case.onset > 0.0
        && let (Some(at), Some([low, high])) = (found.onset, found.onset_interval)
    {
        let truth = START + (case.onset * 1000.0) as i64;
        out.onset_error = Some((at.0 - truth).abs() as f64 / 1000.0);
        out.onset_covered = Some(low.0 <= truth && truth <= high.0);
    }
}

/// Share, median and 90th or 95th percentile of what is there.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn shown(value: f64) -> String {
    if value.is_nan() {
        "–".to_owned()
    } else if value.abs() < 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn share(parts: &[bool]) -> f64 {
    100.0 * parts.iter().filter(|p| **p).count() as f64 / parts.len() as f64
}

/// Figures of a group of leaking series.
struct LeakFigures {
    series: usize,
    caught: f64,
    columns: Vec<f64>,
}

fn leak_figures(outcomes: &[&Outcome], limit: f64) -> LeakFigures {
    let pick = |f: &dyn Fn(&Outcome) -> Option<f64>| -> Vec<f64> {
        outcomes.iter().filter_map(|o| f(o)).collect()
    };
    let caught: Vec<bool> = outcomes
        .iter()
        .map(|o| o.leaking_after.is_some_and(|t| t <= limit))
        .collect();
    let leaking = pick(&|o| o.leaking_after);
    let growing = pick(&|o| o.growing_after);
    let slope = pick(&|o| o.slope_error);
    let onset = pick(&|o| o.onset_error);
    let slope_in: Vec<bool> = outcomes.iter().filter_map(|o| o.slope_covered).collect();
    let onset_in: Vec<bool> = outcomes.iter().filter_map(|o| o.onset_covered).collect();
    LeakFigures {
        series: outcomes.len(),
        caught: share(&caught),
        columns: vec![
            quantile(&leaking, 0.5) / 60.0,
            quantile(&leaking, 0.95) / 60.0,
            quantile(&growing, 0.5) / 60.0,
            quantile(&growing, 0.95) / 60.0,
            quantile(&slope, 0.5),
            quantile(&slope, 0.9),
            share(&slope_in),
            quantile(&onset, 0.5),
            quantile(&onset, 0.9),
            share(&onset_in),
            statkit::trend::mean(&pick(&|o| o.held)),
        ],
    }
}

impl Measured {
    fn of(&self, truth: Truth) -> Vec<&Outcome> {
        let is = |o: &&Outcome| self.families[o.family].truth == truth;
        self.outcomes.iter().filter(is).collect()
    }

    fn false_per_thousand_days(&self) -> f64 {
        let healthy = self.of(Truth::Healthy);
        let days: f64 = healthy.iter().map(|o| o.days).sum();
        let episodes: usize = healthy.iter().map(|o| o.leaking_episodes).sum();
        1000.0 * episodes as f64 / days
    }

    /// Which part of the bar was missed.
    fn misses(&self, set: &str) -> Vec<String> {
        let mut out = Vec::new();
        let caught = leak_figures(&self.of(Truth::Leak), HOUR).caught;
        if caught < 97.0 {
            out.push(format!(
                "{set}: {caught:.1} % of leaks within an hour, not 97 %"
            ));
        }
        let wrong = self.false_per_thousand_days();
        if wrong > 1.0 {
            out.push(format!(
                "{set}: {wrong:.2} false verdicts per 1,000 days, not 1"
            ));
        }
        out
    }
}

fn table(name: &str, seed: u64, m: &Measured) -> String {
    let mut t = String::new();
    let _ = writeln!(
        t,
        "## Set {name} (seed {seed}, {} series)\n",
        m.outcomes.len() + m.fast.len()
    );
    let leaks = m.of(Truth::Leak);
    let healthy = m.of(Truth::Healthy);
    let days: f64 = healthy.iter().map(|o| o.days).sum();
    let episodes: usize = healthy.iter().map(|o| o.leaking_episodes).sum();
    let _ = writeln!(
        t,
        "**{:.1} %** of {} leaks of 5 KB/s and more called leaking within 1 h; **{episodes}** false \
         leaking in {days:.0} healthy series-days ({:.2} per 1,000).\n",
        leak_figures(&leaks, HOUR).caught,
        leaks.len(),
        m.false_per_thousand_days(),
    );
    let _ = writeln!(
        t,
        "| leaks | series | leaking within 1 h, % | delay to leaking, min (median, p95) | delay to \
         growing or leaking, min (median, p95) | slope error, % (median, p90) | true slope in its \
         95 % interval, % | onset error, s (median, p90) | true onset in its interval, % | \
         verdict held, % |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    );
    let row = |t: &mut String, name: &str, f: LeakFigures| {
        let c = f.columns.iter().map(|v| shown(*v)).collect::<Vec<_>>();
        let _ = writeln!(
            t,
            "| {name} | {} | {} | {}, {} | {}, {} | {}, {} | {} | {}, {} | {} | {} |",
            f.series,
            shown(f.caught),
            c[0],
            c[1],
            c[2],
            c[3],
            c[4],
            c[5],
            c[6],
            c[7],
            c[8],
            c[9],
            c[10]
        );
    };
    for (i, f) in m
        .families
        .iter()
        .enumerate()
        .filter(|(_, f)| f.truth == Truth::Leak)
    {
        let group: Vec<&Outcome> = leaks.iter().copied().filter(|o| o.family == i).collect();
        row(&mut t, f.name, leak_figures(&group, HOUR));
    }
    row(&mut t, "**all**", leak_figures(&leaks, HOUR));
    if !m.fast.is_empty() {
        let fast: Vec<&Outcome> = m.fast.iter().collect();
        row(
            &mut t,
            "1–2 MB/s, a profile every 5 s; errors after 3 min",
            leak_figures(&fast, HOUR),
        );
    }
    for (truth, title) in [(Truth::Healthy, "healthy"), (Truth::Slow, "slow to settle")] {
        let _ = writeln!(
            t,
            "\n| {title} | series-days | episodes of leaking | series called leaking, % | episodes of \
             growing per day |\n|---|---|---|---|---|"
        );
        for (i, f) in m
            .families
            .iter()
            .enumerate()
            .filter(|(_, f)| f.truth == truth)
        {
            let group: Vec<&Outcome> = m.outcomes.iter().filter(|o| o.family == i).collect();
            let days: f64 = group.iter().map(|o| o.days).sum();
            let leaking: usize = group.iter().map(|o| o.leaking_episodes).sum();
            let growing: usize = group.iter().map(|o| o.growing_episodes).sum();
            let called: Vec<bool> = group.iter().map(|o| o.leaking_episodes > 0).collect();
            let _ = writeln!(
                t,
                "| {} | {days:.0} | {leaking} | {} | {} |",
                f.name,
                shown(share(&called)),
                shown(growing as f64 / days)
            );
        }
    }
    t.push('\n');
    t
}
