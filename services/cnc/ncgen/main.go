// Command ncgen writes the programs of testdata into a folder.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cnc/internal/ncgen"
)

func main() {
	dir := flag.String("o", "testdata", "`folder` to write to")
	flag.Parse()
	for _, p := range ncgen.All() {
		name := filepath.Join(*dir, p.Name+".nc")
		if err := os.WriteFile(name, []byte(p.Text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "ncgen:", err)
			os.Exit(1)
		}
		fmt.Printf("%s: %d lines, %d bytes\n", name, strings.Count(p.Text, "\n"), len(p.Text))
	}
}
