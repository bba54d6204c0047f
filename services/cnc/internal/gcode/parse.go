package gcode

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// letters that a block may use, apart from G, M and N.
const known = "DFHIJKLPQRSTXYZ"

// Parse parses one line. The line number is only used in errors.
func Parse(line string, number int) (*Block, error) {
	if len(line) > MaxLine {
		return nil, Errorf(number, "%d characters, more than %d", len(line), MaxLine)
	}
	s := scanner{text: line, line: number}
	b := &Block{Line: number, N: -1}
	for first := true; ; first = false {
		c, err := s.next(b)
		if err != nil {
			return nil, err
		}
		switch {
		case c == 0:
			if err := b.check(); err != nil {
				return nil, err
			}
			return b, nil
		case c == '%':
			// Start and end of tape: nothing else stands on the line.
			if c, err := s.next(b); err != nil || c != 0 || !first {
				return nil, Errorf(number, "text beside %%")
			}
			return b, nil
		case c == '/':
			if !first {
				return nil, Errorf(number, "block delete is only allowed at the start of a line")
			}
			b.Delete = true
		case c == '#' || c == '[' || c == ']' || c == '=':
			return nil, Errorf(number, "parameters and expressions are not supported: %q", s.rest())
		case c >= 'A' && c <= 'Z':
			if err := b.word(c, &s); err != nil {
				return nil, err
			}
		default:
			return nil, Errorf(number, "unexpected %q", string(rune(c)))
		}
	}
}

// word reads the number that follows a letter and files it.
func (b *Block) word(c byte, s *scanner) error {
	if c == 'O' {
		return Errorf(b.Line, "subprograms (O words) are not supported")
	}
	if c != 'G' && c != 'M' && c != 'N' && strings.IndexByte(known, c) < 0 {
		if c >= 'A' && c <= 'W' && strings.IndexByte("ABCUVW", c) >= 0 {
			return Errorf(b.Line, "axis %c is not configured", c)
		}
		return Errorf(b.Line, "unknown word %c", c)
	}
	v, err := s.number(c, b)
	if err != nil {
		return err
	}
	switch c {
	case 'N':
		if b.N >= 0 {
			return Errorf(b.Line, "two N words")
		}
		if len(b.G)+len(b.M)+len(b.Words) > 0 {
			return Errorf(b.Line, "the N word must come first")
		}
		if v < 0 || v != math.Trunc(v) || v > 999999 {
			return Errorf(b.Line, "bad line number N%v", v)
		}
		b.N = int(v)
	case 'G':
		g := int(math.Round(v * 10))
		if math.Abs(v*10-float64(g)) > 1e-6 || gGroup(g) == GroupNone {
			return Errorf(b.Line, "G%v is not supported", v)
		}
		if err := b.take(gGroup(g), GName(g)); err != nil {
			return err
		}
		b.G = append(b.G, g)
	case 'M':
		m := int(v)
		if float64(m) != v || mGroup(m) == GroupNone {
			return Errorf(b.Line, "M%v is not supported", v)
		}
		if err := b.take(mGroup(m), "M"+strconv.Itoa(m)); err != nil {
			return err
		}
		b.M = append(b.M, m)
	default:
		if b.letter[c-'A'] != 0 {
			return Errorf(b.Line, "two %c words", c)
		}
		if strings.IndexByte("DFHLPQST", c) >= 0 && v < 0 {
			return Errorf(b.Line, "%c must not be negative", c)
		}
		if strings.IndexByte("DHLT", c) >= 0 && (v != math.Trunc(v) || v > 9999) {
			return Errorf(b.Line, "%c needs a small whole number", c)
		}
		b.Words = append(b.Words, Word{c, v})
		b.letter[c-'A'] = int8(len(b.Words))
	}
	return nil
}

func (b *Block) take(g Group, name string) error {
	if b.groups&(1<<g) != 0 {
		return Errorf(b.Line, "%s: second code of its modal group in one block", name)
	}
	b.groups |= 1 << g
	return nil
}

// GName writes a G code given in tenths.
func GName(tenths int) string {
	if tenths%10 != 0 {
		return fmt.Sprintf("G%d.%d", tenths/10, tenths%10)
	}
	return "G" + strconv.Itoa(tenths/10)
}

// scanner walks over a line. RS-274/NGC allows spaces anywhere, even inside a
// number, so they are skipped here and nowhere else.
type scanner struct {
	text string
	pos  int
	line int
}

func (s *scanner) rest() string {
	r := s.text[s.pos-1:]
	if len(r) > 16 {
		r = r[:16]
	}
	return r
}

// peek returns the next character that is not a space, upper case, or 0.
func (s *scanner) peek() byte {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t' || c == '\r':
			s.pos++
		case c >= 'a' && c <= 'z':
			return c - 'a' + 'A'
		default:
			return c
		}
	}
	return 0
}

// next is peek that consumes, and that keeps comments in the block.
func (s *scanner) next(b *Block) (byte, error) {
	for {
		c := s.peek()
		switch c {
		case 0:
			if s.pos < len(s.text) {
				return 0, Errorf(s.line, "a NUL character")
			}
			return 0, nil
		case ';':
			b.Note = strings.TrimSpace(s.text[s.pos+1:])
			s.pos = len(s.text)
		case '(':
			end := strings.IndexAny(s.text[s.pos+1:], "()")
			if end < 0 {
				return 0, Errorf(s.line, "comment without )")
			}
			if s.text[s.pos+1+end] == '(' {
				return 0, Errorf(s.line, "nested comment")
			}
			b.Note = strings.TrimSpace(s.text[s.pos+1 : s.pos+1+end])
			s.pos += end + 2
		case ')':
			return 0, Errorf(s.line, "unexpected )")
		default:
			s.pos++
			return c, nil
		}
	}
}

var pow10 = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// number reads [+-]digits[.digits]; RS-274/NGC has no exponents.
func (s *scanner) number(letter byte, b *Block) (float64, error) {
	c := s.peek()
	if c == '#' || c == '[' {
		s.pos++
		return 0, Errorf(s.line, "parameters and expressions are not supported: \"%c%s\"", letter, s.rest())
	}
	negative := false
	if c == '+' || c == '-' {
		negative = c == '-'
		s.pos++
		c = s.peek()
	}
	var mantissa int64
	digits, significant, fraction, point := 0, 0, 0, false
	for ; ; c = s.peek() {
		if c == '.' && !point {
			point = true
		} else if c >= '0' && c <= '9' {
			digits++
			// 15 digits, and 15 of them after the point, are all that stay exact;
			// more are cut off.
			if mantissa != 0 || c != '0' {
				significant++
			}
			if significant <= 15 && fraction < len(pow10)-1 {
				mantissa = mantissa*10 + int64(c-'0')
				if point {
					fraction++
				}
			} else if !point {
				return 0, Errorf(s.line, "number of %c is too long", letter)
			}
		} else {
			break
		}
		s.pos++
	}
	if digits == 0 {
		return 0, Errorf(s.line, "no number after %c", letter)
	}
	v := float64(mantissa) / pow10[fraction]
	if negative && v != 0 {
		v = -v
	}
	return v, nil
}
