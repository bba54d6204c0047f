//! Types of objects that nothing names, by size and pointer mask.
//!
//! A stripped program does not tell the types of its variables, and no program those of what a
//! closure captured. But every type that is allocated has a descriptor, and the allocator knows
//! exactly which words of an object are pointers: often one type alone fits, and where
//! several do, what the pointers lead to tells them apart.

use hashbrown::{HashMap, HashSet};

use super::classes::Allocator;
use super::code::Code;
use super::descriptor::Descriptor;
use super::image::Image;
use super::masks::{self, ArenaBits};
use super::memory::Window;
use super::spans::{Pointers, Spans};
use super::types::{Form, Pointee, TypeNo};
use super::typing::{Trust, Typing, What};

/// The largest object that is looked at: before Go 1.22 no object names its type, and a large
/// map has large tables; since then those of more than 512 bytes do. And the largest type.
const MAX_OBJECT: u64 = 1 << 28;
const MAX_SIZE: u64 = 1 << 20;
/// Objects of a mask that are looked at to tell types apart.
const SAMPLE: usize = 64;
/// Types that are taken in.
const MAX_TYPES: usize = 1 << 18;
/// Bytes of descriptors that are searched.
const MAX_BYTES: u64 = 256 << 20;
/// Places that look like descriptors at first sight.
const MAX_TRIES: usize = 4 * MAX_TYPES;
/// Words of masks of types that are kept, types that share one, and how often it is tried
/// whether an array has a mask.
const MAX_MASKS: usize = 16 << 20;
const MAX_ALIKE: usize = 1 << 10;
const MAX_BUILT: usize = 1 << 27;
/// Objects of one mask that are looked at one by one, where they may be of several types.
const MAX_SINGLE: usize = 1 << 17;
/// Rounds of inferring and following.
const ROUNDS: usize = 8;

/// Size of an object's place, and a bit for each word that is a pointer.
type Mask = (u64, Vec<u64>);

/// Sets the bit of the word at an offset.
fn set(mask: &mut Vec<u64>, offset: u64) {
    let (word, bit) = ((offset / 512) as usize, offset / 8 % 64);
    if mask.len() <= word {
        mask.resize(word + 1, 0);
    }
    mask[word] |= 1 << bit;
}

/// The addresses of all descriptors of a program: what looks like one in the memory where
/// types are.
pub(crate) fn descriptors(window: &Window<'_>, image: &Image) -> Vec<u64> {
    let mut found = Vec::new();
    let (mut left, mut tries) = (MAX_BYTES, MAX_TRIES);
    for module in &image.modules {
        let length = module.types.1.saturating_sub(module.types.0);
        let Ok(bytes) = window.bytes(module.types.0, length, left) else {
            continue;
        };
        left -= bytes.len() as u64;
        for (i, head) in (0_u64..).zip(bytes.as_chunks::<8>().0.windows(3)) {
            let [size, pointers, rest] = [0, 1, 2].map(|w| u64::from_le_bytes(head[w]));
            let kind = (rest >> 56) as u8 & 31;
            // Most words are told apart without another look.
            if size > 1 << 32
                || pointers > size
                || !pointers.is_multiple_of(8)
                || !(1..=26).contains(&kind)
                || found.len() >= MAX_TYPES
                || tries == 0
            {
                continue;
            }
            tries -= 1;
            let address = module.types.0 + 8 * i;
            if Descriptor::recognise(window, image, address).is_some() {
                found.push(address);
            }
        }
    }
    found
}

/// Types that may be those of small objects with pointers.
struct Candidates {
    of: HashMap<Mask, Vec<What>>,
    /// What stands side by side in arrays: size and the offsets of pointers.
    elements: Vec<(What, u64, Vec<u64>)>,
    /// The runtime's own types of parts of maps: for those whose map cannot be told.
    parts: HashMap<Mask, What>,
    seen: HashSet<What>,
    /// Words of masks that may still be kept.
    room: usize,
    /// Elements that may still be looked at.
    effort: usize,
}

impl Candidates {
    fn of(typing: &mut Typing<'_>, descriptors: &[u64]) -> Self {
        let mut all = Self {
            of: HashMap::new(),
            elements: Vec::new(),
            parts: HashMap::new(),
            seen: HashSet::new(),
            room: MAX_MASKS,
            effort: MAX_BUILT,
        };
        for &address in descriptors {
            let Some(number) = typing.types.runtime(address) else {
                continue;
            };
            all.add(typing, Form::Value, number);
            for to in typing.types.leads_to(number) {
                match to {
                    Pointee::Object(Form::Map, map) => {
                        all.add(typing, Form::Map, map);
                        all.add(typing, Form::MapEntries, map);
                        let size = typing.types.stride(Form::MapEntries, map);
                        all.side_by_side(typing, Form::MapEntries, map, size);
                        all.add(typing, Form::MapTable, map);
                        all.side_by_side(typing, Form::MapDirectory, map, 8);
                    }
                    Pointee::Object(Form::Array, element) => {
                        let size = typing.types.size(element);
                        all.side_by_side(typing, Form::Array, element, size);
                    }
                    Pointee::Object(Form::Channel, of) => all.add(typing, Form::Channel, of),
                    _ => {}
                }
            }
        }
        all
    }

