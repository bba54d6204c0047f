package main

import (
	"os"
	"runtime"
	"testing"
)

func TestMain(m *testing.M) {
	// Each allocation is in the profile, so that tests can compare exactly.
	runtime.MemProfileRate = 1
	os.Exit(m.Run())
}
