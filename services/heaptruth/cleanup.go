//go:build go1.24

package main

import "runtime"

const cleanups = true

func addCleanup(c *Cleaned) { runtime.AddCleanup(c, func(uint64) {}, c.Number) }
