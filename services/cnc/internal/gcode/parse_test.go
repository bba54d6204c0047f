package gcode

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// show writes a block in one line.
func show(b *Block) string {
	var out []string
	if b.Delete {
		out = append(out, "/")
	}
	if b.N >= 0 {
		out = append(out, fmt.Sprintf("N%d", b.N))
	}
	for _, g := range b.G {
		out = append(out, GName(g))
	}
	for _, m := range b.M {
		out = append(out, fmt.Sprintf("M%d", m))
	}
	for _, w := range b.Words {
		out = append(out, fmt.Sprintf("%c%v", w.Letter, w.Value))
	}
	if b.Note != "" {
		out = append(out, "("+b.Note+")")
	}
	return strings.Join(out, " ")
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", ""},
		{"%", ""},
		{"G0 X10", "G0 X10"},
		{"g01x10.5f200", "G1 X10.5 F200"},
		{"G1 X-.5 Y+3. Z0", "G1 X-0.5 Y3 Z0"},
		{" g 0 x +0. 12 34 y 7", "G0 X0.1234 Y7"},
		{"N0120 G02 X1 Y2 I3 J-4", "N120 G2 X1 Y2 I3 J-4"},
		{"/G1 X1", "/ G1 X1"},
		{"/N5 M8", "/ N5 M8"},
		{"G1 (cut) X1 ; to the edge", "G1 X1 (to the edge)"},
		{"(only a comment)", "(only a comment)"},
		{"; only a comment", "(only a comment)"},
		{"G17 G21 G40 G49 G80 G90 G94 G54", "G17 G21 G40 G49 G80 G90 G94 G54"},
		{"G53 G0 Z0", "G53 G0 Z0"},
		{"G90.1", "G90.1"},
		{"T3 M6", "M6 T3"},
		{"S1200 M3 M7 M8", "M3 M7 M8 S1200"},
		{"G81 X1 Y2 Z-3 R1 L2 F100", "G81 X1 Y2 Z-3 R1 L2 F100"},
		{"G4 P0.5", "G4 P0.5"},
		{"G28 Z0", "G28 Z0"},
		{"X1\r", "X1"},
		{"X0.1000000000000000000000001", "X0.1"},
		{"M30", "M30"},
	} {
		b, err := Parse(c.line, 1)
		if err != nil {
			t.Errorf("%q: %v", c.line, err)
		} else if got := show(b); got != c.want {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"#1=3", "parameters and expressions are not supported"},
		{"G1 X#1", "parameters and expressions are not supported: \"X#1\""},
		{"G1 X[1+2]", "parameters and expressions are not supported"},
		{"O100 sub", "subprograms"},
		{"G1 G2 X1 I1", "modal group"},
		{"G90 G91", "modal group"},
		{"G17 G18", "modal group"},
		{"G54 G55", "modal group"},
		{"M3 M4", "modal group"},
		{"M8 M9", "modal group"},
		{"G5", "G5 is not supported"},
		{"G1.5", "G1.5 is not supported"},
		{"G100", "G100 is not supported"},
		{"M98", "M98 is not supported"},
		{"M3.5", "M3.5 is not supported"},
		{"X1 X2", "two X words"},
		{"N1 N2", "two N words"},
		{"G1 N2", "must come first"},
		{"A10", "axis A is not configured"},
		{"E10", "unknown word E"},
		{"X", "no number after X"},
		{"X1..2", "unexpected \".\""},
		{"X--1", "no number after X"},
		{"F-1", "must not be negative"},
		{"T1.5", "whole number"},
		{"(open", "comment without )"},
		{"(a (b))", "nested"},
		{")", "unexpected )"},
		{"G1 /X1", "block delete"},
		{"?", "unexpected \"?\""},
		{"X1\x00", "NUL"},
		{"G53 G2 X1 I1", "G53 needs"},
		{"G28 G1 X1", "both use the axis words"},
		{"G80 X1", "no motion"},
		{"G4", "needs a P word"},
		{"G92", "needs an axis word"},
		{"G2 X1 R2 I1", "both a radius and a centre"},
		{"%X1", "text beside"},
		{strings.Repeat("X", 300), "more than 256"},
		{"X12345678901234567", "too long"},
	} {
		_, err := Parse(c.line, 42)
		if err == nil {
			t.Errorf("%q: no error", c.line)
			continue
		}
		if !strings.HasPrefix(err.Error(), "line 42: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.line, err, c.want)
		}
	}
}

func TestProgramErrorHasItsLine(t *testing.T) {
	_, err := ParseProgram("p", "G21\nG0 X1\n\nG1 Y#2 F3\n")
	if err == nil || !strings.HasPrefix(err.Error(), "line 4: ") {
		t.Errorf("got %v", err)
	}
	p, err := ParseProgram("p", "%\nG21\n(x)\nG0 X1")
	if err != nil || len(p.Blocks) != 2 || p.Blocks[1].Line != 4 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestNormalize(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"G01X10.5F200", "G1X10.5F200"},
		{"G01X10.500F200", "G1X10.5F200"},
		{"g1 x10.50 f200.000", "G1X10.5F200"},
		{"N10 G001 X+10.5 (cut) F0200", "G1X10.5F200"},
		{"G1X10.5F200 ; fast", "G1X10.5F200"},
		{"G100X1", "G100X1"},
		{"G0X-0.50", "G0X-.5"},
		{"G0X-.5", "G0X-.5"},
		{"G0X0.0Y00Z-0", "G0X0Y0Z0"},
		{"", ""},
		{"(open", "(open"},
	} {
		if got := Normalize(c.line); got != c.want {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
}

func TestCacheKeepsOneCommandForAllSpellings(t *testing.T) {
	c := NewCache(nil)
	first, err := c.Lookup("G01X10.5F200")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"G01X10.500F200", "g1 x10.5 f200.", "G1X10.5F200"} {
		if cmd, err := c.Lookup(line); err != nil || cmd != first {
			t.Errorf("%q: %v %v", line, cmd, err)
		}
	}
	if c.Len() != 1 || first.Code != "G1" || first.Feed != 200 || len(first.Params) != 2 {
		t.Errorf("%d commands, first %+v", c.Len(), first)
	}
	if _, err := c.Lookup("G1X"); err == nil || c.Len() != 1 {
		t.Error("a bad line was kept")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"G1 X1 F2", "N1 G2X1Y1I.5J0", "/G81 Z-1R1", "X1.2.3", "(a)M30", "G0X0000000000000000000000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		b, err := Parse(line, 1)
		if err != nil || strings.Contains(line, "%") {
			return
		}
		for _, w := range b.Words {
			if math.IsNaN(w.Value) || math.IsInf(w.Value, 0) {
				t.Errorf("%q: %c is %v", line, w.Letter, w.Value)
			}
		}
		// The normal form means the same, and is its own normal form.
		n := Normalize(line)
		again, err := Parse(n, 1)
		if err != nil {
			t.Fatalf("%q: normal form %q: %v", line, n, err)
		}
		b.N, b.Note = -1, ""
		if show(b) != show(again) {
			t.Errorf("%q: %s, normal form %q: %s", line, show(b), n, show(again))
		}
		if Normalize(n) != n {
			t.Errorf("%q: %q becomes %q", line, n, Normalize(n))
		}
	})
}
