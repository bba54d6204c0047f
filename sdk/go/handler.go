package memtrace

import (
	"bytes"
	"encoding/json"
	"net/http"
	"runtime/pprof"
	"strconv"
)

// Handler serves what memtrace knows besides the runtime's own profiles, for
// `memtrace watch` and for people:
//
//	/debug/memtrace/tags          which number on the stacks means which tag (JSON)
//	/debug/memtrace/events?since=N  the garbage collections after number N, and gauges (JSON)
//	/debug/memtrace/keys?n=8      some keys of the maps of [WatchMap] (JSON)
//	/debug/memtrace/heap          the heap profile with the tags as labels (pprof)
//
// It does not ask who asks: serve it where pprof is served, behind the same check. An
// endpoint that [Guard] makes has it already.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/memtrace/tags", serveTags)
	mux.HandleFunc("/debug/memtrace/events", serveEvents)
	mux.HandleFunc("/debug/memtrace/keys", serveKeys)
	mux.HandleFunc("/debug/memtrace/heap", serveHeap)
	return mux
}

// tagPage is what /debug/memtrace/tags answers.
type tagPage struct {
	Schema     string         `json:"schema"`
	Key        string         `json:"key"`        // of the label
	Other      string         `json:"other"`      // for numbers without a name
	Generation uint64         `json:"generation"` // changes with the names
	Names      map[int]string `json:"names"`
}

func serveTags(w http.ResponseWriter, _ *http.Request) {
	names, generation := tagNames()
	answer(w, tagPage{"memtrace.tags/1", labelKey, otherTag, generation, names})
}

func serveEvents(w http.ResponseWriter, r *http.Request) {
	since := int64(0)
	if text := r.URL.Query().Get("since"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "since must be the number of a collection", http.StatusBadRequest)
			return
		}
		since = n
	}
	answer(w, eventsAfter(since))
}

func serveHeap(w http.ResponseWriter, _ *http.Request) {
	var profile bytes.Buffer
	if err := WriteHeapProfile(&profile); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="heap"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(profile.Bytes())
}

func answer(w http.ResponseWriter, page any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// The client has gone: nobody is left to tell.
	_ = json.NewEncoder(w).Encode(page)
}

// heapProfile is the runtime's heap profile as it is, gzip-compressed protobuf.
func heapProfile() (*bytes.Buffer, error) {
	var b bytes.Buffer
	if err := pprof.Lookup("heap").WriteTo(&b, 0); err != nil {
		return nil, err
	}
	return &b, nil
}