    fn side_by_side(&mut self, typing: &mut Typing<'_>, form: Form, number: TypeNo, size: u64) {
        let what = What::Of(form, number);
        if !(1..=MAX_SIZE).contains(&size) || !self.seen.insert(what) {
            return;
        }
        let offsets = offsets(typing, form, number);
        if !offsets.is_empty() && self.take(offsets.len()) {
            self.elements.push((what, size, offsets));
        }
    }

    fn take(&mut self, words: usize) -> bool {
        let left = self.room.checked_sub(words);
        self.room = left.unwrap_or(self.room);
        left.is_some()
    }

    fn add(&mut self, typing: &mut Typing<'_>, form: Form, number: TypeNo) {
        let size = match form {
            Form::Value => typing.types.size(number),
            Form::MapEntries => typing.types.stride(form, number),
            // The runtime's own.
            Form::Map => 48,
            Form::MapTable => 32,
            _ => return,
        };
        let offsets = offsets(typing, form, number);
        if offsets.is_empty() || size > MAX_SIZE {
            return;
        }
        let mask = mask_of(&offsets, size, typing.allocator.masked(size));
        if !self.take(mask.len()) {
            return;
        }
        let key = (typing.allocator.place(size, 0), mask);
        let what = What::Of(form, number);
        if form == Form::Value && typing.types.is_part_of_map(number) {
            self.parts.insert(key, what);
            return;
        }
        let list = self.of.entry(key).or_default();
        if list.len() < MAX_ALIKE && !list.contains(&what) {
            list.push(what);
        }
    }

    /// What objects of this size and mask may be.
    fn fitting(&mut self, allocator: Allocator, key: &Mask) -> Vec<What> {
        let (size, mask) = key;
        let mut fitting = self.of.get(key).cloned().unwrap_or_default();
        let pointers: u32 = mask.iter().map(|w| w.count_ones()).sum();
        for (element, bytes, offsets) in &self.elements {
            if self.effort == 0 {
                break;
            }
            self.effort -= 1;
            // So many elements have that many pointers; some of them may be of a red zone.
            let most = (u64::from(pointers) / offsets.len() as u64).min(size / bytes);
            let single = matches!(element, What::Of(Form::MapDirectory, _));
            let least = if single { 1 } else { 2 };
            for count in (least..=most).rev() {
                let length = count.saturating_mul(*bytes);
                let masked = allocator.masked(length);
                if allocator.place(length, 0) == *size {
                    self.effort = self.effort.saturating_sub(pointers as usize);
                    if mask_of(offsets, *bytes, masked) == *mask {
                        fitting.push(*element);
                        break;
                    }
                }
                if masked == length || allocator.place(length, 0) < *size || self.effort == 0 {
                    break;
                }
            }
        }
        fitting
    }
}

/// The mask of so many `bytes` of values of a size side by side.
fn mask_of(offsets: &[u64], size: u64, bytes: u64) -> Vec<u64> {
    let mut mask = Vec::new();
    let mut start = 0;
    while start < bytes {
        let pointers = offsets.iter().map(|o| start + o);
        pointers
            .take_while(|p| p + 8 <= bytes)
            .for_each(|p| set(&mut mask, p));
        start += size.max(8);
    }
    mask
}

/// The offset of each pointer of a value; none where there are too many.
fn offsets(typing: &mut Typing<'_>, form: Form, number: TypeNo) -> Vec<u64> {
    let slots = typing.types.slots(form, number);
    if slots.iter().any(|s| s.offset >= MAX_SIZE) {
        return Vec::new();
    }
    slots.iter().map(|s| s.offset).collect()
}

/// Objects of one size and mask, and what they may be.
struct Group {
    fitting: Vec<What>,
    nodes: Vec<u32>,
}

