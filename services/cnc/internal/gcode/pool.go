package gcode

import (
	"runtime"
	"strings"
	"sync"

	"cnc/internal/fault"
	"cnc/internal/heapsize"
)

// GCodeCommand is a line with its words and the variables that it sets, by name. It
// is made to be used again: a host sends thousands of lines a second.
type GCodeCommand struct {
	Raw    string
	Params map[string]float64 // by letter, or by # and the name of a variable

	names int64 // heap bytes of the names that Params owns
	share *share
}

// NewGCodeCommand returns an empty command.
func NewGCodeCommand() *GCodeCommand {
	return &GCodeCommand{Params: make(map[string]float64)}
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// Parse adds the words of Raw to Params: letters with a number (X10.5), and variables
// that are set (#1001=2.5, #<_part_x>=0.25).
func (c *GCodeCommand) Parse() error {
	if len(c.Raw) > MaxLine {
		return Errorf(1, "%d characters, more than %d", len(c.Raw), MaxLine)
	}
	var b Block
	s := scanner{text: c.Raw, line: 1}
	for {
		letter, err := s.next(&b)
		if err != nil || letter == 0 {
			return err
		}
		var name string
		switch {
		case letter >= 'A' && letter <= 'Z':
			name = letters[letter-'A':][:1]
		case letter == '#':
			length := strings.IndexByte(c.Raw[s.pos:], '=')
			if length < 1 {
				return Errorf(1, "no name and = after #")
			}
			name = strings.ToLower(c.Raw[s.pos-1 : s.pos+length])
			s.pos += length + 1
		default:
			return Errorf(1, "unexpected %q", string(rune(letter)))
		}
		v, err := s.number(letter, &b)
		if err != nil {
			return err
		}
		if _, known := c.Params[name]; !known && letter == '#' {
			name = strings.Clone(name) // or it would keep the whole line
			c.names += heapsize.NoScan(len(name))
		}
		c.Params[name] = v
	}
}

// Reset makes the command as good as new, and keeps the memory of the map.
func (c *GCodeCommand) Reset() {
	c.Raw, c.names = "", 0
	for name := range c.Params {
		delete(c.Params, name)
	}
}

// Parser parses lines with commands from a pool, for many goroutines.
type Parser struct {
	// Reset is called with each command before it goes back into the pool. The
	// pool keeps whatever it leaves.
	Reset func(*GCodeCommand)

	pool  sync.Pool
	fault *fault.Fault
}

// NewParser returns a parser that resets its commands; with fault.Pool active it does
// not.
func NewParser(f *fault.Fault) *Parser {
	return &Parser{fault: f, Reset: func(c *GCodeCommand) {
		if !f.Active(fault.Pool) {
			c.Reset()
		}
	}}
}

// Parse parses a line and shows it to use, which must not keep the command.
func (p *Parser) Parse(line string, use func(*GCodeCommand)) error {
	cmd, ok := p.pool.Get().(*GCodeCommand)
	if !ok {
		cmd = NewGCodeCommand()
	}
	cmd.Raw = line
	err := cmd.Parse()
	if err == nil {
		use(cmd)
	}
	p.Reset(cmd)
	cmd.Raw = ""
	if p.fault.Active(fault.Pool) {
		p.account(cmd)
	}
	p.pool.Put(cmd)
	return err
}

// share is what one command has in the books. A pool forgets commands that are not
// used for two collections; the finalizer of the share, on which nothing else hangs,
// tells when that happens.
type share struct {
	fault            *fault.Fault
	bytes, variables int64
}

func (p *Parser) account(c *GCodeCommand) {
	if c.share == nil {
		c.share = &share{fault: p.fault}
		runtime.SetFinalizer(c.share, func(s *share) { s.fault.Leaked(-s.bytes, -s.variables) })
	}
	now := share{p.fault, c.names + heapsize.Map(len(c.Params), 16, 8), int64(len(c.Params))}
	p.fault.Leaked(now.bytes-c.share.bytes, now.variables-c.share.variables)
	*c.share = now
}
