//! Columns of a large heap: what is small, and nearly everything is, takes less room than in a
//! `Vec`; any value can be held.

use std::fmt;
use std::ops::Range;

use crate::heap::EdgeSlot;

/// Items from one rank to the next.
const BLOCK: usize = 128;

/// Items as short forms; those that have none stand apart, in their order.
#[derive(Clone, PartialEq, Eq)]
struct Apart<S, T> {
    /// [`Mark::MARK`] for an item that stands apart.
    short: Vec<S>,
    long: Vec<T>,
    /// How many items before each block stand apart.
    ranks: Vec<usize>,
}

/// A short form, one value of which says that there is none.
trait Mark: Copy + Eq {
    const MARK: Self;
}

impl Mark for u8 {
    const MARK: Self = Self::MAX;
}

impl Mark for u16 {
    const MARK: Self = Self::MAX;
}

impl<S: Mark, T: Copy> Apart<S, T> {
    const EMPTY: Self = Self {
        short: Vec::new(),
        long: Vec::new(),
        ranks: Vec::new(),
    };

    fn reserve(&mut self, items: usize) {
        self.short.reserve_exact(items);
        self.ranks.reserve_exact(items.div_ceil(BLOCK));
    }

    fn push(&mut self, short: Option<S>, long: T) {
        if self.short.len().is_multiple_of(BLOCK) {
            self.ranks.push(self.long.len());
        }
        let short = short.unwrap_or(S::MARK);
        self.short.push(short);
        if short == S::MARK {
            self.long.push(long);
        }
    }

    /// The short form, or the item that stands apart.
    #[inline]
    fn at(&self, index: usize) -> Result<S, T> {
        let short = self.short[index];
        if short != S::MARK {
            return Ok(short);
        }
        let block = index / BLOCK;
        let before = &self.short[block * BLOCK..index];
        let before = before.iter().filter(|&&s| s == S::MARK).count();
        Err(self.long[self.ranks[block] + before])
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.short[..]) + size_of_val(&self.long[..]) + size_of_val(&self.ranks[..])
    }
}

/// An item of a [`Packed`] column.
pub trait Pack: Copy {
    /// The item as a byte, where it is small.
    fn to_byte(self) -> Option<u8>;
    /// From what [`Pack::to_byte`] gave.
    fn from_byte(byte: u8) -> Self;
}

impl Pack for u32 {
    #[inline]
    fn to_byte(self) -> Option<u8> {
        self.try_into().ok()
    }

    #[inline]
    fn from_byte(byte: u8) -> Self {
        byte.into()
    }
}

impl Pack for u64 {
    #[inline]
    fn to_byte(self) -> Option<u8> {
        self.try_into().ok()
    }

    #[inline]
    fn from_byte(byte: u8) -> Self {
        byte.into()
    }
}

impl Pack for EdgeSlot {
    #[inline]
    fn to_byte(self) -> Option<u8> {
        // Whether it is interior, then the offset.
        self.bits().rotate_left(1).try_into().ok()
    }

    #[inline]
    fn from_byte(byte: u8) -> Self {
        Self::from_bits(u32::from(byte).rotate_right(1))
    }
}

/// A column of items that are small mostly: a byte and a little for each, and for a large one
/// (255 or more) its own size besides.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed<T> {
    items: Apart<u8, T>,
}

impl<T: Pack> Packed<T> {
    /// A column with room for so many items that are small.
    #[must_use]
    pub fn with_capacity(items: usize) -> Self {
        let mut column = Self::default();
        column.reserve(items);
        column
    }

    /// Makes room for so many more items that are small.
    pub fn reserve(&mut self, items: usize) {
        self.items.reserve(items);
    }

    /// Appends an item.
    #[inline]
    pub fn push(&mut self, item: T) {
        self.items.push(item.to_byte(), item);
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.short.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.short.is_empty()
    }

    /// The item at an index below [`Packed::len`].
    ///
    /// # Panics
    /// Where there is none, as a slice does.
    #[inline]
    #[must_use]
    pub fn at(&self, index: usize) -> T {
        self.items.at(index).map_or_else(|item| item, T::from_byte)
    }

    /// The item at an index, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<T> {
        (index < self.len()).then(|| self.at(index))
    }

    /// The last item.
    #[must_use]
    pub fn last(&self) -> Option<T> {
        self.get(self.len().checked_sub(1)?)
    }

    /// All items.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = T> + ExactSizeIterator + Clone + '_ {
        self.range(0..self.len())
    }

    /// The items from one index up to (not including) another.
    pub fn range(
        &self,
        range: Range<usize>,
    ) -> impl DoubleEndedIterator<Item = T> + ExactSizeIterator + Clone + '_ {
        range.map(|i| self.at(i))
    }

    /// The bytes that its items take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.items.bytes()
    }
}

