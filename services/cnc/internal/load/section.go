package load

import (
	"context"
	"fmt"
	"strings"

	"cnc/internal/fault"
	"cnc/internal/gcode"
	"memtrace"
)

// MaxSections is how many sections can be told apart by their tag.
const MaxSections = 999

// kept is how many programs a section keeps.
const kept = 8

// Section is one of many jobs that do the same work at the same time through the same
// code: it reads a program over and over, under its own tag, and keeps the last ones.
// With fault.Tag active one section keeps all of them.
type Section struct {
	tag   string
	text  string
	fault *fault.Fault
	leaks bool
	kept  []*gcode.Program
}

// NewSections returns n sections over the head of a program.
func NewSections(n int, text string, f *fault.Fault) []*Section {
	const lines = 64
	if parts := strings.SplitN(text, "\n", lines+1); len(parts) > lines {
		text = strings.Join(parts[:lines], "\n")
	}
	var out []*Section
	for i := 0; i < n; i++ {
		s := &Section{tag: fmt.Sprintf("G%03d-M%02d", 1+i, (17+i)%100), text: text, fault: f, leaks: i == n/2}
		if s.leaks {
			f.SetTag(s.tag)
		}
		out = append(out, s)
	}
	return out
}

// read reads the program once and returns its bytes. A text that is not a program ends
// the section.
func (s *Section) read(ctx context.Context) (bytes int64, err error) {
	memtrace.Do(ctx, s.tag, func(context.Context) {
		var p *gcode.Program
		if p, err = gcode.ParseProgram(s.tag, s.text); err == nil {
			bytes = p.Bytes()
			s.keep(p)
		}
	})
	return bytes, err
}

func (s *Section) keep(p *gcode.Program) {
	s.kept = append(s.kept, p)
	if s.leaks && s.fault.Active(fault.Tag) {
		s.fault.Leaked(p.Bytes(), int64(len(p.Blocks)))
	} else if len(s.kept) > kept {
		n := copy(s.kept, s.kept[1:])
		s.kept[n] = nil
		s.kept = s.kept[:n]
	}
}

// run reads at a rate in bytes a second.
func (s *Section) run(ctx context.Context, rate int64) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	pace(ctx, rate, func() int64 {
		n, err := s.read(ctx)
		if err != nil {
			stop()
		}
		return n
	})
}
