//! The command line. Stage one: what was typed; each verb resolves its own part.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use memtrace_collect::goproc::{self, Options};
use memtrace_model::visible;
use memtrace_watch::Mark;

use crate::failure::Failure;
use crate::units::{parse_address, parse_duration, parse_size};

/// Watches a service, notices that its memory leaks, and names the cause.
#[derive(Parser)]
#[command(
    name = "memtrace",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "A TARGET is what you have at hand: a pid, http://host:6060, host:6060, a container id, \
    or a file.\n\nExit codes: 0 fine, 1 failed, 2 wrong usage, 3 target lost, 10 leak found (--fail-on leak)."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Args {
    /// What was typed. Where help is asked for, or clap can say what is wrong, the program
    /// ends here.
    pub(crate) fn typed() -> Result<Self, Failure> {
        let typed: Vec<OsString> = std::env::args_os().collect();
        Self::try_parse_from(&typed).map_err(|error| {
            // clap repeats what was typed: it gets the words once more, as they may be shown.
            let shown = (typed.iter()).map(|w| visible(&w.to_string_lossy()).into_owned());
            match Self::try_parse_from(shown) {
                Err(error) => error.exit(),
                Ok(_) => {
                    let text = error.to_string();
                    let line = text.lines().next().unwrap_or_default();
                    Failure::Usage(line.trim_start_matches("error: ").to_owned())
                }
            }
        })
    }
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    Watch(WatchArgs),
    Top(TopArgs),
    Diff(DiffArgs),
    Hot(HotArgs),
    Snapshot(SnapshotArgs),
    Report(ReportArgs),
    Why(WhyArgs),
    Survivors(SurvivorsArgs),
    Convert(ConvertArgs),
    /// Print a completion script for your shell
    #[command(
        after_help = "Example:\n  memtrace completions bash > /etc/bash_completion.d/memtrace"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per verb into a folder
    #[command(after_help = "Example:\n  memtrace man | man -l -")]
    Man {
        /// Folder for the pages; stdout when not given
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// Watch live services until a leak shows: the main job
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    memtrace watch 127.0.0.1:6060\n  \
    memtrace watch 4242 --limit 2GiB --for 1h --store /var/lib/memtrace\n  \
    memtrace watch http://a:6060 http://b:6060 --json --fail-on leak\n  \
    memtrace watch 4242 --tags\n  \
    memtrace watch 4242 --snapshot-on tag:G001-M17 --snapshots /var/tmp/heaps\n\n\
    A stack is called growing as soon as its growth is beyond chance, and leaking when it has gone on for longer \
    than any healthy cache, session or batch of the service would need to settle (--settle).")]
pub(crate) struct WatchArgs {
    /// pid, URL, host:port or container id; several are watched side by side
    #[arg(required = true)]
    pub(crate) target: Vec<String>,
    /// Time between two heap profiles
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    /// Stop after this long; without it, watch until interrupted
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Longest time in which a healthy cache, session or batch of the service
    /// settles; growth must outlast it to be called leaking
    /// [default: 20m; less where the interval is under 30s, 100s at 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) settle: Option<Duration>,
    /// Show content of the target where it helps: some keys of a map that grows without
    /// bound (the service names its maps with memtrace.WatchMap)
    #[arg(long)]
    pub(crate) with_strings: bool,
    /// Say under which label of runtime/pprof (pprof.Do) memory leaks: for Go processes of
    /// this machine that have nothing of memtrace in them. A probe of the kernel reads the
    /// labels as objects are sampled, about 10 µs each; needs root, or CAP_SYS_ADMIN and
    /// CAP_PERFMON. Objects that are older than the watch have no tag
    #[arg(long)]
    pub(crate) tags: bool,
    /// Take a snapshot of the heap when a section of work ends: tag:NAME, NAME being the
    /// value of a label of runtime/pprof that a goroutine has and then no longer has;
    /// tag:NAME:begin for when it begins. May be given several times; needs what --tags needs
    #[arg(long, value_name = "WHEN", value_parser = parse_mark)]
    pub(crate) snapshot_on: Vec<Mark>,
    /// At most one snapshot of sections of work in this time
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    pub(crate) snapshot_every: Duration,
    /// Folder for snapshots, the newest 12 of a watch are kept: those of --snapshot-on
    /// [default: here], and the heap of each leak that is found, with another after --cycle,
    /// for memtrace diff and survivors
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) snapshots: Option<PathBuf>,
    /// How long a cycle of work of the service takes
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub(crate) cycle: Duration,
    /// Keep everything seen in this folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Memory at which the service would be killed, beside cgroup, GOMEMLIMIT and host
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) limit: Option<u64>,
    /// Findings and events as JSON lines on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit with 10 as soon as a finding is called leaking
    #[arg(long, value_name = "WHAT")]
    pub(crate) fail_on: Option<FailOn>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) pause: PauseArgs,
}

