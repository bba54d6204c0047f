//go:build go1.22 && !go1.24

package heapsize

// maxLoad is how many keys a bucket of a map holds on average before the map
// doubles.
const maxLoad = 6.5