impl<T: Pack> Default for Packed<T> {
    fn default() -> Self {
        let items = Apart::EMPTY;
        Self { items }
    }
}

impl<T: Pack> Extend<T> for Packed<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        items.into_iter().for_each(|item| self.push(item));
    }
}

impl<T: Pack> FromIterator<T> for Packed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut column = Self::default();
        column.extend(items);
        column
    }
}

impl<T: Pack + fmt::Debug> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A column of addresses, ascending mostly: 2 bytes and a little for each where they lie close
/// together and apart by multiples of 8; 8 more for others.
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses {
    /// In words of 8 bytes from the first of the block.
    offsets: Apart<u16, u64>,
    /// The first address of each block.
    firsts: Vec<u64>,
}

impl Addresses {
    /// Makes room for so many more addresses.
    pub fn reserve(&mut self, addresses: usize) {
        self.offsets.reserve(addresses);
        self.firsts.reserve_exact(addresses.div_ceil(BLOCK));
    }

    /// Appends an address.
    #[inline]
    pub fn push(&mut self, address: u64) {
        if self.len().is_multiple_of(BLOCK) {
            self.firsts.push(address);
        }
        let first = self.firsts[self.len() / BLOCK];
        let short = (address.checked_sub(first))
            .filter(|bytes| bytes.is_multiple_of(8))
            .and_then(|bytes| (bytes / 8).try_into().ok());
        self.offsets.push(short, address);
    }

    /// How many addresses there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.short.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.short.is_empty()
    }

    /// The address at an index below [`Addresses::len`].
    ///
    /// # Panics
    /// Where there is none, as a slice does.
    #[inline]
    #[must_use]
    pub fn at(&self, index: usize) -> u64 {
        let offset = self.offsets.at(index);
        offset.map_or_else(
            |address| address,
            |words| self.firsts[index / BLOCK] + u64::from(words) * 8,
        )
    }

    /// The address at an index, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u64> {
        (index < self.len()).then(|| self.at(index))
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.get(self.len().checked_sub(1)?)
    }

    /// All addresses.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + Clone + '_ {
        (0..self.len()).map(|i| self.at(i))
    }

    /// How many addresses are up to (and including) this one, where they ascend.
    #[must_use]
    pub fn count_to(&self, address: u64) -> usize {
        let blocks = self.firsts.partition_point(|&first| first <= address);
        let Some(last) = blocks.checked_sub(1) else {
            return 0;
        };
        let (mut low, mut high) = (last * BLOCK, self.len().min(blocks * BLOCK));
        while low < high {
            let middle = low.midpoint(high);
            if self.at(middle) <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The bytes that the addresses take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.offsets.bytes() + size_of_val(&self.firsts[..])
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            offsets: Apart::EMPTY,
            firsts: Vec::new(),
        }
    }
}

impl FromIterator<u64> for Addresses {
    fn from_iter<I: IntoIterator<Item = u64>>(addresses: I) -> Self {
        let mut column = Self::default();
        addresses.into_iter().for_each(|a| column.push(a));
        column
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A column of yes and no: a bit for each.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    length: usize,
}

impl Bits {
    /// So many bits that are not set.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self {
            words: vec![0; length.div_ceil(64)],
            length,
        }
    }

    /// Appends a bit.
    #[inline]
    pub fn push(&mut self, set: bool) {
        if self.length.is_multiple_of(64) {
            self.words.push(0);
        }
        self.words[self.length / 64] |= u64::from(set) << (self.length % 64);
        self.length += 1;
    }

    /// Appends so many equal bits.
    pub fn push_run(&mut self, length: usize, set: bool) {
        (0..length).for_each(|_| self.push(set));
    }

    /// How many bits there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the bit at an index below [`Bits::len`] is set.
    ///
    /// # Panics
    /// Where there is none, as a slice does.
    #[inline]
    #[must_use]
    pub fn at(&self, index: usize) -> bool {
        self.words[index / 64] >> (index % 64) & 1 == 1
    }

    /// The bit at an index, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<bool> {
        (index < self.length).then(|| self.at(index))
    }

    /// Sets the bit at an index below [`Bits::len`]; says whether it was set before.
    ///
    /// # Panics
    /// Where there is none, as a slice does.
    #[inline]
    pub fn set(&mut self, index: usize) -> bool {
        let (word, bit) = (&mut self.words[index / 64], 1 << (index % 64));
        let was = *word & bit != 0;
        *word |= bit;
        was
    }

    /// All bits.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = bool> + ExactSizeIterator + Clone + '_ {
        (0..self.length).map(|i| self.at(i))
    }

    /// The lengths of the runs of equal bits; the first run is of bits that are not set, and
    /// has none where the first bit is.
    pub fn runs(&self) -> impl Iterator<Item = usize> + '_ {
        let (mut from, mut set) = (0, false);
        std::iter::from_fn(move || {
            if from >= self.length {
                return None;
            }
            let start = from;
            while from < self.length && self.at(from) == set {
                from += 1;
            }
            set = !set;
            Some(from - start)
        })
    }

    /// The bytes that the bits take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&self.words[..])
    }
}

