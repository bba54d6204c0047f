// Package ncgen writes the programs in testdata: parts as a CAM system would send
// them to a small mill. The same version always writes the same bytes.
package ncgen

import (
	"fmt"
	"math"
	"math/rand"
	"strconv"
	"strings"
)

// Program is a generated file.
type Program struct {
	Name string // without .nc
	Text string
}

// All returns all programs.
func All() []Program {
	var out []Program
	for _, p := range []struct {
		name string
		gen  func(*writer)
	}{
		{"contour_cam", contourCam},
		{"drill_plate", drillPlate},
		{"engrave_text", engraveText},
		{"face_block", faceBlock},
		{"gear", gear},
		{"helix_bores", helixBores},
		{"inch_flange", inchFlange},
		{"pocket_rect", pocketRect},
		{"pocket_round", pocketRound},
		{"spiral", spiral},
		{"surface", surface},
	} {
		w := &writer{}
		p.gen(w)
		out = append(out, Program{p.name, w.b.String()})
	}
	return out
}

// writer writes blocks. Numbers are rounded to what the machine resolves.
type writer struct {
	b strings.Builder
	n int
}

// num writes a number with at most four decimals and no needless zeros.
func num(v float64) string {
	s := strconv.FormatFloat(v, 'f', 4, 64)
	s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	if s == "-0" || s == "" {
		return "0"
	}
	return s
}

// line writes a block; arguments are a code and then letters with numbers.
func (w *writer) line(code string, words ...any) {
	w.b.WriteString(code)
	for i := 0; i+1 < len(words); i += 2 {
		if code != "" || i > 0 {
			w.b.WriteByte(' ')
		}
		w.b.WriteString(words[i].(string))
		switch v := words[i+1].(type) {
		case float64:
			w.b.WriteString(num(v))
		case int:
			w.b.WriteString(strconv.Itoa(v))
		}
	}
	w.b.WriteByte('\n')
}

// numbered is line with an N word.
func (w *writer) numbered(code string, words ...any) {
	w.n += 10
	w.line("N"+strconv.Itoa(w.n)+" "+code, words...)
}

func (w *writer) start(title string, tool, rpm int) {
	fmt.Fprintf(&w.b, "%%\n(%s)\n", title)
	w.line("G17 G21 G40 G49 G80 G90 G94")
	w.tool(tool, rpm)
}

func (w *writer) tool(tool, rpm int) {
	w.line("G53 G0", "Z", 150)
	w.line("", "T", tool, "M", 6)
	w.line("G43", "H", tool)
	w.line("", "S", rpm, "M", 3)
	w.line("M8")
}

func (w *writer) end() {
	w.line("G53 G0", "Z", 150)
	w.line("M9")
	w.line("M5")
	w.line("G28")
	w.line("M30")
	w.b.WriteString("%\n")
}

func faceBlock(w *writer) {
	w.start("FACE A BLOCK 220 X 160, 4 PASSES", 1, 4500)
	for pass := 1; pass <= 4; pass++ {
		z := -0.4 * float64(pass)
		fmt.Fprintf(&w.b, "(PASS %d)\n", pass)
		w.line("G0", "X", -8.0, "Y", 0.0)
		w.line("G0", "Z", 2.0)
		w.line("G1", "Z", z, "F", 300)
		right := true
		for y := 0.0; y <= 160; y += 0.5 {
			x := -8.0
			if right {
				x = 228
			}
			w.numbered("G1", "X", x, "F", 2400)
			w.numbered("G1", "Y", y+0.5)
			right = !right
		}
		w.line("G0", "Z", 5.0)
	}
	w.end()
}

func pocketRect(w *writer) {
	w.start("12 RECTANGULAR POCKETS", 2, 9000)
	for p := 0; p < 12; p++ {
		cx, cy := 35+float64(p%4)*65, 30+float64(p/4)*60
		hw, hh := 24-float64(p%3)*3, 20-float64(p%2)*4
		fmt.Fprintf(&w.b, "(POCKET %d)\n", p+1)
		w.line("G0", "X", cx, "Y", cy)
		w.line("G0", "Z", 2.0)
		for depth := 1; depth <= 8; depth++ {
			w.line("G1", "Z", -0.75*float64(depth), "F", 250)
			for step := 1; step <= 6; step++ {
				f := float64(step) / 6
				x, y := hw*f, hh*f
				w.line("G1", "X", cx-x, "Y", cy-y, "F", 1400)
				w.line("", "X", cx+x)
				w.line("", "Y", cy+y)
				w.line("", "X", cx-x)
				w.line("", "Y", cy-y)
			}
			w.line("G1", "X", cx, "Y", cy, "F", 2500)
		}
		w.line("G0", "Z", 5.0)
	}
	w.end()
}

