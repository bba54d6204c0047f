//! Variable-length integers (LEB128), and signed ones folded onto them.

/// Appends `v`, seven bits a byte, low bits first.
pub(crate) fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends `v` so that small magnitudes of either sign stay short.
pub(crate) fn put_signed(out: &mut Vec<u8>, v: i64) {
    put(out, ((v << 1) ^ (v >> 63)) as u64);
}

/// Reads integers off the front of a byte string.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl Cursor<'_> {
    /// The next integer; `None` when the bytes end or it does not fit 64 bits.
    pub(crate) fn get(&mut self) -> Option<u64> {
        let mut v = 0u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            let part = u64::from(byte & 0x7f);
            if i == 9 && part > 1 {
                return None;
            }
            v |= part << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(v);
            }
        }
        None
    }

    /// The next signed integer.
    pub(crate) fn get_signed(&mut self) -> Option<i64> {
        let v = self.get()?;
        Some((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// The next integer where it fits 32 bits.
    pub(crate) fn get_u32(&mut self) -> Option<u32> {
        self.get().and_then(|v| u32::try_from(v).ok())
    }
}
