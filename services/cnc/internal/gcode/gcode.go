// Package gcode reads RS-274/NGC programs.
//
// It hides the text: numbers in all their spellings, comments, spaces anywhere,
// block delete, upper and lower case. What comes out is one Block per line with
// its words checked against the modal groups, so that later stages never look
// at text again. It knows nothing of geometry; see package interp.
package gcode

import (
	"fmt"
	"strings"
	"unsafe"

	"cnc/internal/heapsize"
)

// MaxLine is the longest line that is accepted, as RS-274/NGC has it.
const MaxLine = 256

// A Word is one letter with its number, such as X10.5.
type Word struct {
	Letter byte // upper case
	Value  float64
}

// A Block is one line of a program.
type Block struct {
	Line   int      // 1-based line in the source
	N      int      // N word, or -1
	Delete bool     // starts with a slash: skipped when block delete is on
	G      []int    // G codes in tenths (G1 is 10), in order of appearance
	M      []int    // M codes, in order of appearance
	Words  []Word   // every other word; each letter at most once
	Note   string   // text of the last comment
	groups uint64   // modal groups that are taken
	letter [26]int8 // index+1 into Words by letter
}

// Word returns the value of a letter and whether the block has it.
func (b *Block) Word(letter byte) (float64, bool) {
	if letter < 'A' || letter > 'Z' {
		return 0, false
	}
	i := b.letter[letter-'A']
	if i == 0 {
		return 0, false
	}
	return b.Words[i-1].Value, true
}

// Has reports whether the block has any of the letters.
func (b *Block) Has(letters string) bool {
	for i := 0; i < len(letters); i++ {
		if _, ok := b.Word(letters[i]); ok {
			return true
		}
	}
	return false
}

// HasG reports whether the block has the G code, given in tenths.
func (b *Block) HasG(tenths int) bool {
	for _, g := range b.G {
		if g == tenths {
			return true
		}
	}
	return false
}

// InGroup returns the block's G code (tenths) of a modal group.
func (b *Block) InGroup(group Group) (int, bool) {
	for _, g := range b.G {
		if gGroup(g) == group {
			return g, true
		}
	}
	return 0, false
}

// Empty reports whether the block asks for nothing.
func (b *Block) Empty() bool { return len(b.G) == 0 && len(b.M) == 0 && len(b.Words) == 0 }

// Error is a fault in the program's text or meaning.
type Error struct {
	Line int
	Msg  string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Msg) }

// Errorf makes an Error.
func Errorf(line int, format string, args ...any) *Error {
	return &Error{Line: line, Msg: fmt.Sprintf(format, args...)}
}

// Program is a parsed program.
type Program struct {
	Name   string
	Blocks []*Block
}

// Bytes is the heap space of the program; its text, which comments are part of, is not
// counted.
func (p *Program) Bytes() int64 {
	sum := heapsize.Scan(int(unsafe.Sizeof(*p))) + heapsize.Scan(8*cap(p.Blocks))
	codes := func(s []int) int64 {
		if cap(s) == 1 {
			return 16 // 8 bytes share a block of 16 with something short-lived
		}
		return heapsize.NoScan(8 * cap(s))
	}
	for _, b := range p.Blocks {
		sum += heapsize.Scan(int(unsafe.Sizeof(*b))) + codes(b.G) + codes(b.M) +
			heapsize.NoScan(int(unsafe.Sizeof(Word{}))*cap(b.Words))
	}
	return sum
}

// ParseProgram parses a whole text and stops at the first error.
func ParseProgram(name, text string) (*Program, error) {
	p := &Program{Name: name, Blocks: make([]*Block, 0, strings.Count(text, "\n")+1)}
	for n := 1; len(text) > 0; n++ {
		line := text
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = ""
		}
		b, err := Parse(line, n)
		if err != nil {
			return nil, err
		}
		if !b.Empty() {
			p.Blocks = append(p.Blocks, b)
		}
	}
	return p, nil
}
