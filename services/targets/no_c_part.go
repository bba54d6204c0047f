//go:build !cgo

package main

// The modes that need C do nothing special in a program without it.

func liveInC()             { fault("built without C") }
func startsThreads()       { fault("built without C") }
func smallStacksInC()      { fault("built without C") }
func vforks()              { fault("built without C") }
func realTime()            { fault("built without C") }
func worstLateness() int64 { return 0 }
