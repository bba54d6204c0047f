package gcode

import (
	"strings"
	"sync"

	"cnc/internal/fault"
	"cnc/internal/heapsize"
	"memtrace"
)

// Command is a parsed line in the compact form that is kept for reuse.
type Command struct {
	Code   string // name of the first G code, or of the first M code
	Params []Word
	Feed   float64
}

// Cache keeps commands by their text: a stream from a host (DNC) sends the same
// moves again and again, and a map look-up is cheaper than parsing.
//
// The key decides whether the map has a bound. Hosts spell one command in
// countless ways (G01X10.5F200, G1 X10.500 F200.0), so the key must be the
// normal form; see Normalize. With fault.MapKey active the raw line is the key.
type Cache struct {
	mu       sync.Mutex
	commands map[string]*Command
	fault    *fault.Fault
}

// NewCache returns an empty cache.
func NewCache(f *fault.Fault) *Cache {
	c := &Cache{commands: make(map[string]*Command), fault: f}
	f.SetBacking(fault.MapKey, func() int64 { return heapsize.Map(c.Len(), 16, 8) })
	return c
}

// Len returns the number of commands that are kept.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.commands)
}

// SampleKeys returns up to n of the keys, and how many there are.
func (c *Cache) SampleKeys(n int) (keys []string, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return memtrace.Keys(c.commands, n)
}

// Lookup returns the command of a line, from the cache when it is known.
func (c *Cache) Lookup(line string) (*Command, error) {
	leaky := c.fault.Active(fault.MapKey)
	key := line
	if !leaky {
		key = Normalize(line)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cmd := c.commands[key]; cmd != nil {
		return cmd, nil
	}
	block, err := Parse(line, 1)
	if err != nil {
		return nil, err
	}
	cmd := newCommand(block)
	// The caller's line is part of a larger receive buffer: without a copy each
	// key would keep the whole buffer alive.
	c.commands[strings.Clone(key)] = cmd
	if leaky {
		c.fault.Leaked(cmd.bytes()+heapsize.NoScan(len(key)), 3)
	}
	return cmd, nil
}

func newCommand(b *Block) *Command {
	cmd := &Command{Params: make([]Word, len(b.Words))}
	copy(cmd.Params, b.Words)
	switch {
	case len(b.G) > 0:
		cmd.Code = codeName('G', b.G[0])
	case len(b.M) > 0:
		cmd.Code = codeName('M', b.M[0]*10)
	}
	cmd.Feed, _ = b.Word('F')
	return cmd
}

// bytes is the heap space of a command: the struct and its parameters. Names of
// codes are shared.
func (c *Command) bytes() int64 {
	return heapsize.Scan(48) + heapsize.NoScan(16*len(c.Params))
}

// codeNames holds each name once, so that commands do not own their code.
var codeNames = func() map[int]string {
	names := make(map[int]string)
	for tenths := 0; tenths < 1000; tenths++ {
		if gGroup(tenths) != GroupNone {
			names[int('G')<<16|tenths] = GName(tenths)
		}
		if tenths%10 == 0 && mGroup(tenths/10) != GroupNone {
			names[int('M')<<16|tenths] = "M" + GName(tenths)[1:]
		}
	}
	return names
}()

func codeName(letter byte, tenths int) string { return codeNames[int(letter)<<16|tenths] }

// Normalize returns the normal form of a line: upper case, no spaces, comments
// or line number, numbers without needless signs and zeros. Lines that mean the
// same have the same normal form; it costs one pass and no parse.
func Normalize(line string) string {
	return string(AppendNormal(make([]byte, 0, len(line)), line))
}

// AppendNormal appends the normal form of a line to dst. With room in dst it
// allocates nothing, and neither does a look-up in a map with string(dst).
func AppendNormal(dst []byte, line string) []byte {
	start := len(dst)
	for i := 0; i < len(line); {
		c := line[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == ';':
			i = len(line)
		case c == '(':
			end := strings.IndexByte(line[i:], ')')
			if end < 0 {
				return append(dst[:start], line...) // the parser will say what is wrong
			}
			i += end + 1
		case c == 'N' || c == 'n':
			var skip [32]byte
			_, i = normalNumber(skip[:0], line, i+1)
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
			fallthrough
		case c >= 'A' && c <= 'Z':
			dst = append(dst, c)
			dst, i = normalNumber(dst, line, i+1)
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// normalNumber appends the number that starts at i and returns where it ends.
func normalNumber(out []byte, line string, i int) ([]byte, int) {
	start := len(out)
	negative, point, digits := false, false, false
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r':
		case c == '+' && !digits && !point:
		case c == '-' && !digits && !point:
			negative = true
		case c == '.' && !point:
			point = true
			out = append(out, '.')
		case c >= '0' && c <= '9':
			if c == '0' && !point && len(out) == start {
				digits = true // a leading zero
				continue
			}
			digits = true
			out = append(out, c)
		default:
			goto done
		}
	}
done:
	if point {
		for len(out) > start && out[len(out)-1] == '0' {
			out = out[:len(out)-1]
		}
		if out[len(out)-1] == '.' {
			out = out[:len(out)-1]
		}
	}
	if len(out) == start {
		if digits {
			out = append(out, '0')
		}
		return out, i
	}
	if negative {
		out = append(out, 0)
		copy(out[start+1:], out[start:])
		out[start] = '-'
	}
	return out, i
}
