//! The wire format of protocol buffers: varints, tags and length-delimited fields.

/// A reader over a message that is wholly in memory.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint. Fixed-width numbers, which no field of a profile is, come here too.
    Number(u64),
    /// A string, a message or packed numbers.
    Bytes(&'a [u8]),
}

/// No field is longer: a larger length is damage, and must not be waited for.
const LONGEST: u64 = 64 << 20;

/// Why no field could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The bytes end within the field.
    Short,
    /// No tag, or a wire type that does not exist.
    Garbage,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Bad> {
        // Nearly every number of a profile takes one or two bytes.
        match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => {
                self.rest = rest;
                Ok(u64::from(a))
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.rest = rest;
                Ok(u64::from(a & 0x7f) | u64::from(b) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Bad> {
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 {
            Bad::Short
        } else {
            Bad::Garbage
        })
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Bad> {
        let count = usize::try_from(count).map_err(|_| Bad::Short)?;
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Bad::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<u64, Bad> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N as u64)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// The next field: its number and value. The reader stays where it was when
    /// there is none.
    #[inline]
    pub(crate) fn field(&mut self) -> Result<(u64, Value<'a>), Bad> {
        let mut ahead = *self;
        let tag = ahead.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(ahead.varint()?),
            1 => Value::Number(ahead.fixed::<8>()?),
            2 => {
                let length = ahead.varint()?;
                if length > LONGEST {
                    return Err(Bad::Garbage);
                }
                Value::Bytes(ahead.take(length)?)
            }
            5 => Value::Number(ahead.fixed::<4>()?),
            _ => return Err(Bad::Garbage),
        };
        if tag >> 3 == 0 {
            return Err(Bad::Garbage);
        }
        *self = ahead;
        Ok((tag >> 3, value))
    }
}

/// Calls `each` for the numbers of a repeated field, packed or not. `false` when
/// the packed numbers end within one.
#[inline]
pub(crate) fn numbers(value: Value<'_>, mut each: impl FnMut(u64)) -> bool {
    match value {
        Value::Number(n) => each(n),
        Value::Bytes(packed) => {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                match reader.varint() {
                    Ok(n) => each(n),
                    Err(_) => return false,
                }
            }
        }
    }
    true
}

/// A message being written.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A number, even when it is 0.
    pub(crate) fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    /// A number, unless it is 0, which is what an absent field means.
    pub(crate) fn number_opt(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.number(field, value);
        }
    }

    pub(crate) fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Packed numbers; nothing when there are none.
    pub(crate) fn packed(&mut self, field: u64, numbers: impl Iterator<Item = u64> + Clone) {
        let length: u64 = numbers.clone().map(size).sum();
        if length == 0 {
            return;
        }
        self.varint(field << 3 | 2);
        self.varint(length);
        for n in numbers {
            self.varint(n);
        }
    }
}

/// Bytes that `value` takes as a varint.
fn size(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(all in prop::collection::vec(any::<u64>().prop_flat_map(|n| (0u32..64).prop_map(move |s| n >> s)), 0..40)) {
            let mut w = Writer::default();
            for &n in &all {
                w.number(3, n);
                prop_assert_eq!(size(n), { let mut one = Writer::default(); one.varint(n); one.bytes.len() as u64 });
            }
            w.packed(4, all.iter().copied());
            let mut r = Reader::new(&w.bytes);
            for &n in &all {
                prop_assert_eq!(r.field(), Ok((3, Value::Number(n))));
            }
            if !all.is_empty() {
                let (field, value) = r.field().unwrap();
                prop_assert_eq!(field, 4);
                let mut back = Vec::new();
                prop_assert!(numbers(value, |n| back.push(n)));
                prop_assert_eq!(back, all);
            }
            prop_assert!(r.is_empty());
        }

        #[test]
        fn never_reads_past_the_end(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut r = Reader::new(&bytes);
            while r.field().is_ok() {}
            prop_assert!(r.len() <= bytes.len());
        }
    }

    #[test]
    fn what_is_no_field() {
        assert_eq!(Reader::new(&[]).field(), Err(Bad::Short));
        assert_eq!(Reader::new(&[0x12, 5, 1]).field(), Err(Bad::Short));
        assert_eq!(Reader::new(&[0x00, 5]).field(), Err(Bad::Garbage));
        assert_eq!(Reader::new(&[0x0b]).field(), Err(Bad::Garbage));
        assert_eq!(Reader::new(&[0xff; 11]).field(), Err(Bad::Garbage));
        assert_eq!(Reader::new(&[0xff; 9]).field(), Err(Bad::Short));
        let huge = [
            0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ];
        assert_eq!(Reader::new(&huge).field(), Err(Bad::Garbage));
        assert_eq!(
            Reader::new(&[0x0d, 1, 0, 0, 0]).field(),
            Ok((1, Value::Number(1)))
        );
        assert_eq!(
            Reader::new(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0]).field(),
            Ok((1, Value::Number(1)))
        );
        assert!(!numbers(Value::Bytes(&[1, 0x80]), |_| ()));
    }
}
