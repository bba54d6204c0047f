use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Interned lists of `Copy` items in one column (compressed sparse rows).
///
/// List `i` is `items[ends[i-1]..ends[i]]`. Equal lists get the same number.
#[derive(Clone, Debug)]
pub struct Lists<T> {
    items: Vec<T>,
    ends: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            ends: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

/// Equal when they hold equal lists under equal numbers.
impl<T: PartialEq> PartialEq for Lists<T> {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends && self.items == other.items
    }
}

impl<T: Eq> Eq for Lists<T> {}

impl<T: Copy + Eq + Hash> Lists<T> {
    /// The number of `list`, the same for equal lists. `None` when the column is
    /// full (2^32 items or lists).
    pub fn intern(&mut self, list: &[T]) -> Option<u32> {
        let hash = self.hasher.hash_one(list);
        let (items, ends) = (&self.items, &self.ends);
        if let Some(&found) = self.index.find(hash, |&i| slice(items, ends, i) == list) {
            return Some(found);
        }
        let number = u32::try_from(self.ends.len()).ok()?;
        let end = u32::try_from(self.items.len() + list.len()).ok()?;
        self.items.extend_from_slice(list);
        self.ends.push(end);
        let (items, ends, hasher) = (&self.items, &self.ends, &self.hasher);
        self.index
            .insert_unique(hash, number, |&i| hasher.hash_one(slice(items, ends, i)));
        Some(number)
    }

    /// The items of list `number`; empty when there is no such list.
    #[must_use]
    pub fn get(&self, number: u32) -> &[T] {
        slice(&self.items, &self.ends, number)
    }

    /// All lists in the order of their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[T]> {
        (0..self.ends.len()).map(|i| slice(&self.items, &self.ends, i as u32))
    }

    /// How many different lists there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many items all lists have together.
    #[must_use]
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Bytes that the column takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.items.capacity() * size_of::<T>()
            + self.ends.capacity() * size_of::<u32>()
            + self.index.allocation_size()
    }

    /// Whether there is no list at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

fn slice<'a, T>(items: &'a [T], ends: &[u32], number: u32) -> &'a [T] {
    let n = number as usize;
    let Some(&end) = ends.get(n) else { return &[] };
    let start = if n == 0 { 0 } else { ends[n - 1] };
    &items[start as usize..end as usize]
}

/// The beginning of a text: the characters that are whole within so many bytes.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Interned strings in one buffer. Number 0 is the empty string.
#[derive(Clone, Debug)]
pub struct Strings {
    text: String,
    ends: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Default for Strings {
    fn default() -> Self {
        let mut strings = Self {
            text: String::new(),
            ends: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        };
        strings.intern("");
        strings
    }
}

/// Equal when they hold equal strings under equal numbers.
impl PartialEq for Strings {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends && self.text == other.text
    }
}

impl Eq for Strings {}

impl Strings {
    /// The number of `text`, the same for equal strings; 0 (the empty string)
    /// when the column is full (4 GiB of text).
    pub fn intern(&mut self, text: &str) -> u32 {
        let hash = self.hasher.hash_one(text);
        let (all, ends) = (&self.text, &self.ends);
        if let Some(&found) = self.index.find(hash, |&i| string(all, ends, i) == text) {
            return found;
        }
        let (Ok(number), Ok(end)) = (
            u32::try_from(self.ends.len()),
            u32::try_from(self.text.len() + text.len()),
        ) else {
            return 0;
        };
        self.text.push_str(text);
        self.ends.push(end);
        let (all, ends, hasher) = (&self.text, &self.ends, &self.hasher);
        self.index
            .insert_unique(hash, number, |&i| hasher.hash_one(string(all, ends, i)));
        number
    }

    /// The number of `text` where it is known already.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.index
            .find(hash, |&i| string(&self.text, &self.ends, i) == text)
            .copied()
    }

    /// The string with this number; empty when there is none.
    #[must_use]
    pub fn get(&self, number: u32) -> &str {
        string(&self.text, &self.ends, number)
    }

    /// All strings in the order of their numbers, the empty one first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|i| string(&self.text, &self.ends, i as u32))
    }

    /// How many different strings there are, the empty one included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes that the column takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.text.capacity()
            + self.ends.capacity() * size_of::<u32>()
            + self.index.allocation_size()
    }

    /// Never true: the empty string is always there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

fn string<'a>(text: &'a str, ends: &[u32], number: u32) -> &'a str {
    let n = number as usize;
    let Some(&end) = ends.get(n) else { return "" };
    let start = if n == 0 { 0 } else { ends[n - 1] };
    &text[start as usize..end as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_keep_what_they_get(lists in prop::collection::vec(prop::collection::vec(0u32..5, 0..6), 0..60)) {
            let mut column = Lists::default();
            let ids: Vec<u32> = lists.iter().map(|l| column.intern(l).unwrap()).collect();
            for (i, a) in lists.iter().enumerate() {
                prop_assert_eq!(column.get(ids[i]), &a[..]);
                for (j, b) in lists.iter().enumerate() {
                    prop_assert_eq!(a == b, ids[i] == ids[j]);
                }
            }
            prop_assert_eq!(column.get(u32::MAX), &[] as &[u32]);
        }

        #[test]
        fn strings_keep_what_they_get(texts in prop::collection::vec(".{0,4}", 0..60)) {
            let mut column = Strings::default();
            let ids: Vec<u32> = texts.iter().map(|t| column.intern(t)).collect();
            for (text, &id) in texts.iter().zip(&ids) {
                prop_assert_eq!(column.get(id), text);
                prop_assert_eq!(column.find(text), Some(id));
            }
        }
    }
}
