package gcode

import (
	"fmt"
	"strings"
	"testing"
)

func TestGCodeCommandParse(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", "map[]"},
		{"g01 x10.500 F200", "map[F:200 G:1 X:10.5]"},
		{"G65 (probe) #1001=-2.50 #<_Part_X>=.25 ; done", "map[#1001:-2.5 #<_part_x>:0.25 G:65]"},
	} {
		cmd := NewGCodeCommand()
		cmd.Raw = c.line
		if err := cmd.Parse(); err != nil {
			t.Errorf("%q: %v", c.line, err)
		} else if got := fmt.Sprint(cmd.Params); got != c.want {
			t.Errorf("%q: got %s, want %s", c.line, got, c.want)
		}
	}
	for _, line := range []string{"X", "#=1", "#1", "#1=", "#1=#2", "?", "1", "(open", "X1\x00", strings.Repeat("X1", 200)} {
		cmd := NewGCodeCommand()
		cmd.Raw = line
		if err := cmd.Parse(); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}

func TestParserResets(t *testing.T) {
	p := NewParser(nil)
	for i := 0; i < 100; i++ {
		seen := ""
		err := p.Parse(fmt.Sprintf("X1 #%d=2", i), func(c *GCodeCommand) { seen = fmt.Sprint(c.Params) })
		if want := fmt.Sprintf("map[#%d:2 X:1]", i); err != nil || seen != want {
			t.Fatalf("got %s, %v, want %s", seen, err, want)
		}
		// What a bad line left must not show either.
		if err := p.Parse("Y7 Z", func(*GCodeCommand) { t.Error("a bad line was used") }); err == nil {
			t.Fatal("no error")
		}
	}
}
