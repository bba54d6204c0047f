//! Profiles that no sound service sends: small ones that stand for much, damaged ones, and
//! lies. The same number always gives the same profile.

use std::io::Write as _;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Random numbers (splitmix64) that only the seed decides.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// From 1 to `most`, each order of magnitude as likely as any other.
    pub fn size(&mut self, most: u64) -> u64 {
        let bits = 64 - most.leading_zeros() as u64;
        (self.next() >> (63 - self.below(bits))).clamp(1, most)
    }
}

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn number(&mut self, field: u64, n: u64) {
        self.varint(field << 3);
        self.varint(n);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn part(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut part = Self::default();
        write(&mut part);
        self.bytes(field, &part.0);
    }

    fn packed(&mut self, field: u64, numbers: impl Iterator<Item = u64>) {
        self.part(field, |m| numbers.for_each(|n| m.varint(n)));
    }

    /// Sample types of a Go heap profile, and the strings that `more` adds.
    fn heap(more: &[String]) -> Self {
        let mut m = Self::default();
        let names = [
            "",
            "alloc_objects",
            "count",
            "alloc_space",
            "bytes",
            "inuse_objects",
            "inuse_space",
            "main.a",
        ];
        for name in names {
            m.bytes(6, name.as_bytes());
        }
        for text in more {
            m.bytes(6, text.as_bytes());
        }
        for (kind, unit) in [(1, 2), (3, 4), (5, 2), (6, 4)] {
            m.part(1, |m| {
                m.number(1, kind);
                m.number(2, unit);
            });
        }
        m.number(12, 524_288);
        m
    }

    fn sample(&mut self, stack: impl Iterator<Item = u64>, value: u64) {
        self.part(2, |m| {
            m.packed(1, stack);
            m.packed(
                2,
                [
                    value,
                    value.wrapping_mul(512),
                    value,
                    value.wrapping_mul(512),
                ]
                .into_iter(),
            );
        });
    }

    fn function(&mut self, id: u64, name: u64) {
        self.part(5, |m| {
            m.number(1, id);
            m.number(2, name);
            m.number(4, name);
        });
    }

    fn location(&mut self, id: u64, lines: impl Iterator<Item = (u64, u64)>) {
        self.part(4, |m| {
            m.number(1, id);
            for (function, line) in lines {
                m.part(4, |m| {
                    m.number(1, function);
                    m.number(2, line);
                });
            }
        });
    }
}

/// The first text of the strings that [`Message::heap`] adds.
const MORE: u64 = 8;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    // Memory takes it.
    let _ = packed.write_all(bytes);
    packed.finish().unwrap_or_default()
}

/// 64 MiB of zeros as one member, which is packed once.
fn zeros() -> &'static [u8] {
    static ZEROS: OnceLock<Vec<u8>> = OnceLock::new();
    ZEROS.get_or_init(|| gzip(&vec![0; 64 << 20]))
}

/// How many kinds there are.
pub const KINDS: u64 = 27;

