package gcode

import (
	"math/rand"
	"strings"
	"testing"
)

func TestKeysDoNotAllocate(t *testing.T) {
	commands := map[string]int{"G1X10.5F200": 1}
	var key [MaxLine]byte
	for name, form := range map[string]func([]byte, string) []byte{"AppendNormal": AppendNormal, "AppendKey": AppendKey} {
		n := testing.AllocsPerRun(100, func() {
			if commands[string(form(key[:0], "g01 x+010.500 (cut) F200.0"))] != 1 {
				t.Fatal("not found")
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if got := string(AppendNormal([]byte("G1X1 "), "G1 (open")); got != "G1X1 G1 (open" {
		t.Errorf("got %q", got)
	}
}

func TestAppendKey(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", ""},
		{"G1 X10.5 F200", "G1X10.5F200"},
		{"F200.0 x10.50 g01", "G1X10.5F200"},
		{"G100X1", "G100X1"},
		{"M3 S1200 G90 G1 X1", "G1G90X1S1200M3"},
		{"/F100 G1", "/G1F100"},
		{"%", "%"},
		{"#1=2 X1", "#1=2X1"},
		{"X1 G1 #1=2 F1", "G1X1#1=2F1"},
		{"(open", "(open"},
		{strings.Repeat("Z", 300), strings.Repeat("Z", 300)},
	} {
		if got := string(AppendKey([]byte("=")[:1], c.line)); got != "="+c.want {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
	words := []string{"G01", "G90", "X-1.50", "Y+2", "Z.0", "I3", "F100.", "S9", "M8"}
	want := string(AppendKey(nil, strings.Join(words, " ")))
	random := rand.New(rand.NewSource(1))
	for i := 0; i < 1000; i++ {
		random.Shuffle(len(words), func(i, k int) { words[i], words[k] = words[k], words[i] })
		line := strings.Join(words, " ")
		if got := string(AppendKey(nil, line)); got != want {
			t.Fatalf("%q: got %q, want %q", line, got, want)
		}
	}
}

func FuzzAppendKey(f *testing.F) {
	for _, s := range []string{"G1 X1 F2", "/F2 G1", "X1 G1 #1=2", "Z-Z.Z", "G1G1.1G1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		key := string(AppendKey(nil, line)) // must not panic on bad lines either
		b, err := Parse(line, 1)
		if err != nil || strings.Contains(line, "%") {
			return
		}
		if again := string(AppendKey(nil, key)); again != key {
			t.Errorf("%q: %q becomes %q", line, key, again)
		}
		// The key means what the line means.
		a, err := Parse(key, 1)
		if err != nil {
			t.Fatalf("%q: key %q: %v", line, key, err)
		}
		if a.Delete != b.Delete || len(a.G) != len(b.G) || len(a.M) != len(b.M) || len(a.Words) != len(b.Words) {
			t.Fatalf("%q: key %q", line, key)
		}
		for _, w := range b.Words {
			if v, ok := a.Word(w.Letter); !ok || v != w.Value {
				t.Errorf("%q: key %q", line, key)
			}
		}
	})
}
