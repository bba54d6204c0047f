package ncgen

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilesAreThoseOfTheGenerator(t *testing.T) {
	dir := filepath.Join("..", "..", "testdata")
	files, err := filepath.Glob(filepath.Join(dir, "*.nc"))
	if err != nil {
		t.Fatal(err)
	}
	programs := All()
	if len(programs) < 8 || len(files) != len(programs) {
		t.Fatalf("%d programs, %d files", len(programs), len(files))
	}
	total := 0
	for _, p := range programs {
		text, err := os.ReadFile(filepath.Join(dir, p.Name+".nc"))
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != p.Text {
			t.Errorf("%s differs: run go run ./ncgen", p.Name)
		}
		if n := strings.Count(p.Text, "\n"); n < 2000 || n > 6000 {
			t.Errorf("%s has %d lines", p.Name, n)
		}
		total += len(p.Text)
	}
	if total > 2<<20 {
		t.Errorf("%d bytes in all", total)
	}
}
