//! Where a profile comes from: a file, a running service, or a store.

use std::path::Path;
use std::sync::Once;

use memtrace_collect::{
    CollectError, FreezeError, Options, ScrapeError, Scraper, Target, TargetError, TokenSource,
};
use memtrace_formats::pprof;
use memtrace_model::{Profile, Time};
use memtrace_store::{Kind, Reader};
use memtrace_watch::{Sdk, WatchError};

use crate::args::AccessArgs;
use crate::failure::Failure;
use crate::out::note;

/// The environment variable that holds the token when no file is given.
pub(crate) const TOKEN_VARIABLE: &str = "MEMTRACE_TOKEN";

/// How to talk to an endpoint.
pub(crate) fn access(args: &AccessArgs) -> Options {
    let mut options = Options::default();
    options.token = match &args.token_file {
        Some(file) => TokenSource::File(file.clone()),
        None if std::env::var_os(TOKEN_VARIABLE).is_some() => {
            TokenSource::Env(TOKEN_VARIABLE.to_owned())
        }
        None => TokenSource::None,
    };
    options.token_header.clone_from(&args.token_header);
    options.ca_file.clone_from(&args.ca_file);
    options.gc = args.gc;
    options
}

/// Reads the profile behind `from`: a file, else the heap profile of a service.
/// Warnings about damage go to stderr.
pub(crate) fn profile(from: &str, args: &AccessArgs) -> Result<Profile, Failure> {
    if let Some((dir, at)) = in_store(from) {
        return stored(dir, at);
    }
    let target = Target::parse(from).map_err(|error| target_failure(&error))?;
    if let Target::File(path) = &target {
        return profile_file(path);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting", error))?;
    let options = access(args);
    let fetched = runtime.block_on(async {
        let place = target.attach(&options).await?;
        let endpoint = place.endpoint.ok_or(TargetError::Unrecognised {
            text: from.to_owned(),
        })?;
        let mut scraper = Scraper::new(endpoint, options.clone())?;
        let heap = scraper.heap().await?;
        Ok::<_, CollectError>((heap, scraper))
    });
    let (heap, mut scraper) = fetched.map_err(|error| watch_failure(error.into()))?;
    let mut profile = parsed(from, &heap.body)?.profile;
    match runtime.block_on(Sdk::default().label(&mut scraper, &mut profile)) {
        true => Ok(profile),
        false => Err(Failure::Failed(format!("{from}: its tags cannot be read"))),
    }
}

/// `DIR@TIME` or `DIR@TIME@TARGET`, where DIR is a store.
pub(crate) fn in_store(from: &str) -> Option<(&Path, &str)> {
    let (dir, at) = from.split_once('@')?;
    let dir = Path::new(dir);
    dir.join("memtrace.db").is_file().then_some((dir, at))
}

/// The newest heap profile that a store has of a target at a time.
pub(crate) fn stored(dir: &Path, at: &str) -> Result<Profile, Failure> {
    let (at, wanted) = at.split_once('@').map_or((at, None), |(a, t)| (a, Some(t)));
    let at: Time = at.parse().map_err(|_| {
        Failure::Usage(format!(
            "{at:?} is no time; write it as 2026-01-31T12:00:00Z"
        ))
    })?;
    let failed = |error| Failure::failed(dir.display(), error);
    let reader = Reader::open(dir).map_err(failed)?;
    let targets = reader.targets().map_err(failed)?;
    let names = || {
        let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        names.join(", ")
    };
    let target = match wanted {
        Some(name) => targets.iter().find(|t| t.name == name),
        None if targets.len() == 1 => targets.first(),
        None => {
            return Err(Failure::Usage(format!(
                "{}: say which target, DIR@TIME@TARGET; it has: {}",
                dir.display(),
                names()
            )));
        }
    };
    let target = target.ok_or_else(|| {
        Failure::Failed(format!(
            "{}: no such target; it has: {}",
            dir.display(),
            names()
        ))
    })?;
    let found = reader
        .profile_at(target.id, Kind::Heap, at)
        .map_err(failed)?;
    found
        .map(|(_, profile)| profile)
        .ok_or_else(|| Failure::Failed(format!("{}: no profile at or before {at}", dir.display())))
}

/// Reads a profile from a file.
pub(crate) fn profile_file(path: &Path) -> Result<Profile, Failure> {
    parsed_file(path).map(|parsed| parsed.profile)
}

/// Reads a profile, and what its text form says besides, from a file.
pub(crate) fn parsed_file(path: &Path) -> Result<pprof::Parsed, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::failed(path.display(), error))?;
    parsed(&path.display().to_string(), &bytes)
}