impl FromIterator<bool> for Bits {
    fn from_iter<I: IntoIterator<Item = bool>>(bits: I) -> Self {
        let mut column = Self::default();
        bits.into_iter().for_each(|set| column.push(set));
        column
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small values, those around the mark, and any, in runs.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        let value = prop_oneof![4 => 0..250u64, 2 => 250..260u64, 1 => any::<u64>()];
        let run = (value, 1..40usize);
        prop::collection::vec(run, 0..40).prop_map(|runs| {
            let runs = runs.into_iter();
            runs.flat_map(|(value, times)| std::iter::repeat_n(value, times))
                .collect()
        })
    }

    fn check<T: Pack + PartialEq + fmt::Debug>(truth: &[T]) {
        let column: Packed<T> = truth.iter().copied().collect();
        assert_eq!(column.iter().collect::<Vec<_>>(), truth);
        assert!(column.iter().rev().eq(truth.iter().rev().copied()));
        assert_eq!(column.len(), truth.len());
        assert_eq!(column.is_empty(), truth.is_empty());
        assert_eq!(column.last(), truth.last().copied());
        for i in 0..=truth.len() {
            assert_eq!(column.get(i), truth.get(i).copied());
        }
        let middle = truth.len() / 3..truth.len() / 2;
        assert!(
            column
                .range(middle.clone())
                .eq(truth[middle].iter().copied())
        );
        let mut halves = Packed::with_capacity(truth.len());
        halves.extend(column.range(0..truth.len() / 2));
        halves.extend(column.range(truth.len() / 2..truth.len()));
        assert!(halves == column);
        assert_eq!(format!("{column:?}"), format!("{truth:?}"));
    }

    proptest! {
        #[test]
        fn a_packed_column_is_a_vec(values in values()) {
            check(&values);
            let narrow: Vec<u32> = values.iter().map(|&v| v as u32).collect();
            check(&narrow);
            let slots: Vec<EdgeSlot> = (values.iter())
                .map(|&v| EdgeSlot::from_bits((v as u32).rotate_right(1)))
                .collect();
            check(&slots);
            let column: Packed<u64> = values.iter().copied().collect();
            let large = values.iter().filter(|&&v| v >= 255).count();
            let ranks = values.len().div_ceil(BLOCK);
            prop_assert_eq!(column.bytes(), values.len() + 8 * (large + ranks));
        }

        #[test]
        fn addresses_are_a_vec(
            steps in prop::collection::vec(
                prop_oneof![
                    9 => (1..20u64).prop_map(|w| 8 * w),
                    1 => 0..9u64,
                    1 => any::<u32>().prop_map(u64::from),
                    1 => any::<u64>(),
                ], 0..600),
            start in any::<u32>(),
        ) {
            let mut at = u64::from(start);
            let mut truth: Vec<u64> = (steps.into_iter())
                .map(|step| {
                    at = at.wrapping_add(step);
                    at
                })
                .collect();
            let check = |truth: &[u64]| {
                let column: Addresses = truth.iter().copied().collect();
                assert_eq!(column.iter().collect::<Vec<_>>(), truth);
                for i in 0..=truth.len() {
                    assert_eq!(column.get(i), truth.get(i).copied());
                }
                assert_eq!((column.last(), column.len()), (truth.last().copied(), truth.len()));
                column
            };
            check(&truth);
            truth.sort_unstable();
            let column = check(&truth);
            let asked = truth.iter().flat_map(|&a| [a, a.saturating_sub(1), a.saturating_add(1)]);
            for address in asked.chain([0, u64::MAX]) {
                let count = truth.partition_point(|&a| a <= address);
                prop_assert_eq!(column.count_to(address), count);
            }
        }

        #[test]
        fn bits_are_a_vec(runs in prop::collection::vec((1..100usize, any::<bool>()), 0..9)) {
            let mut bits = Bits::default();
            let mut truth = Vec::new();
            for (length, set) in runs {
                bits.push_run(length, set);
                truth.extend(std::iter::repeat_n(set, length));
            }
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), truth.clone());
            for i in 0..=truth.len() {
                prop_assert_eq!(bits.get(i), truth.get(i).copied());
            }
            let mut again = Bits::default();
            for (i, run) in bits.runs().enumerate() {
                prop_assert!(run > 0 || i == 0);
                again.push_run(run, i % 2 == 1);
            }
            prop_assert_eq!(&again, &bits);
            let mut set = Bits::new(truth.len());
            for (i, _) in truth.iter().enumerate().filter(|t| *t.1) {
                prop_assert!(!set.set(i));
                prop_assert!(set.set(i));
            }
            prop_assert_eq!(set, bits);
        }
    }
}
