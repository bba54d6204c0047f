//! What the code tells of types: which it allocates, for which function a closure is made,
//! and what it puts into variables.
//!
//! The compiler passes a type to the allocator as an address relative to the next
//! instruction, so that bytes alone tell it; no instruction needs to be decoded. What is found
//! counts only where a descriptor, an allocator or a function is exactly there (amd64).

use hashbrown::{HashMap, HashSet};

use super::functions::Functions;
use super::image::Image;
use super::memory::Window;
use super::types::{Form, Pointee, TypeNo, Types};

/// Bytes of code that are looked at.
const MAX_CODE: u64 = 512 << 20;
/// Bytes before a call in which its arguments are looked for, and after it what is done
/// with the object.
const BEFORE: usize = 48;
const AFTER: usize = 96;

/// What an allocator makes of the type it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Makes {
    Object,
    Elements,
    /// A map or a channel, of its own type.
    Own,
}

#[derive(Debug, Default)]
pub(crate) struct Code {
    /// Types of which single objects are made.
    pub(crate) allocated: HashSet<TypeNo>,
    /// The type of the closures of a function, by its first instruction.
    pub(crate) closures: HashMap<u64, TypeNo>,
    /// What variables are set to, by their addresses.
    pub(crate) variables: HashMap<u64, Pointee>,
}

impl Code {
    pub(crate) fn read(
        window: &Window<'_>,
        image: &Image,
        functions: &Functions,
        types: &mut Types<'_>,
    ) -> Self {
        let mut makers: HashMap<u64, Makes> = HashMap::new();
        let mut add = |makes, wanted: &dyn Fn(&str) -> bool| {
            makers.extend(
                functions
                    .named(wanted)
                    .into_iter()
                    .map(|entry| (entry, makes)),
            );
        };
        add(Makes::Object, &|n| {
            n == "runtime.newobject" || n.starts_with("runtime.mallocgc")
        });
        add(Makes::Elements, &|n| n == "runtime.makeslice");
        add(Makes::Own, &|n| {
            matches!(n, "runtime.makemap" | "runtime.makechan")
        });
        let mut found = Self::default();
        if makers.is_empty() || functions.has_link_register() {
            return found;
        }
        let mut left = MAX_CODE;
        for module in &image.modules {
            let length = module.text.1.saturating_sub(module.text.0);
            if let Ok(code) = window.bytes(module.text.0, length, left) {
                left -= code.len() as u64;
                let text = Text {
                    start: module.text.0,
                    code: &code,
                };
                found.module(&text, &makers, functions, types);
            }
        }
        found
    }

    fn module(
        &mut self,
        text: &Text<'_>,
        makers: &HashMap<u64, Makes>,
        functions: &Functions,
        types: &mut Types<'_>,
    ) {
        for at in 0..text.code.len() {
            if text.code[at] != 0xe8 {
                continue;
            }
            let Some(&makes) = text.relative(at + 1).and_then(|t| makers.get(&t)) else {
                continue;
            };
            // LEAQ type(SB), AX or BX
            let kind = (at.saturating_sub(BEFORE)..at.saturating_sub(6))
                .rev()
                .find_map(|i| {
                    matches!(text.code[i..], [0x48, 0x8d, 0x05 | 0x1d, ..])
                        .then(|| types.runtime(text.relative(i + 3)?))?
                });
            let Some(kind) = kind else {
                continue;
            };
            if makes == Makes::Object {
                self.allocated.insert(kind);
            }
            let to = match makes {
                Makes::Object => Pointee::Object(Form::Value, kind),
                Makes::Elements => Pointee::Object(Form::Array, kind),
                Makes::Own => types.made(kind),
            };
            let is_closure = makes == Makes::Object && types.is_closure(kind);
            let end = (at + 5 + AFTER).min(text.code.len().saturating_sub(7));
            for i in at + 5..end {
                match text.code[i..] {
                    // LEAQ function(SB), register
                    [0x48 | 0x4c, 0x8d, register, ..] if is_closure && register & 0xc7 == 5 => {
                        let entry = text
                            .relative(i + 3)
                            .filter(|&e| functions.at(e).is_some_and(|f| f.entry == e));
                        if let Some(entry) = entry {
                            self.closures.entry(entry).or_insert(kind);
                            break;
                        }
                    }
                    // MOVQ AX, variable(SB)
                    [0x48, 0x89, 0x05, ..] if !is_closure => {
                        if let Some(variable) = text.relative(i + 3) {
                            self.variables.entry(variable).or_insert(to);
                            break;
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Code of a module.
struct Text<'a> {
    start: u64,
    code: &'a [u8],
}

impl Text<'_> {
    /// The address that the four bytes at an offset tell, relative to what follows them.
    fn relative(&self, at: usize) -> Option<u64> {
        let distance = i32::from_le_bytes(*self.code.get(at..)?.first_chunk()?);
        let next = self.start.wrapping_add(at as u64 + 4);
        Some(next.wrapping_add_signed(distance.into()))
    }
}
