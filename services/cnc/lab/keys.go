package main

import (
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"cnc/internal/gcode"
	"cnc/internal/load"
)

// spelling is a line of which is known what it means: equal numbers, equal meaning.
type spelling struct {
	line    string
	code    string // the instruction
	meaning int    // the whole command
}

// corpus returns 2000 moves in `each` spellings, and the cases of the document.
func corpus(each int) []spelling {
	var out []spelling
	w := load.NewWriter(1)
	const moves = 2000
	for i := 0; i < moves*each; i++ {
		out = append(out, spelling{w.Next(), "G1", i % moves})
	}
	for i, same := range [][]string{
		{"G01X10.5F200", "G01X10.500F200", "G01X10.5F200.0", "g01 x10.50 f200", "N10 G1 X+10.5 F0200 (cut)", "F200 X10.5 G1"},
		{"G01X10.55F200", "G1X10.550F200.", "F200G01X10.55"},
		{"G100X10.5F200", "G100X10.500F200.0"},
		{"G10X10.5F200", "G10 X10.500 F200"},
		{"G1X-.5", "G01X-0.50", "X-0.5G1"},
	} {
		for _, line := range same {
			out = append(out, spelling{line, []string{"G1", "G1", "G100", "G10", "G1"}[i], moves + i})
		}
	}
	return out
}

// keyer makes the key of a line in room, or says that the line is no command.
type keyer struct {
	name, complexity string
	key              func(room []byte, line string) ([]byte, bool)
}

var (
	codePattern = regexp.MustCompile(`G\d+`)
	wordPattern = regexp.MustCompile(`([A-Za-z])\s*([-+]?[\d.]+)`)
	seed        = maphash.MakeSeed()
)

var keyers = []keyer{
	{"raw line", "none", func(room []byte, line string) ([]byte, bool) {
		return append(room, line...), true
	}},
	{"regex for the code `G\\d+`", "one expression", func(room []byte, line string) ([]byte, bool) {
		code := codePattern.FindString(line)
		return append(room, code...), code != ""
	}},
	{"prefix `[:3]`", "one slice", func(room []byte, line string) ([]byte, bool) {
		return append(room, line[:min(3, len(line))]...), true
	}},
	{"regex for all words", "expression, numbers, sort", regexKey},
	{"hash of the AST node", "whole parser and a hash", hashKey},
	{"normal form (`AppendNormal`)", "one pass by hand", func(room []byte, line string) ([]byte, bool) {
		return gcode.AppendNormal(room, line), true
	}},
	{"sorted normal form (`AppendKey`)", "one pass by hand, sort", func(room []byte, line string) ([]byte, bool) {
		return gcode.AppendKey(room, line), true
	}},
}