/// Claims types for objects that have none.
pub(crate) fn infer(
    typing: &mut Typing<'_>,
    window: &Window<'_>,
    image: &Image,
    code: &Code,
    descriptors: &[u64],
    spans: &Spans,
) {
    let mut candidates = Candidates::of(typing, descriptors);
    let mut unknown: Vec<(Mask, u32)> = Vec::new();
    for span in &spans.list {
        let bits = match span.pointers {
            _ if span.size > MAX_OBJECT => continue,
            Pointers::SpanBitmap(_) => None,
            Pointers::ArenaBitmap => ArenaBits::read(window, image, span),
            _ => continue,
        };
        let (first, objects) = spans.objects(span);
        let mut bytes = Vec::new();
        for (node, (index, _)) in (first..).zip(objects) {
            if typing.what(node).is_some() {
                continue;
            }
            let mut mask = Vec::new();
            let start = u64::from(index) * span.size;
            if let Some(bits) = &bits {
                bits.each(start, start + span.size, |o| set(&mut mask, o - start));
            } else {
                if bytes.is_empty() {
                    bytes = window
                        .bytes(span.start, span.bytes, MAX_BYTES)
                        .unwrap_or_default();
                }
                masks::in_span(span, &bytes, index, |o| set(&mut mask, o));
            }
            unknown.push(((span.size, mask), node));
        }
    }
    unknown.sort_unstable();
    let groups: Vec<Group> = unknown
        .chunk_by(|a, b| a.0 == b.0)
        .map(|group| Group {
            fitting: candidates.fitting(typing.allocator, &group[0].0),
            nodes: group.iter().map(|u| u.1).collect(),
        })
        .collect();
    for _ in 0..ROUNDS {
        let mut found = parts_of_maps(typing, &groups);
        for node in typing.unknown_directories() {
            let tables = typing.targets(node).iter();
            let map = tables
                .filter_map(|&t| typing.what(t))
                .find_map(|w| match w {
                    What::Of(Form::MapTable, map) => Some(map),
                    _ => None,
                });
            if let Some(map) = map {
                typing.claim(node, What::Of(Form::MapDirectory, map), Trust::Inferred);
                found |= typing.what(node).is_some();
            }
        }
        for Group { fitting, nodes } in &groups {
            let left: Vec<u32> = nodes
                .iter()
                .copied()
                .filter(|&n| typing.what(n).is_none())
                .collect();
            if left.is_empty() || fitting.is_empty() || typing.effort == 0 {
                continue;
            }
            if let Some(what) = choose(typing, fitting, &code.allocated, &left, false) {
                found = true;
                for node in left {
                    typing.claim(node, what, Trust::Inferred);
                }
                continue;
            }
            for &node in left.iter().take(MAX_SINGLE) {
                if typing.effort == 0 {
                    break;
                }
                if let Some(what) = choose(typing, fitting, &code.allocated, &[node], true) {
                    found = true;
                    typing.claim(node, what, Trust::Inferred);
                }
            }
        }
        if !found {
            break;
        }
        typing.propagate();
    }
    typing.give_up_directories();
    for (mask, node) in &unknown {
        if let Some(&what) = candidates.parts.get(mask) {
            typing.claim(*node, what, Trust::Inferred);
        }
    }
    typing.propagate();
}

/// Claims what leads to the entries of maps: tables, then directories, then headers.
fn parts_of_maps(typing: &mut Typing<'_>, groups: &[Group]) -> bool {
    const LEVELS: usize = 3;
    let is_part = |w: &What| !matches!(w, What::Of(Form::Value | Form::Array, _));
    let mut found = false;
    for _ in 0..LEVELS {
        for Group { fitting, nodes } in groups {
            if !fitting.iter().any(is_part) {
                continue;
            }
            for &node in nodes {
                found |= typing.what(node).is_none() && part_of_map(typing, fitting, node);
            }
        }
    }
    found
}

/// Claims a map's header, table or directory by the entries or tables that it leads to.
fn part_of_map(typing: &mut Typing<'_>, fitting: &[What], node: u32) -> bool {
    let leads_to = |of: &mut Typing<'_>| of.targets(node).iter().find_map(|&t| of.what(t));
    let Some(What::Of(below, map)) = leads_to(typing) else {
        return false;
    };
    let above: &[Form] = match below {
        Form::MapEntries => &[Form::MapTable, Form::Map],
        Form::MapTable => &[Form::MapDirectory],
        Form::MapDirectory => &[Form::Map],
        _ => return false,
    };
    for what in above.iter().map(|&form| What::Of(form, map)) {
        if fitting.contains(&what) && typing.agreement(node, what).1 == 0 {
            typing.claim(node, what, Trust::Inferred);
            return typing.what(node).is_some();
        }
    }
    false
}

/// The only type that what objects lead to does not speak against; of several, the only one
/// that the code is seen to allocate and that most speaks for. Where it must, something
/// has to speak for it.
fn choose(
    typing: &mut Typing<'_>,
    fitting: &[What],
    allocated: &HashSet<TypeNo>,
    nodes: &[u32],
    must_agree: bool,
) -> Option<What> {
    let step = (nodes.len() / SAMPLE).max(1);
    let mut left: Vec<(bool, u32, What)> = Vec::new();
    for &what in fitting {
        if typing.effort == 0 {
            return None;
        }
        let (mut agree, mut differ) = (0, 0);
        for &node in nodes.iter().step_by(step) {
            let (a, d) = typing.agreement(node, what);
            agree += a;
            differ += d;
        }
        if differ == 0 {
            let made = match what {
                What::Of(Form::Value, kind) => allocated.contains(&kind),
                _ => true,
            };
            left.push((made, agree, what));
        }
    }
    left.sort_unstable_by_key(|&(made, agree, _)| std::cmp::Reverse((made, agree)));
    match left[..] {
        [] => None,
        [(_, 0, _), ..] if must_agree => None,
        [(_, _, what)] => Some(what),
        [a, b, ..] => ((a.0, a.1) != (b.0, b.1)).then_some(a.2),
    }
}