func pocketRound(w *writer) {
	w.start("16 ROUND POCKETS BY ARCS", 3, 10000)
	for p := 0; p < 16; p++ {
		cx, cy := 30+float64(p%4)*62, 30+float64(p/4)*58
		fmt.Fprintf(&w.b, "(POCKET %d)\n", p+1)
		w.line("G0", "X", cx, "Y", cy)
		w.line("G0", "Z", 2.0)
		for depth := 1; depth <= 9; depth++ {
			w.line("G1", "X", cx, "Y", cy, "Z", -0.8*float64(depth), "F", 260)
			rings := 7 + p%3
			for ring := 1; ring <= rings; ring++ {
				r := 2.6 * float64(ring)
				w.line("G1", "X", cx+r, "Y", cy, "F", 900)
				w.line("G3", "X", cx-r, "Y", cy, "I", -r, "J", 0.0, "F", 1600)
				w.line("G3", "X", cx+r, "Y", cy, "I", r, "J", 0.0)
			}
		}
		w.line("G0", "Z", 5.0)
	}
	w.end()
}

// contourCam mills a disk cam whose lift follows a smooth law.
func contourCam(w *writer) {
	w.start("DISK CAM, LIFT 14", 4, 8000)
	radius := func(a float64) float64 {
		lift := 0.0
		if a > math.Pi/3 && a < 4*math.Pi/3 {
			u := (a - math.Pi/3) / math.Pi
			lift = 14 * math.Pow(math.Sin(math.Pi*u), 2)
		}
		return 42 + lift + 0.6*math.Sin(9*a)
	}
	for depth := 1; depth <= 6; depth++ {
		w.line("G0", "X", 120+radius(0)+6, "Y", 100.0)
		w.line("G0", "Z", 2.0)
		w.line("G1", "Z", -1.5*float64(depth), "F", 220)
		for i := 0; i <= 640; i++ {
			a := 2 * math.Pi * float64(i) / 640
			r := radius(a) + 3
			words := []any{"X", 120 + r*math.Cos(a), "Y", 100 + r*math.Sin(a)}
			if i == 0 {
				words = append(words, "F", 1100)
			}
			w.numbered("G1", words...)
		}
		w.line("G0", "Z", 5.0)
	}
	w.end()
}

func drillPlate(w *writer) {
	w.start("DRILL, SPOT AND PECK A PLATE", 5, 6000)
	grid := func(code string, words []any, nx, ny int, x0, y0, pitch float64) {
		w.line("G0", "X", x0, "Y", y0)
		w.line("G0", "Z", 5.0)
		for j := 0; j < ny; j++ {
			for i := 0; i < nx; i++ {
				k := i
				if j%2 == 1 {
					k = nx - 1 - i
				}
				x, y := x0+float64(k)*pitch, y0+float64(j)*pitch
				if i == 0 && j == 0 {
					w.line(code, append([]any{"X", x, "Y", y}, words...)...)
				} else {
					w.line("", "X", x, "Y", y)
				}
			}
		}
		w.line("G80")
	}
	grid("G82", []any{"Z", -1.2, "R", 1.0, "P", 0.05, "F", 350}, 40, 30, 5, 5, 6)
	w.tool(6, 5200)
	grid("G81", []any{"Z", -9.0, "R", 1.0, "F", 420}, 40, 30, 5, 5, 6)
	w.tool(7, 4200)
	grid("G83", []any{"Z", -18.0, "R", 1.5, "Q", 3.0, "F", 280}, 20, 20, 8, 8, 12)
	w.end()
}

// A stroke font: pen-up moves and polylines on a grid of 4 by 6; a leading a or c
// makes the step an arc around the middle of its ends.
var font = map[rune]string{
	'A': "00 26 40;12 32", 'B': "00 06 36 45 44 33 03;33 42 41 30 00", 'C': "45 36 16 05 01 10 30 41",
	'D': "00 06 26 44 42 20 00", 'E': "46 06 00 40;03 33", 'F': "46 06 00;03 33", 'H': "00 06;40 46;03 43",
	'I': "20 26", 'K': "00 06;46 03 40", 'L': "06 00 40", 'M': "00 06 23 46 40", 'N': "00 06 40 46",
	'O': "01 05 c45 41 c01", 'P': "00 06 36 45 44 33 03", 'R': "00 06 36 45 44 33 03;23 40",
	'S': "45 36 16 05 04 13 33 42 41 30 10 01", 'T': "20 26;06 46", 'U': "06 01 a41 46", 'X': "00 46;06 40",
	'0': "01 05 c45 41 c01", '1': "05 26 20", '2': "05 16 36 45 44 00 40", '3': "06 46 23 33 42 41 30 10 01",
	'4': "30 36 02 42", '5': "46 06 03 33 42 41 30 00", '6': "46 16 05 01 10 30 41 42 33 03",
	'7': "06 46 10", '8': "13 04 05 16 36 45 44 33 13 02 01 10 30 41 42 33", '9': "00 30 41 45 36 16 05 04 13 43",
	'-': "13 33",
}

