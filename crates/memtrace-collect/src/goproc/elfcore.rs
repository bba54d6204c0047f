//! ELF cores.
use memtrace_formats::goheap::Unreadable;
#[derive(Debug)]
pub(super) struct Core;
impl Core {
    pub(super) fn read(&self, address: u64, _into: &mut [u8]) -> Result<(), Unreadable> {
        Err(Unreadable { address })
    }
}
