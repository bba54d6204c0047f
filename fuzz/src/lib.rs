//! What every fuzz target asserts besides: that memory is bounded by the length of its input.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Does `work` on an input, which may hold `per_byte` bytes for each byte of it and a
/// `constant` at any moment.
///
/// # Panics
/// When it held more.
pub fn within<T>(input: &[u8], per_byte: usize, constant: usize, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let done = work();
    let held = ALLOCATOR.peak_usage().saturating_sub(before);
    let most = per_byte * input.len() + constant;
    assert!(held <= most, "{held} bytes for an input of {}", input.len());
    done
}