/// `tag:NAME`, `tag:NAME:end`, `tag:NAME:begin`.
fn parse_mark(text: &str) -> Result<Mark, String> {
    let expected = || "expected tag:NAME or tag:NAME:begin, such as tag:G001-M17".to_owned();
    let name = text.strip_prefix("tag:").ok_or_else(expected)?;
    let (tag, at_begin) = match name.rsplit_once(':') {
        Some((tag, "begin")) => (tag, true),
        Some((tag, "end")) => (tag, false),
        _ => (name, false),
    };
    if tag.is_empty() {
        return Err(expected());
    }
    if tag.len() > LONGEST_TAG {
        return Err(format!("of a label, {LONGEST_TAG} bytes are seen at most"));
    }
    Ok(Mark {
        tag: tag.to_owned(),
        at_begin,
    })
}

/// Bytes of a label's value that the kernel fetches.
const LONGEST_TAG: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// A finding of the tier `leaking`
    Leak,
}

/// What a process may be asked for when its memory is read
#[derive(clap::Args)]
pub(crate) struct PauseArgs {
    /// The process is never paused for longer; what takes longer is not begun, or given up
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    pub(crate) max_pause: Duration,
    /// Memory that memtrace may use to read a process [default: half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_memory: Option<u64>,
}

impl PauseArgs {
    pub(crate) fn options(&self) -> Options {
        Options {
            max_pause: self.max_pause,
            max_memory: (self.max_memory).unwrap_or_else(|| goproc::free_memory() / 2),
            ..Options::default()
        }
    }
}

/// How to talk to a pprof endpoint
#[derive(clap::Args)]
pub(crate) struct AccessArgs {
    /// File that holds the token sent with each request; without it the
    /// environment variable MEMTRACE_TOKEN is used when it is set
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// Name of the header that carries the token
    #[arg(long, value_name = "NAME", default_value = "X-Pprof-Token")]
    pub(crate) token_header: String,
    /// Certificate authority (PEM) to trust for https beside the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Ask the service to collect garbage before each heap profile (costs it a full GC)
    #[arg(long)]
    pub(crate) gc: bool,
}

/// Show which functions hold or allocate the memory of a profile
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  memtrace top http://127.0.0.1:6060\n  \
    memtrace top heap.pb.gz --type alloc_space --cum -n 40\n  memtrace top heap.pb.gz --lines --json")]
pub(crate) struct TopArgs {
    /// A running service (see memtrace --help), a profile, or DIR@TIME of a store
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) view: ViewArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// What of a profile to show
#[derive(clap::Args)]
pub(crate) struct ViewArgs {
    /// Sample type: inuse_space, inuse_objects, alloc_space, goroutine, …
    /// [default: the profile's own choice]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) sample_type: Option<String>,
    /// Sort by what a function and everything it calls hold
    #[arg(long)]
    pub(crate) cum: bool,
    /// One row for each source line instead of each function
    #[arg(long)]
    pub(crate) lines: bool,
    /// How many rows; 0 for all
    #[arg(short = 'n', long = "rows", default_value_t = 20)]
    pub(crate) rows: usize,
    /// Exact numbers without units
    #[arg(long)]
    pub(crate) raw: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare two profiles or two snapshots: what grew
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  memtrace diff t0.pb.gz t1.pb.gz --min 10MB\n  \
    memtrace diff t0.pb.gz http://127.0.0.1:6060 --svg growth.svg --html growth.html\n  \
    memtrace diff before.mtsnap after.mtsnap\n\n\
    Two snapshots of one process are compared object by object."
)]
pub(crate) struct DiffArgs {
    /// The earlier profile (file or running service)
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) old: String,
    /// The later profile (file or running service)
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) new: String,
    /// Leave out rows that changed by less
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) min: Option<u64>,
    /// Draw the growth as a differential flame graph
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    /// Write one self-contained HTML report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) view: ViewArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) pause: PauseArgs,
}

/// Show who allocates: the code upstream of the allocator, how often, and what to change
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  memtrace hot 127.0.0.1:6060\n  \
    memtrace hot 4242 --for 30s --by function --html hot.html\n  \
    memtrace hot t0.pb.gz t1.pb.gz --svg hot.svg\n  \
    memtrace hot 127.0.0.1:6060 --json | jq -r 'select(.line == \"site\") | [.rank, .pattern, .site.function] | @tsv'\n\n\
    The heap profile is read twice. It counts what was allocated until the last garbage collection but one; rates are \
    taken between those moments. Intervals (±) are those of sampling, 95 %; a row of fewer than 8 sampled objects \
    has ~ for a rank. A service that allocates less than 512 KiB a second is quiet: nothing is hot.")]
