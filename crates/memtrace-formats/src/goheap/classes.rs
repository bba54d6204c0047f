//! How much room the allocator gives to an object.

use super::functions::Functions;
use super::image::Image;

/// The sizes that the allocator rounds to (`internal/runtime/gc/sizeclasses.go`, the same in all
/// releases that are read).
pub(crate) const CLASSES: [u64; 67] = [
    8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352,
    384, 416, 448, 480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048,
    2304, 2688, 3072, 3200, 3456, 4096, 4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728,
    10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264, 28672,
    32768,
];

/// How a program's allocator places objects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocator {
    /// Each object has a red zone behind it (`go build -asan`).
    has_red_zones: bool,
    /// The pointer mask of an object goes on through its red zone, as if there were more
    /// values (since Go 1.24).
    repeats: bool,
}

impl Allocator {
    pub(crate) fn of(image: &Image, functions: &Functions) -> Self {
        // Only the runtime of such a program has it; stripping leaves its name.
        let poisons = |name: &str| name.starts_with("runtime.asanpoison");
        let has_red_zones = !functions.named(poisons).is_empty();
        Self {
            has_red_zones,
            repeats: has_red_zones && image.version.minor >= 24,
        }
    }

    /// The place of an object of so many bytes behind so many of a header.
    pub(crate) fn place(self, bytes: u64, header: u64) -> u64 {
        let bytes = self.with_red_zone(bytes).saturating_add(header);
        match CLASSES.get(CLASSES.partition_point(|&c| c < bytes)) {
            Some(&class) => class,
            None => bytes.saturating_add(8191) / 8192 * 8192,
        }
    }

    /// How many bytes the pointer mask of an object of so many bytes tells of.
    pub(crate) fn masked(self, bytes: u64) -> u64 {
        if self.repeats {
            self.with_red_zone(bytes)
        } else {
            bytes
        }
    }

    /// As the runtime's `redZoneSize`, which is that of LLVM's compiler-rt.
    fn with_red_zone(self, bytes: u64) -> u64 {
        /// Objects of so many bytes with their red zone have one of 16, 32, 64 … bytes.
        const UP_TO: [u64; 7] = [64, 128, 512, 4096, 1 << 14, 1 << 15, 1 << 16];
        if !self.has_red_zones {
            return bytes;
        }
        let zones = (0..).map(|i| 16 << i);
        let fitting = UP_TO
            .into_iter()
            .zip(zones)
            .find_map(|(up_to, zone)| (bytes <= up_to - zone).then_some(zone));
        bytes.saturating_add(fitting.unwrap_or(16 << UP_TO.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_runtime() {
        let plain = Allocator::default();
        assert_eq!(
            [0, 1, 8, 9, 512, 513, 32768, 32769].map(|b| plain.place(b, 0)),
            [8, 8, 8, 16, 512, 576, 32768, 40960]
        );
        assert_eq!(plain.place(520, 8), 576);
        assert_eq!(plain.masked(24), 24);
        assert!(plain.place(u64::MAX, 8) >= u64::MAX / 8192 * 8192);
        // Red zones of 16 bytes up to 48 of the object, 32 up to 96, 64 up to 448 …
        let zoned = Allocator {
            has_red_zones: true,
            repeats: true,
        };
        let places = [1, 8, 48, 49, 96, 97, 448, 449, 3968, 3969, 65536];
        assert_eq!(
            places.map(|b| zoned.place(b, 0)),
            [24, 24, 64, 96, 128, 176, 512, 640, 4096, 4864, 73728]
        );
        assert_eq!(zoned.masked(24), 40);
    }
}