func (w *writer) text(s string, x, y, scale float64) {
	for _, r := range s {
		for _, stroke := range strings.Split(font[r], ";") {
			if stroke == "" {
				continue
			}
			for i, p := range strings.Fields(stroke) {
				code := "G1"
				if p[0] == 'c' || p[0] == 'a' {
					code = map[byte]string{'c': "G2", 'a': "G3"}[p[0]]
					p = p[1:]
				}
				px, py := x+float64(p[0]-'0')*scale, y+float64(p[1]-'0')*scale
				switch {
				case i == 0:
					w.line("G0", "X", px, "Y", py)
					w.line("G1", "Z", -0.2, "F", 200)
				case code == "G1":
					w.line("G1", "X", px, "Y", py, "F", 700)
				default:
					w.line(code, "X", px, "Y", py, "R", 2*scale)
				}
			}
			w.line("G0", "Z", 1.0)
		}
		x += 6 * scale
	}
}

func engraveText(w *writer) {
	w.start("TYPE PLATES WITH SERIAL NUMBERS", 8, 18000)
	w.line("G0", "Z", 5.0)
	random := rand.New(rand.NewSource(7))
	for p := 0; p < 20; p++ {
		x, y := 5+float64(p%4)*62, 8+float64(p/4)*46
		fmt.Fprintf(&w.b, "(PLATE %d)\n", p+1)
		w.line("G0", "X", x, "Y", y)
		w.line("G0", "Z", 1.0)
		w.text("MILL CONTROL", x+2, y+24, 0.75)
		w.text(fmt.Sprintf("SN %03d-%05d", p+1, random.Intn(100000)), x+2, y+14, 0.7)
		w.text("2 KN 48 U", x+2, y+5, 0.6)
		// A frame with round corners.
		w.line("G0", "X", x+3, "Y", y)
		w.line("G1", "Z", -0.3, "F", 200)
		w.line("G1", "X", x+55, "F", 900)
		w.line("G3", "X", x+58, "Y", y+3, "I", 0.0, "J", 3.0)
		w.line("G1", "Y", y+37)
		w.line("G3", "X", x+55, "Y", y+40, "I", -3.0, "J", 0.0)
		w.line("G1", "X", x+3)
		w.line("G3", "X", x, "Y", y+37, "I", 0.0, "J", -3.0)
		w.line("G1", "Y", y+3)
		w.line("G3", "X", x+3, "Y", y, "I", 3.0, "J", 0.0)
		w.line("G0", "Z", 2.0)
	}
	w.end()
}

func spiral(w *writer) {
	w.start("ENGRAVED SPIRALS", 8, 16000)
	for s := 0; s < 4; s++ {
		cx, cy := 60+float64(s%2)*120, 60+float64(s/2)*110
		fmt.Fprintf(&w.b, "(SPIRAL %d)\n", s+1)
		w.line("G0", "X", cx, "Y", cy)
		w.line("G0", "Z", 1.0)
		w.line("G1", "Z", -0.5, "F", 200)
		for i := 1; i <= 1000; i++ {
			a := 0.12 * float64(i)
			r := 0.045 * float64(i)
			if s%2 == 1 {
				a = -a
			}
			w.numbered("G1", "X", cx+r*math.Cos(a), "Y", cy+r*math.Sin(a), "Z", -0.5-0.1*math.Sin(a/3), "F", 1500)
		}
		w.line("G0", "Z", 3.0)
	}
	w.end()
}

// gear mills straight-sided teeth with arcs at tip and root.
func gear(w *writer) {
	w.start("GEAR WITH 48 TEETH", 9, 9000)
	const teeth, root, tip = 48, 62.0, 68.0
	at := func(r, a float64) (float64, float64) { return 120 + r*math.Cos(a), 110 + r*math.Sin(a) }
	for depth := 1; depth <= 18; depth++ {
		x, y := at(root, 0)
		w.line("G0", "X", x+15, "Y", y)
		w.line("G0", "Z", 2.0)
		w.line("G1", "Z", -0.5*float64(depth), "F", 240)
		w.line("G1", "X", x, "F", 800)
		for t := 0; t < teeth; t++ {
			a := 2 * math.Pi * float64(t) / teeth
			step := 2 * math.Pi / teeth
			x, y = at(root, a+0.3*step)
			w.line("G3", "X", x, "Y", y, "R", root)
			x, y = at(tip, a+0.42*step)
			w.line("G1", "X", x, "Y", y, "F", 950)
			x, y = at(tip, a+0.88*step)
			w.line("G3", "X", x, "Y", y, "R", tip)
			x, y = at(root, a+step)
			w.line("G1", "X", x, "Y", y)
		}
		w.line("G0", "Z", 5.0)
	}
	w.end()
}