pub(crate) struct HotArgs {
    /// A running service (see memtrace --help), or the earlier of two profiles
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) target: String,
    /// The later of two profiles
    #[arg(value_name = "NEW", value_hint = ValueHint::AnyPath)]
    pub(crate) new: Option<String>,
    /// Time between the two readings; of two profiles that do not say when they were
    /// taken, the time that lies between them [default: 10s]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// What makes one row
    #[arg(long, value_name = "WHAT", default_value = "site")]
    pub(crate) by: HotBy,
    /// How many rows; 0 for all
    #[arg(short = 'n', long = "rows", default_value_t = 15)]
    pub(crate) rows: usize,
    /// List the sites of a quiet service too
    #[arg(long)]
    pub(crate) all: bool,
    /// As JSON lines: the totals, then the sites
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the rates as a flame graph
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    /// Write one self-contained HTML report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HotBy {
    /// A line of the service's own code
    Site,
    /// A function
    Function,
    /// A package
    Package,
}

/// Take all objects of a running Go process, or of a core of it, with what leads to what
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  memtrace snapshot 4242 -o before.mtsnap\n  \
    memtrace snapshot 4242 --core frozen.core\n  memtrace snapshot core.4242 -o heap.mtsnap\n\n\
    The process stands still for milliseconds: it is copied as fork does, and the copy is read. The snapshot holds \
    addresses, sizes, types and names of the program, and no content of its memory; a core holds all of it."
)]
pub(crate) struct SnapshotArgs {
    /// pid, container id, or an ELF core
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) target: String,
    /// The snapshot to write [default: PROGRAM-PID.mtsnap where no --core is asked for]
    #[arg(short = 'o', long = "output", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Write the frozen process as an ELF core, for a debugger
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) core: Option<PathBuf>,
    /// The program of a core, where it is not where the core says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) exe: Option<PathBuf>,
    /// What was taken, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) pause: PauseArgs,
}

/// Show what a heap is made of and what keeps it: types, roots, where it piles up, suspects
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  memtrace report heap.mtsnap\n  memtrace report 4242 --html heap.html\n  \
    memtrace report core.4242 --json | jq '.types[0]'\n\n\
    Retained bytes are those that would be garbage without the thing itself: exact, by dominators."
)]
pub(crate) struct ReportArgs {
    /// A snapshot, an ELF core, a pid or a container id
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) from: String,
    /// Rows of each table; 0 for all
    #[arg(short = 'n', long = "rows", default_value_t = 15)]
    pub(crate) rows: usize,
    /// Write one self-contained HTML page with the retention tree to open
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) pause: PauseArgs,
}

/// Say why objects are alive: the paths from a root to them
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["type_name", "object", "stack"]))]
#[command(
    after_help = "Examples:\n  memtrace why heap.mtsnap --type main.Session\n  \
    memtrace why heap.mtsnap --object 0xc000123450\n  memtrace why 4242 --stack 'handler\\.\\(\\*Cache\\)'"
)]
pub(crate) struct WhyArgs {
    /// A snapshot, an ELF core, a pid or a container id
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) file: String,
    /// All objects of a type; a part of its name will do where no type has just this name
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) type_name: Option<String>,
    /// The object at or around an address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub(crate) object: Option<u64>,
    /// Sampled objects that a stack allocated: a regular expression for one of its functions
    #[arg(long, value_name = "RE")]
    pub(crate) stack: Option<String>,
    /// How many different paths
    #[arg(short = 'n', long = "rows", default_value_t = 5)]
    pub(crate) rows: usize,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) pause: PauseArgs,
}

/// Show what lived through cycles of work although nothing used it: snapshots of one process
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  memtrace survivors s1.mtsnap s2.mtsnap s3.mtsnap s4.mtsnap\n  \
    memtrace survivors s*.mtsnap --cycles 2 --json\n\n\
    Take one snapshot after each cycle of work (a block, a job, an hour). What a later cycle made and none after it \
    let go of is a survivor."
)]
pub(crate) struct SurvivorsArgs {
    /// Snapshots of one process, the oldest first
    #[arg(required = true, num_args = 2.., value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// Cycles that an object must have lived through
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) cycles: u32,
    /// Packages from which it must be reached, for a group to come before others
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) retainers: u32,
    /// How many rows; 0 for all
    #[arg(short = 'n', long = "rows", default_value_t = 15)]
    pub(crate) rows: usize,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Rewrite a profile in another format, told by the file names
#[derive(clap::Args)]
#[command(
    after_help = "Formats: .pb.gz/.pprof (pprof), .folded/.txt (folded stacks), .speedscope.json, .svg (flame graph)\n\n\
    Examples:\n  memtrace convert heap.pb.gz heap.folded --type inuse_space\n  \
    memtrace convert heap.pb.gz heap.speedscope.json\n  memtrace convert old-heap.txt heap.pb.gz\n  \
    memtrace convert 127.0.0.1:6060 now.pb.gz\n  memtrace convert /var/lib/memtrace@2026-01-31T12:00:00Z before.pb.gz"
)]
pub(crate) struct ConvertArgs {
    /// A profile: pprof (compressed or not, or its text form), folded stacks, a running
    /// service (its tags become labels), or the one that a store has at a time:
    /// DIR@TIME, DIR@TIME@TARGET
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) input: PathBuf,
    /// The file to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Sample type to keep, for formats that hold one [default: the profile's own choice]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) sample_type: Option<String>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}