/// Profile number `number`, made from `honest` (one of a real service) or from nothing.
pub fn make(number: u64, honest: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut dice = Dice(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let dice = &mut dice;
    let made = match number % KINDS {
        0 => inline_bomb(dice),
        1 => deep(dice),
        2 => long_names(dice),
        3 => mappings(dice),
        4 => labels(dice),
        5 => [zeros().repeat(dice.size(64) as usize), honest.to_vec()].concat(),
        6 => huge_values(dice),
        7 => dangling(dice),
        8 => plain[..dice.below(plain.len() as u64) as usize].to_vec(),
        9 => plain.repeat(dice.size(64) as usize),
        10 => types(dice),
        11 | 12 => mutated(dice, plain),
        13 | 14 => heap_text(dice),
        15 => goroutine_text(dice),
        16 => tiny_samples(dice),
        17 => definitions(dice),
        18 => expression(dice),
        19 => sample_types(dice),
        20 | 21 => churn(dice),
        22 => honest[..dice.below(honest.len() as u64) as usize].to_vec(),
        23 => other_forms(dice),
        24 => return one_field(dice),
        25 => tags(dice),
        _ => odd_text(dice),
    };
    // Services compress; some do not.
    let small = made.len() < 1 << 20;
    match dice.below(4) {
        _ if made.starts_with(&[0x1f, 0x8b]) => made,
        0 if small => made,
        _ => gzip(&made),
    }
}

/// A sample, as large as an answer may be where nobody compresses it: a byte or two for what
/// takes many.
fn one_field(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    let count = dice.size(15 << 20) as usize;
    m.function(1, 7);
    match dice.below(4) {
        0 => m.bytes(2, &[0x1a, 0].repeat(count / 2)),
        1 => m.part(2, |m| m.packed(2, (0..count as u64).map(|i| i % 100))),
        2 => m.part(2, |m| m.packed(1, (0..count as u64).map(|i| 1 + i % 100))),
        _ => m.bytes(4, &[0x22, 2, 8, 1].repeat(count / 4)),
    }
    m.sample(std::iter::once(1), 5);
    m.0
}

/// Business tags of the SDK, each on samples that have many labels already.
fn tags(dice: &mut Dice) -> Vec<u8> {
    let names = |half: &str| -> Vec<String> {
        let name = |i| format!("memtrace.tag{half}{i:02}");
        (0..64).map(name).collect()
    };
    let mut m = Message::heap(&[names("Hi"), names("Lo")].concat());
    for id in 0..128 {
        m.function(1 + id, MORE + id);
        m.location(1 + id, std::iter::once((1 + id, 1)));
    }
    let (labels, pairs) = (dice.size(3000) as usize, dice.size(4096));
    for pair in 0..pairs {
        m.part(2, |m| {
            m.packed(1, [65 + pair % 64, 1 + pair / 64].into_iter());
            m.packed(2, [1, 512, 1, 512].into_iter());
            m.0.extend([0x1a, 0].repeat(labels));
        });
    }
    m.0
}

/// A text form that is no text, or whose mappings are written by variables.
fn odd_text(dice: &mut Dice) -> Vec<u8> {
    let mut text = b"heap profile: 1: 8 [1: 8] @ heap/1048576\n1: 8 [1: 8] @ 0x1 0x2\n".to_vec();
    match dice.below(2) {
        0 => text.resize(text.len() + dice.size(30 << 20) as usize, 0xff),
        _ => {
            let value = "y".repeat(dice.size(8000) as usize);
            text.extend(format!("MAPPED_LIBRARIES:\na={value}\n").bytes());
            for i in 0..dice.size(100_000) {
                text.extend(format!("{:x}-{:x}: $a\n", 2 * i + 1, 2 * i + 2).bytes());
            }
        }
    }
    text
}

fn inline_bomb(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    m.function(1, 7);
    m.location(1, (0..dice.size(100_000)).map(|i| (1, i)));
    for _ in 0..dice.size(32) {
        let (depth, value) = (dice.size(100_000), dice.size(1000));
        m.sample((0..depth).map(|_| 1), value);
    }
    m.0
}

fn deep(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    let ids = dice.size(5000);
    m.function(1, 7);
    for id in 1..=ids {
        m.location(id, std::iter::once((1, id)));
    }
    for s in 0..dice.size(64) {
        let depth = dice.size(100_000);
        m.sample((0..depth).map(|i| (i * 31 + s) % ids + 1), s + 1);
    }
    m.0
}

fn long_names(dice: &mut Dice) -> Vec<u8> {
    let length = dice.size(3_000_000) as usize;
    let mut m = Message::heap(&["long".repeat(length / 4 + 1)]);
    let lines = dice.size(50_000);
    for id in 1..=lines {
        m.function(id, MORE);
        m.location(id, (0..dice.size(8)).map(|i| (id, i)));
    }
    for s in 0..dice.size(2000) {
        let depth = dice.size(200);
        m.sample((0..depth).map(|i| (i * 7 + s) % lines + 1), s + 1);
    }
    m.0
}

fn mappings(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&["/usr/lib/x.so".repeat(100)]);
    for id in 1..=dice.size(200_000) {
        m.part(3, |m| {
            m.number(1, id);
            m.number(2, id << 12);
            m.number(3, (id + 1) << 12);
            m.number(5, MORE);
            m.number(6, MORE);
        });
        m.part(4, |m| {
            m.number(1, id);
            m.number(2, id);
            m.number(3, id << 12);
        });
    }
    m.sample(1..=100, 5);
    m.0
}

fn labels(dice: &mut Dice) -> Vec<u8> {
    let names: Vec<String> = (0..dice.size(50_000))
        .map(|i| format!("{i}{}", "v".repeat(dice.size(200) as usize)))
        .collect();
    let count = names.len() as u64;
    let mut m = Message::heap(&names);
    m.function(1, 7);
    m.location(1, std::iter::once((1, 1)));
    let (samples, each) = (dice.size(5000), dice.size(500));
    for s in 0..samples {
        m.part(2, |m| {
            m.packed(1, std::iter::once(1));
            m.packed(2, [1, 512, 1, 512].into_iter());
            for l in 0..each {
                m.part(3, |m| {
                    m.number(1, MORE + l % count);
                    m.number(2, MORE + (l * 31 + s) % count);
                });
            }
        });
    }
    m.0
}

