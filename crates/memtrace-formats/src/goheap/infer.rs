//! Types of objects that nothing names, by size and pointer mask.
//!
//! A stripped program does not tell the types of its variables, and no program those of what a
//! closure captured. But every type that is allocated has a descriptor, and the allocator knows
//! exactly which words of an object are pointers: often one type alone fits, and where
//! several do, what the pointers lead to tells them apart.

use std::collections::{HashMap, HashSet};

use super::code::Code;
use super::descriptor::Descriptor;
use super::image::Image;
use super::masks::{self, ArenaBits};
use super::memory::Window;
use super::spans::{Pointers, Spans};
use super::types::{Form, Pointee, TypeNo};
use super::typing::{Trust, Typing, What};

/// The largest object whose mask is one word.
const MAX_SIZE: u64 = 512;
/// Objects of a mask that are looked at to tell types apart.
const SAMPLE: usize = 64;
/// Types that are taken in.
const MAX_TYPES: usize = 1 << 18;
/// Bytes of descriptors that are searched.
const MAX_BYTES: u64 = 256 << 20;
/// Rounds of inferring and following.
const ROUNDS: usize = 8;

/// Size of an object's place, and a bit for each word that is a pointer.
type Mask = (u64, u64);

/// The addresses of all descriptors of a program: what looks like one in the memory where
/// types are.
fn descriptors(window: &Window<'_>, image: &Image) -> Vec<u64> {
    let mut found = Vec::new();
    for module in &image.modules {
        let length = module.types.1.saturating_sub(module.types.0);
        let Ok(bytes) = window.bytes(module.types.0, length, MAX_BYTES) else {
            continue;
        };
        for (i, head) in (0_u64..).zip(bytes.as_chunks::<8>().0.windows(3)) {
            let [size, pointers, rest] = [0, 1, 2].map(|w| u64::from_le_bytes(head[w]));
            let kind = (rest >> 56) as u8 & 31;
            // Most words are told apart without another look.
            if size > 1 << 32
                || pointers > size
                || !pointers.is_multiple_of(8)
                || !(1..=26).contains(&kind)
                || found.len() >= MAX_TYPES
            {
                continue;
            }
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
    /// Elements of slices.
    elements: Vec<(TypeNo, u64, u64)>,
}

impl Candidates {
    fn of(typing: &mut Typing<'_>, descriptors: &[u64]) -> Self {
        let mut all = Self {
            of: HashMap::new(),
            elements: Vec::new(),
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
                    }
                    Pointee::Object(Form::Array, element) => {
                        let size = typing.types.size(element);
                        if let Some(mask) = mask(typing, Form::Value, element)
                            && size <= MAX_SIZE
                            && size > 0
                        {
                            all.elements.push((element, size, mask));
                        }
                    }
                    Pointee::Object(Form::Channel, of) => all.add(typing, Form::Channel, of),
                    _ => {}
                }
            }
        }
        all.elements.sort_unstable();
        all.elements.dedup();
        all
    }

    fn add(&mut self, typing: &mut Typing<'_>, form: Form, number: TypeNo) {
        let size = match form {
            Form::Value => typing.types.size(number),
            Form::MapEntries => typing.types.stride(form, number),
            // Headers have the runtime's own sizes.
            Form::Map => 48,
            _ => return,
        };
        let Some(mask) = mask(typing, form, number).filter(|_| size <= MAX_SIZE) else {
            return;
        };
        let list = self
            .of
            .entry((super::typing::place(size), mask))
            .or_default();
        let what = What::Of(form, number);
        if !list.contains(&what) {
            list.push(what);
        }
    }

    /// What objects of this size and mask may be.
    fn fitting(&self, (size, mask): Mask) -> Vec<What> {
        let mut fitting = self.of.get(&(size, mask)).cloned().unwrap_or_default();
        for &(element, bytes, of_one) in &self.elements {
            let (mut built, mut count) = (0_u64, 0);
            while (count + 1) * bytes <= size {
                built |= of_one << (count * bytes / 8);
                count += 1;
                if built == mask && count > 1 && super::typing::place(count * bytes) == size {
                    fitting.push(What::Of(Form::Array, element));
                    break;
                }
            }
        }
        fitting
    }
}

/// A bit for each pointer of a value; `None` where it has none or is too long.
fn mask(typing: &mut Typing<'_>, form: Form, number: TypeNo) -> Option<u64> {
    let slots = typing.types.slots(form, number);
    let bits = slots.iter().map(|s| s.offset / 8);
    if slots.is_empty() || slots.iter().any(|s| s.offset >= MAX_SIZE) {
        return None;
    }
    Some(bits.fold(0, |mask, bit| mask | 1 << bit))
}

/// Claims types for objects that have none.
pub(crate) fn infer(
    typing: &mut Typing<'_>,
    window: &Window<'_>,
    image: &Image,
    code: &Code,
    spans: &Spans,
) {
    let descriptors = descriptors(window, image);
    let candidates = Candidates::of(typing, &descriptors);
    let mut unknown: Vec<(Mask, u32)> = Vec::new();
    for span in &spans.list {
        let bits = match span.pointers {
            _ if span.size > MAX_SIZE => continue,
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
            let mut mask = 0_u64;
            let start = u64::from(index) * span.size;
            if let Some(bits) = &bits {
                bits.each(start, start + span.size, |o| mask |= 1 << ((o - start) / 8));
            } else {
                if bytes.is_empty() {
                    bytes = window
                        .bytes(span.start, span.bytes, MAX_BYTES)
                        .unwrap_or_default();
                }
                masks::in_span(span, &bytes, index, |o| mask |= 1 << (o / 8));
            }
            unknown.push(((span.size, mask), node));
        }
    }
    unknown.sort_unstable();
    for _ in 0..ROUNDS {
        let mut found = false;
        for group in unknown.chunk_by(|a, b| a.0 == b.0) {
            let left: Vec<u32> = group
                .iter()
                .map(|u| u.1)
                .filter(|&n| typing.what(n).is_none())
                .collect();
            if left.is_empty() {
                continue;
            }
            if let Some(what) = choose(
                typing,
                candidates.fitting(group[0].0),
                &code.allocated,
                &left,
            ) {
                found = true;
                for node in left {
                    typing.claim(node, what, Trust::Inferred);
                }
            }
        }
        if !found {
            break;
        }
        typing.propagate();
    }
}

/// The only type that what objects lead to does not speak against; of several, the only one
/// that the code is seen to allocate.
fn choose(
    typing: &mut Typing<'_>,
    fitting: Vec<What>,
    allocated: &HashSet<TypeNo>,
    nodes: &[u32],
) -> Option<What> {
    let step = (nodes.len() / SAMPLE).max(1);
    let mut left: Vec<(bool, u32, What)> = Vec::new();
    for what in fitting {
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
        [(_, _, what)] => Some(what),
        [a, b, ..] => ((a.0, a.1) != (b.0, b.1)).then_some(a.2),
    }
}
