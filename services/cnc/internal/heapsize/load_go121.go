//go:build !go1.22

package heapsize

// maxLoad is how many keys a bucket of a map holds on average before the map
// doubles.
const maxLoad = 6.0