fn huge_values(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    m.function(1, 7);
    for id in 1..=100 {
        m.location(id, std::iter::once((1, u64::MAX - id)));
    }
    for s in 0..dice.size(5000) {
        let value = match dice.below(4) {
            0 => u64::MAX,
            1 => i64::MIN as u64,
            2 => i64::MAX as u64,
            _ => dice.next(),
        };
        m.sample((0..dice.size(50)).map(|i| (i + s) % 100 + 1), value);
    }
    m.number(9, dice.next());
    m.number(10, dice.next());
    m.number(12, dice.next());
    m.0
}

/// Ids that are 0, that nothing defines, that are defined twice, or that are far apart.
fn dangling(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    for _ in 0..dice.size(20_000) {
        let id = if dice.below(2) == 0 {
            dice.below(8)
        } else {
            dice.next()
        };
        match dice.below(4) {
            0 => m.function(id, dice.next()),
            1 => m.location(id, (0..dice.below(4)).map(|i| (id.wrapping_mul(i), i))),
            2 => m.part(3, |m| m.number(1, id)),
            _ => m.sample((0..dice.size(20)).map(|i| id.wrapping_add(i)), id),
        }
    }
    m.0
}

/// Fields of every number with every kind of value, nested at random.
fn types(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    for _ in 0..dice.size(20_000) {
        m.varint(dice.below(20) << 3 | dice.below(6));
        match dice.below(3) {
            0 => m.varint(dice.next() >> dice.below(64)),
            1 => m.varint(dice.below(12)),
            _ => m.0.extend(dice.next().to_le_bytes()),
        }
    }
    m.0
}

