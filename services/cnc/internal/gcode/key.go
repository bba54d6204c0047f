package gcode

import "bytes"

// rank of each letter in a key; the order is that in which programs mostly write the
// words, so that a key mostly needs no sorting.
var rank = func() (r [256]uint8) {
	for i, c := range []byte("GXYZABCUVWIJKRPQLHDFSTMEON") {
		r[c] = uint8(i) + 1
	}
	return r
}()

// AppendKey appends a key that is the same for all lines that mean the same, whatever
// the spelling of their numbers and the order of their words: the normal form with
// sorted words. With room in dst it allocates nothing.
func AppendKey(dst []byte, line string) []byte {
	start := len(dst)
	dst = AppendNormal(dst, line)
	if start < len(dst) && dst[start] == '/' {
		start++ // block delete stays in front
	}
	last := start // where the word before begins
	for a := start; a < len(dst) && rank[dst[a]] != 0; {
		b := a + 1
		for b < len(dst) && (dst[b] >= '0' && dst[b] <= '9' || dst[b] == '.' || dst[b] == '-') {
			b++
		}
		if less(dst[a:b], dst[last:a]) {
			insert(dst[start:b], a-start)
			last = b // unknown after the move: found again below
			for last--; rank[dst[last]] == 0; last-- {
			}
		} else {
			last = a
		}
		a = b
	}
	return dst
}

// less orders words by letter, equal letters by number as text.
func less(a, b []byte) bool {
	if len(b) == 0 {
		return false
	}
	if a[0] != b[0] {
		return rank[a[0]] < rank[b[0]]
	}
	return bytes.Compare(a, b) < 0
}

// insert moves the last of some words, which begins at `from`, to its place among the
// others, which are sorted.
func insert(words []byte, from int) {
	var room [MaxLine]byte
	word := append(room[:0], words[from:]...)
	for a := 0; a < from; {
		b := a + 1
		for rank[words[b]] == 0 {
			b++
		}
		if less(word, words[a:b]) {
			copy(words[a+len(word):], words[a:from])
			copy(words[a:], word)
			return
		}
		a = b
	}
}