// helixBores uses helical arcs, inverse time feed and arcs in all planes.
func helixBores(w *writer) {
	w.start("HELICAL BORES AND ROUND EDGES", 10, 11000)
	for p := 0; p < 60; p++ {
		cx, cy := 20+float64(p%10)*24, 20+float64(p/10)*30
		r := 4 + float64(p%4)
		w.line("G0", "X", cx+r, "Y", cy)
		w.line("G0", "Z", 1.0)
		w.line("G1", "Z", 0.0, "F", 300)
		for turn := 1; turn <= 12; turn++ {
			w.line("G3", "X", cx-r, "Y", cy, "Z", -0.5*float64(2*turn-1), "I", -r, "F", 1300)
			w.line("G3", "X", cx+r, "Y", cy, "Z", -0.5*float64(2*turn), "I", r)
		}
		w.line("G1", "X", cx, "Y", cy, "F", 1500)
		w.line("G0", "Z", 5.0)
	}
	w.line("G93")
	for i := 0; i < 300; i++ {
		x := float64(i) * 0.8
		w.line("G0", "X", x, "Y", 205.0)
		w.line("G0", "Z", 0.0)
		w.line("G19")
		w.line("G2", "Y", 211.0, "Z", -6.0, "J", 0.0, "K", -6.0, "F", 90)
		w.line("G17")
		w.line("G0", "Z", 3.0)
	}
	w.line("G94")
	w.line("G18")
	for i := 0; i < 150; i++ {
		w.line("G0", "X", 240.0, "Y", float64(i))
		w.line("G0", "Z", 0.0)
		w.line("G3", "X", 246.0, "Z", -6.0, "I", 0.0, "K", -6.0, "F", 900)
		w.line("G0", "Z", 3.0)
	}
	w.line("G17")
	w.end()
}

// inchFlange uses inches, incremental moves and work offsets.
func inchFlange(w *writer) {
	w.start("FLANGES IN INCHES", 11, 7000)
	w.line("G20")
	for part, offset := range []string{"G54", "G55", "G56"} {
		w.line(offset)
		fmt.Fprintf(&w.b, "(FLANGE %d)\n", part+1)
		for circle := 1; circle <= 4; circle++ {
			r := 0.8 * float64(circle)
			n := 24 * circle
			for i := 0; i < n; i++ {
				a := 2 * math.Pi * float64(i) / float64(n)
				x, y := 4+r*math.Cos(a), 4+r*math.Sin(a)
				w.line("G0", "X", x, "Y", y)
				w.line("G0", "Z", 0.1)
				w.line("G91 G1", "Z", -0.4, "F", 14.5)
				w.line("G0", "Z", 0.4)
				w.line("G90")
			}
		}
		// The rim, by a staircase of incremental chords.
		w.line("G0", "X", 7.6, "Y", 4.0)
		w.line("G1", "Z", -0.05, "F", 12.0)
		w.line("G91")
		lastX, lastY := 7.6, 4.0
		for i := 1; i <= 360; i++ {
			a := 2 * math.Pi * float64(i) / 360
			x, y := math.Round((4+3.6*math.Cos(a))*1e4)/1e4, math.Round((4+3.6*math.Sin(a))*1e4)/1e4
			w.line("G1", "X", x-lastX, "Y", y-lastY, "F", 45.0)
			lastX, lastY = x, y
		}
		w.line("G90")
		w.line("G0", "Z", 0.2)
	}
	w.line("G21")
	w.line("/M1")
	w.end()
}

func surface(w *writer) {
	w.start("FREE-FORM SURFACE, BALL MILL", 12, 15000)
	height := func(x, y float64) float64 {
		return -6 + 4*math.Sin(x/22)*math.Cos(y/17) + 1.5*math.Sin((x+y)/9)
	}
	w.line("G0", "X", 0.0, "Y", 0.0)
	w.line("G0", "Z", 2.0)
	w.line("G1", "Z", height(0, 0), "F", 300)
	for row := 0; row < 56; row++ {
		y := 2.5 * float64(row)
		for i := 0; i <= 80; i++ {
			x := 2.5 * float64(i)
			if row%2 == 1 {
				x = 200 - x
			}
			words := []any{"X", x, "Y", y, "Z", height(x, y)}
			if i == 0 {
				words = append(words, "F", 1800)
			}
			w.line("G1", words...)
		}
	}
	w.end()
}