fn mutated(dice: &mut Dice, plain: &[u8]) -> Vec<u8> {
    let mut bytes = plain.to_vec();
    for _ in 0..dice.size(200) {
        let at = dice.below(bytes.len() as u64) as usize;
        match dice.below(3) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next() as u8,
            _ => {
                let end = (at + dice.size(5000) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = dice.below(bytes.len() as u64) as usize;
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn heap_text(dice: &mut Dice) -> Vec<u8> {
    let kind = [
        "heap/1048576",
        "heapz_v2/524288",
        "heapprofile",
        "growthz",
        "heap_v2/0",
    ];
    let kind = kind[dice.below(5) as usize];
    let mut text = format!("heap profile: 3: 4 [5: 6] @ {kind}\n");
    let frames = dice.below(2) == 0;
    let mut left: i64 = 1 << dice.below(24);
    while left > 0 {
        let depth = dice.size(20_000);
        text += &format!(
            "{0}: {1} [{0}: {1}] @",
            dice.size(1 << 40),
            dice.next() >> 2
        );
        let first = dice.next() >> 20;
        for i in 0..depth {
            text += &format!(" {:#x}", first + i * dice.below(3));
        }
        text += "\n";
        for i in (0..depth).filter(|_| frames) {
            text += &format!("#\t{:#x}\tf{i}+0x1\t\t/a/{i}.go:{i}\n", first + i / 3);
        }
        left -= depth as i64 * 40;
    }
    if dice.below(2) == 0 {
        text += "--- Memory map: ---\n";
        for i in 0..dice.size(50_000) {
            text += &format!(
                "v{i}=$v{}$v{}\n{:x}-{:x}: $v{i}/x\n",
                i / 2,
                i / 3,
                i << 12,
                (i + 1) << 12
            );
        }
    } else {
        text += "# runtime.MemStats\n# PauseEnd = [";
        for _ in 0..dice.size(100_000) {
            text += "18446744073709551615 ";
        }
        text += "]\n# NumGC = 4294967295\n";
    }
    text.into_bytes()
}

fn goroutine_text(dice: &mut Dice) -> Vec<u8> {
    if dice.below(3) == 0 {
        let stacks = (0..dice.size(20_000))
            .map(|i| format!("goroutine {i} [chan receive]:\nmain.f({i})\n\t/a.go:{i} +0x1\n\n"));
        return stacks.collect::<String>().into_bytes();
    }
    let mut text = format!("goroutine profile: total {}\n", dice.next());
    for i in 0..dice.size(20_000) {
        text += &format!("{} @ {:#x} {:#x}\n", dice.next() >> 1, i, i + 1);
        text += &format!(
            "# labels: {{\"k{i}\":\"{}\"}}\n",
            "\\x00".repeat(dice.size(50) as usize)
        );
        text += &format!("#\t{i:#x}\tmain.f{i}+0x1\t\t/a.go:{i}\n");
    }
    text.into_bytes()
}

fn tiny_samples(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    m.function(1, 7);
    for id in 1..=1000 {
        m.location(id, std::iter::once((1, id)));
    }
    let (samples, depth) = (dice.size(1_000_000), dice.size(4));
    for s in 0..samples {
        m.sample((0..depth).map(|i| (s >> (10 * i)) % 1000 + 1), s % 97 + 1);
    }
    m.0
}

fn definitions(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    let (each, step) = (dice.size(400_000), dice.size(1 << 40));
    for i in 1..=each {
        match dice.below(3) {
            0 => m.bytes(6, i.to_string().as_bytes()),
            1 => m.function(i.wrapping_mul(step), 7),
            _ => m.location(i.wrapping_mul(step), std::iter::once((i, i))),
        }
    }
    m.sample((1..=50).map(|i: u64| i.wrapping_mul(step)), 7);
    m.0
}

fn expression(dice: &mut Dice) -> Vec<u8> {
    let expressions = [
        "((a{1000}){1000}){1000}",
        "(a|aa)+$",
        "(x+x+)+y",
        "((((((((((",
        "(.*)*(.*)*(.*)*b",
    ];
    let which = expressions[dice.below(5) as usize].to_owned();
    let names =
        (0..dice.size(5000)).map(|i| format!("{}{i}", "a".repeat(dice.size(2000) as usize)));
    let texts: Vec<String> = std::iter::once(which).chain(names).collect();
    let mut m = Message::heap(&texts);
    for id in 1..texts.len() as u64 {
        m.function(id, MORE + id);
        m.location(id, std::iter::once((id, id)));
        m.sample([id, 1].into_iter(), id);
    }
    m.number(7, MORE);
    m.number(8, MORE);
    m.0
}

fn sample_types(dice: &mut Dice) -> Vec<u8> {
    let mut m = Message::heap(&[]);
    let types = dice.size(100_000);
    for _ in 0..types {
        m.part(1, |m| m.number(1, 6));
    }
    for _ in 0..dice.size(20) {
        m.part(2, |m| m.packed(2, (0..types + 4).map(|_| 1)));
    }
    for _ in 0..dice.size(100_000) {
        m.number(13, 6);
    }
    m.0
}

/// Stacks that were never there before: what follows them has to forget.
fn churn(dice: &mut Dice) -> Vec<u8> {
    let salt = dice.next();
    let names: Vec<String> = (0..dice.size(4000))
        .map(|i| format!("example.com/{salt:x}/pkg.(*Type{i}).method"))
        .collect();
    let functions = names.len() as u64;
    let mut m = Message::heap(&names);
    for id in 1..=functions {
        m.function(id, MORE + id - 1);
        m.location(id, std::iter::once((id, id)));
    }
    let depth = dice.size(128);
    for s in 0..dice.size(20_000) {
        let value = dice.size(100_000);
        m.sample((0..depth).map(|i| (s + i * i * 7) % functions + 1), value);
    }
    m.0
}

fn other_forms(dice: &mut Dice) -> Vec<u8> {
    let forms: [&[u8]; 8] = [
        b"<!doctype html><title>x</title>",
        b"{\"error\":\"no\"}",
        b"--- heapz 1 ---\nformat = java\nresolution=bytes\n 1 1 @ 0x1 0x2\n 0x1 a (b:1)\n",
        b"--- mutex:\n",
        b"\x1f\x8b",
        b"\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ];
    forms[dice.below(8) as usize].repeat(dice.size(1000) as usize)
}

/// What the service's SDK would say, made up.
pub fn sdk_page(number: u64) -> Vec<u8> {
    let mut dice = Dice(number);
    let mut page = String::from(
        "{\"schema\":\"memtrace.events/1\",\"now\":9223372036854775807,\"names\":[\"\"",
    );
    for _ in 0..dice.size(50_000) {
        page += ",\"\"";
    }
    page += "],\"gcs\":[{\"n\":1,\"end\":1}";
    for _ in 0..dice.size(10_000) {
        page += &format!(
            ",{{\"n\":{},\"end\":{}}}",
            dice.next() >> 1,
            dice.next() >> 1
        );
    }
    page += "],\"deep\":";
    page += &"[".repeat(dice.size(100_000) as usize);
    if dice.below(2) == 0 {
        page.truncate(page.rfind(",\"deep").unwrap_or(page.len()));
        page += "}";
    }
    page.into_bytes()
}
