//go:build cgo

package main

const cgo = "on"