/// Parses what came from `name`; warnings about damage go to stderr.
pub(crate) fn parsed(name: &str, bytes: &[u8]) -> Result<pprof::Parsed, Failure> {
    let parsed = pprof::parse(bytes).map_err(|error| Failure::failed(name, error))?;
    for warning in &parsed.warnings {
        note(format_args!("{name}: {warning}"));
    }
    Ok(parsed)
}

/// The column the user asked for, else the profile's own choice.
pub(crate) fn sample_type(profile: &Profile, wanted: Option<&str>) -> Result<usize, Failure> {
    let Some(wanted) = wanted else {
        return profile
            .shown_sample_type()
            .ok_or_else(|| Failure::Failed("the profile has no sample type".into()));
    };
    profile.sample_type(wanted).ok_or_else(|| {
        let known: Vec<&str> = profile
            .sample_types
            .iter()
            .map(|t| profile.text(t.kind))
            .collect();
        Failure::Usage(format!(
            "no sample type `{wanted}`; this profile has: {}",
            known.join(", ")
        ))
    })
}

/// Which exit code an error of the watch gets.
pub(crate) fn watch_failure(error: WatchError) -> Failure {
    match error {
        WatchError::Target(CollectError::Target(error)) => target_failure(&error),
        WatchError::Target(CollectError::Scrape(error)) => scrape_failure(&error),
        WatchError::Target(CollectError::Freeze(error)) => freeze_failure(&error),
        error => Failure::Failed(error.to_string()),
    }
}

/// What is wrong with our own files and settings is no fault of the target.
fn scrape_failure(error: &ScrapeError) -> Failure {
    let line = error.to_string();
    match error {
        ScrapeError::Token { .. } | ScrapeError::TlsSetup { .. } => Failure::Failed(line),
        ScrapeError::BadAddress(_) => Failure::Usage(line),
        _ => Failure::TargetLost(line),
    }
}

/// By how much memtrace steps back behind other programs.
const NICE: i32 = 10;

/// The services come first, on a machine that they share with us too: all that is read and
/// judged from now on waits for them. Where it is not allowed we go on as we are.
pub(crate) fn step_back() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // But what holds a process for a copy must not wait for a processor.
        memtrace_collect::goproc::prepare();
        let _ = rustix::process::nice(NICE);
    });
}

/// A process that ended, or never was, is lost. Where anything else keeps its memory from
/// being read, the process is there.
pub(crate) fn freeze_failure(error: &FreezeError) -> Failure {
    let line = error.to_string();
    match error {
        FreezeError::NoSuchProcess { .. } | FreezeError::Gone { .. } => Failure::TargetLost(line),
        _ => Failure::Failed(line),
    }
}

/// What can be no target is wrong usage; what cannot be reached is lost; a file
/// that is not there has failed.
pub(crate) fn target_failure(error: &TargetError) -> Failure {
    let line = error.to_string();
    match error {
        TargetError::Unrecognised { .. } | TargetError::Address(_) => Failure::Usage(line),
        TargetError::NoSuchFile { .. }
        | TargetError::Folder { .. }
        | TargetError::Permission { .. } => Failure::Failed(line),
        _ => Failure::TargetLost(line),
    }
}