// regexKey takes all words apart and writes them anew.
func regexKey(room []byte, line string) ([]byte, bool) {
	if i := strings.IndexAny(line, "(;"); i >= 0 {
		line = line[:i]
	}
	var words []string
	for _, m := range wordPattern.FindAllStringSubmatch(line, -1) {
		letter := strings.ToUpper(m[1])
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, false
		}
		if letter != "N" {
			words = append(words, letter+strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	sort.Strings(words)
	return append(room, strings.Join(words, "")...), len(words) > 0
}

// hashKey parses the line and hashes what it means. Words are hashed one by one and
// added up, so that their order does not count.
func hashKey(room []byte, line string) ([]byte, bool) {
	block, err := gcode.Parse(line, 1)
	if err != nil {
		return nil, false
	}
	sum := uint64(0)
	word := func(letter byte, v uint64) {
		var h maphash.Hash
		h.SetSeed(seed)
		b := [9]byte{letter}
		for i := 0; i < 8; i++ {
			b[1+i] = byte(v >> (8 * i))
		}
		_, _ = h.Write(b[:])
		sum += h.Sum64()
	}
	for _, g := range block.G {
		word('G', uint64(g))
	}
	for _, m := range block.M {
		word('M', uint64(m))
	}
	for _, v := range block.Words {
		word(v.Letter, math.Float64bits(v.Value))
	}
	for i := 0; i < 8; i++ {
		room = append(room, byte(sum>>(8*i)))
	}
	return room, true
}

// judged is what a keyer makes of a corpus.
type judged struct {
	keys     int
	refused  int // lines that are no command
	split    int // commands that got more than one key
	codes    int // keys that stand for more than one instruction
	commands int // keys that stand for more than one command
	g100     string
	cost     cost // of a look-up, with its key
}

func judge(k keyer, lines []spelling, lookups int) judged {
	var j judged
	var room [gcode.MaxLine]byte
	keys := make(map[string]map[int]string) // key -> meanings, with their code
	meanings := make(map[int]map[string]bool)
	for _, s := range lines {
		key, ok := k.key(room[:0], s.line)
		if !ok {
			j.refused++
			continue
		}
		if keys[string(key)] == nil {
			keys[string(key)] = make(map[int]string)
		}
		keys[string(key)][s.meaning] = s.code
		if meanings[s.meaning] == nil {
			meanings[s.meaning] = make(map[string]bool)
		}
		meanings[s.meaning][string(key)] = true
	}
	j.keys = len(keys)
	for _, of := range keys {
		codes := make(map[string]bool)
		for _, code := range of {
			codes[code] = true
		}
		if len(codes) > 1 {
			j.codes++
		}
		if len(of) > 1 {
			j.commands++
		}
	}
	for _, of := range meanings {
		if len(of) > 1 {
			j.split++
		}
	}
	long, ok := k.key(nil, "G100X1")
	short, _ := k.key(nil, "G10X1")
	switch {
	case !ok:
		j.g100 = "refuses both"
	case string(long) == string(short):
		j.g100 = "**no**"
	default:
		j.g100 = "yes"
	}

	commands := make(map[string]bool, len(keys))
	for key := range keys {
		commands[key] = true
	}
	next, hits := 0, 0
	j.cost = measure(lookups, func() {
		if key, ok := k.key(room[:0], lines[next].line); ok && commands[string(key)] {
			hits++
		}
		if next++; next == len(lines) {
			next = 0
		}
	})
	return j
}

// right says whether a cache may be keyed like this.
func (j judged) right() string {
	switch {
	case j.commands > 0 && j.codes > 0:
		return "**wrong**: one key for several instructions"
	case j.commands > 0:
		return "**wrong** for whole commands: one key for several"
	case j.split > 0:
		return fmt.Sprintf("never wrong, but several keys for each of %d commands", j.split)
	}
	return "right"
}

func writeKeys(w io.Writer, e effort) error {
	lines := corpus(e.count(50))
	meanings := make(map[int]bool)
	for _, s := range lines {
		meanings[s.meaning] = true
	}
	fmt.Fprintf(w, "\n## D4: keys of the command cache\n\n%d lines that mean %d commands, among them `G01X10.5F200`, `G01X10.500F200`, `G01X10.5F200.0`, `F200 X10.5 G1` and\n`G100X10.5F200`. The best key gives one entry for each command. Time, bytes and allocations are of a look-up.\n", len(lines), len(meanings))
	rows := [][]string{{"key", "time", "allocated", "allocations", "keys", "correct", "`G100` is not `G10`", "to write"}}
	found := make([]judged, len(keyers))
	for i, k := range keyers {
		j := judge(k, lines, e.count(200000))
		found[i] = j
		correct := j.right()
		if j.refused > 0 {
			correct += fmt.Sprintf("; no key for %d lines", j.refused)
		}
		rows = append(rows, []string{k.name, nanos(j.cost.ns), fmt.Sprintf("%.0f B", j.cost.bytes), fmt.Sprintf("%.1f", j.cost.allocs), strconv.Itoa(j.keys), correct, j.g100, k.complexity})
	}
	table(w, rows...)
	prefix, hash, best := found[2], found[4], found[6]
	fmt.Fprintf(w, `The document says: regex medium time and stable, prefix cheap and wrong for `+"`G100`"+`, AST hash dear and most stable.
Measured: all are linear in the length of a line. The prefix is cheap (%s) and wrong, as said. What the document
does not say: a key that is only the instruction, by regex or prefix, has one entry for all moves, so a cache of whole
commands answers with the parameters of another line; and `+"`G01`, `G1` and `g1`"+` are still different keys. The AST hash
(%s) is right, and refuses the lines of codes that this machine does not have (`+"`G10`, `G100`"+`); it pays for
a whole parse, which is what the cache was to save. The sorted normal form is right too, in %s and %.0f allocations.
`, nanos(prefix.cost.ns), nanos(hash.cost.ns), nanos(best.cost.ns), best.cost.allocs)
	return nil
}
