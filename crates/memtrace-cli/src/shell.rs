//! Completion scripts and manual pages, made from the arguments' own definition.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Args;
use crate::failure::Failure;
use crate::out::Out;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "memtrace", &mut script);
    let mut out = Out::open();
    out.own(&script)?;
    Ok(out.done()?)
}

pub(crate) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    match dir {
        Some(dir) => clap_mangen::generate_to(Args::command(), dir)
            .map_err(|error| Failure::failed(dir.display(), error)),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Args::command()).render(&mut page)?;
            let mut out = Out::open();
            out.own(&page)?;
            Ok(out.done()?)
        }
    }
}
