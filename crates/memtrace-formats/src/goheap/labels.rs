//! Where a running program tells under which labels (`runtime/pprof`) it allocates.

use super::memory::{Memory, Window};
use super::missing;
use super::profile::Program;
use crate::Error;

/// Runs once for each object that the heap profile samples, on the stack of the scheduler:
/// `setprofilebucket(object, bucket)`.
const SAMPLED: &str = "runtime.setprofilebucket";
/// All that changes the labels of a goroutine goes through it.
const SET_LABELS: &str = "runtime/pprof.runtime_setProfLabel";
/// Up to here a label set is a map of the runtime, afterwards a slice.
const LAST_WITH_MAPS: u32 = 23;

/// How a set of labels lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelForm {
    /// To Go 1.23: a pointer to a `map[string]string`, a chained hash table whose first
    /// bucket has eight places.
    Map,
    /// From Go 1.24: a pointer to a slice of pairs of strings.
    List,
}

/// Functions of a program at which labels are seen, and the way to them, for amd64.
///
/// Offsets are in bytes, of the runtime's types in this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelSites {
    /// Address in the process of the function that binds a sampled object (register AX) to
    /// its stack (BX); `None` where the linker left sampling out.
    pub sampled: Option<u64>,
    /// The sampling rate is 0 now, whatever the linker left.
    pub is_sampling_off: bool,
    /// Address in the process of the function that gives a goroutine (R14) other labels
    /// (AX); `None` where nothing in the program does.
    pub set_labels: Option<u64>,
    /// `g.m`.
    pub m: u64,
    /// `m.curg`.
    pub current: u64,
    /// `g.labels`.
    pub labels: u64,
    /// `g.goid`.
    pub goid: u64,
    /// `bucket.size`.
    pub bucket_size: u64,
    /// What `g.labels` points to.
    pub form: LabelForm,
}

impl Program {
    /// Where its labels are to be seen.
    ///
    /// # Errors
    /// [`Error::UnsupportedGo`] where that is not known for certain: another instruction set
    /// than amd64, or a stripped program of a release whose layouts are not in the table.
    pub fn label_sites(&self, memory: &dyn Memory) -> Result<LabelSites, Error> {
        let image = &self.image;
        if self.functions.has_link_register() {
            return Err(Error::UnsupportedGo {
                what: "a Go program for arm64: labels are read on amd64 only".to_owned(),
            });
        }
        if image.is_assumed {
            return Err(Error::UnsupportedGo {
                what: format!(
                    "a stripped Go program built by {}: where that keeps labels is not known",
                    image.version.text
                ),
            });
        }
        let layout = &image.layout;
        let window = Window::new(memory);
        let rate = image.variable("MemProfileRate").ok();
        let rate = rate.and_then(|at| window.u64(at).ok());
        let only = |name: &str| match *self.functions.named(|n| n == name) {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(missing(format!("{name}, which is there several times"))),
        };
        let form = match image.version.minor {
            ..=LAST_WITH_MAPS => LabelForm::Map,
            _ => LabelForm::List,
        };
        Ok(LabelSites {
            sampled: only(SAMPLED)?,
            is_sampling_off: rate == Some(0),
            set_labels: only(SET_LABELS)?,
            m: layout.at("g.m")?,
            current: layout.at("m.curg")?,
            labels: layout.at("g.labels")?,
            goid: layout.at("g.goid")?,
            bucket_size: layout.at("bucket.size")?,
            form,
        })
    }
}

/// Names of the functions of [`LabelSites`], as the table of functions has them.
pub const LABEL_FUNCTIONS: [&str; 2] = [SAMPLED, SET_LABELS];
