//go:build !go1.24

package main

var cleanups []release // runtime.AddCleanup came with Go 1.24
