//go:build !cgo_part

package main

func takeC(int) int { return 0 }
