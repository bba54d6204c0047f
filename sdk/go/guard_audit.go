package memtrace

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

const (
	// auditQueue bounds, in bytes, what waits for a slow writer.
	auditQueue = 64 << 10
	// auditPause is the time after which a count of lines left out is told.
	auditPause = 10 * time.Second
	// auditWord bounds, in bytes, what is logged of one word of a request.
	auditWord = 256
)

// entry is one access.
type entry struct {
	at                   time.Time
	remote, method, path string
	status               int
	reason               string // of not serving it, else empty
	took                 time.Duration
}

// auditLog writes lines without ever keeping a request waiting for the writer, but for
// the one request that writes.
type auditLog struct {
	w io.Writer // nil: no log

	mu      sync.Mutex
	queue   []byte
	writing bool
	leftOut uint64
	timer   *time.Timer // tells leftOut; nil when there is none to tell
}

func newAuditLog(w io.Writer) *auditLog {
	return &auditLog{w: w}
}

// access writes down one access; in a flood it only counts it.
func (a *auditLog) access(e entry, flood bool) {
	if a.w == nil {
		return
	}
	if flood {
		a.leaveOut()
		return
	}
	verdict := "served"
	if e.reason != "" {
		verdict = "refused"
	}
	line := make([]byte, 0, 256)
	line = append(line, "memtrace guard: time="...)
	line = e.at.UTC().AppendFormat(line, "2006-01-02T15:04:05.000Z")
	line = append(line, " remote="...)
	line = appendWord(line, e.remote)
	line = append(line, " method="...)
	line = appendWord(line, e.method)
	line = append(line, " path="...)
	line = appendWord(line, e.path)
	line = append(line, " verdict="...)
	line = append(line, verdict...)
	if e.reason != "" {
		line = append(line, " reason="...)
		line = strconv.AppendQuote(line, e.reason)
	}
	line = append(line, " status="...)
	line = strconv.AppendInt(line, int64(e.status), 10)
	line = append(line, " ms="...)
	line = strconv.AppendFloat(line, float64(e.took.Microseconds())/1e3, 'f', 3, 64)
	a.write(append(line, '\n'))
}

// note writes a line that is no access.
func (a *auditLog) note(text string) {
	if a.w == nil {
		return
	}
	line := append([]byte("memtrace guard: time="), time.Now().UTC().Format("2006-01-02T15:04:05.000Z")...)
	line = append(line, " note="...)
	a.write(append(appendWord(line, text), '\n'))
}

// appendWord quotes what came from outside, so that it can neither end the line nor
// look like another field.
func appendWord(line []byte, word string) []byte {
	return strconv.AppendQuoteToASCII(line, word[:min(len(word), auditWord)])
}

// write hands a line to whoever is writing, or writes. A writer that does not keep up
// costs lines, not memory, and holds up one request at most.
func (a *auditLog) write(line []byte) {
	a.mu.Lock()
	if len(a.queue)+len(line) > auditQueue {
		a.mu.Unlock()
		a.leaveOut()
		return
	}
	a.queue = append(a.queue, line...)
	if a.writing {
		a.mu.Unlock()
		return
	}
	a.writing = true
	for len(a.queue) > 0 {
		all := a.queue
		a.queue = nil
		a.mu.Unlock()
		for len(all) > 0 {
			end := bytes.IndexByte(all, '\n') + 1
			_, _ = a.w.Write(all[:end]) // where the log cannot be written there is nobody to tell
			all = all[end:]
		}
		a.mu.Lock()
	}
	a.writing = false
	a.mu.Unlock()
}

func (a *auditLog) leaveOut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leftOut++
	if a.timer == nil {
		a.timer = time.AfterFunc(auditPause, a.flush)
	}
}

// flush tells how many lines were left out.
func (a *auditLog) flush() {
	a.mu.Lock()
	n := a.leftOut
	a.leftOut = 0
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	a.mu.Unlock()
	if n > 0 {
		a.note(fmt.Sprintf("%d lines left out", n))
	}
}

// errorNotes takes what the HTTP server reports (failed handshakes, panics), under the
// limit of refused requests.
type errorNotes struct {
	*auditLog
	limit *tokenBucket
}

func (n errorNotes) Write(text []byte) (int, error) {
	if n.w == nil {
		return len(text), nil
	}
	if _, ok := n.limit.take(time.Now()); !ok {
		n.leaveOut()
		return len(text), nil
	}
	n.note(string(bytes.TrimSpace(text)))
	return len(text), nil
}
