package memtrace

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"sort"
	"strconv"
	"strings"
	"time"
)

// net/http/pprof is not used on purpose: linking it in puts its handlers, unguarded, on
// http.DefaultServeMux.

const (
	maxSymbolBody = 256 << 10 // bytes
	// writeTimeout bounds the writing of an answer, beyond the time of a recording.
	writeTimeout = 30 * time.Second
	maxCPU       = time.Minute
	maxTrace     = 10 * time.Second
)

// recordings are the pages that are no [pprof.Profile].
var recordings = []string{"cmdline", "profile", "symbol", "trace"}

// pprof serves a page below [pprofRoot]. It returns why it did not, or nothing.
func (g *guard) pprof(w http.ResponseWriter, r *http.Request, name string) string {
	switch name {
	case "":
		index(w)
	case "cmdline":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, strings.Join(os.Args, "\x00"))
	case "symbol":
		return symbol(w, r)
	case "profile":
		if !g.config.cpu {
			forbid(w)
			return "CPU profiles are off"
		}
		return g.record(w, r, name, 30*time.Second, maxCPU, pprof.StartCPUProfile, pprof.StopCPUProfile)
	case "trace":
		if !g.config.trace {
			forbid(w)
			return "traces are off"
		}
		return g.record(w, r, name, time.Second, maxTrace, trace.Start, trace.Stop)
	default:
		return g.snapshot(w, r, name)
	}
	return ""
}

// begin takes the place of the one profile at a time, and gives the client so long to
// read it: one that does not read must not keep the place. Where it is taken, begin
// answers and says why.
func (g *guard) begin(w http.ResponseWriter, length time.Duration) (end func(), refused string) {
	select {
	case g.profiling <- struct{}{}:
	default:
		tooMany(w, time.Second)
		return nil, "another profile is being taken"
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(length + writeTimeout))
	return func() { <-g.profiling }, ""
}

// snapshot serves a profile of what is now or has been since the start.
func (g *guard) snapshot(w http.ResponseWriter, r *http.Request, name string) string {
	profile := pprof.Lookup(name)
	if profile == nil {
		fail(w, http.StatusNotFound, "Unknown profile")
		return "no such page"
	}
	query := r.URL.Query()
	if query.Has("seconds") {
		fail(w, http.StatusBadRequest, "differences over time (seconds=) are not served; take two profiles and compare them")
		return "seconds"
	}
	debug, _ := strconv.Atoi(query.Get("debug")) // 0 where it is no number, as in net/http/pprof
	h := w.Header()
	if debug != 0 {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", `attachment; filename="`+url.PathEscape(name)+`"`)
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return ""
	}
	end, refused := g.begin(w, 0)
	if refused != "" {
		return refused
	}
	defer end()
	// goroutineleak, where the runtime has it, walks the stacks too.
	if strings.HasPrefix(name, "goroutine") {
		if wait, ok := g.goroutines.take(time.Now()); !ok {
			tooMany(w, wait)
			return "goroutine profiles too often"
		}
	}
	if gc, _ := strconv.Atoi(query.Get("gc")); name == "heap" && gc > 0 {
		runtime.GC()
	}
	_ = profile.WriteTo(w, debug) // an error means that the client has gone
	return ""
}

// record serves what is recorded from now on, for `usual` unless seconds= says otherwise.
func (g *guard) record(w http.ResponseWriter, r *http.Request, name string, usual, longest time.Duration,
	start func(io.Writer) error, stop func()) string {
	length := usual
	if text := r.URL.Query().Get("seconds"); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(seconds) || seconds <= 0 || seconds > longest.Seconds() {
			fail(w, http.StatusBadRequest, fmt.Sprintf("seconds must be more than 0, at most %v", longest.Seconds()))
			return "seconds"
		}
		length = time.Duration(seconds * float64(time.Second))
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return ""
	}
	end, refused := g.begin(w, length)
	if refused != "" {
		return refused
	}
	defer end()
	if err := start(w); err != nil {
		// The program itself is recording.
		fail(w, http.StatusInternalServerError, err.Error())
		return "recording already"
	}
	defer stop()
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	return ""
}

// symbol names the functions at addresses, which are joined by "+" in the query or the
// body. Only whether num_symbols is 0 has a meaning.
func symbol(w http.ResponseWriter, r *http.Request) string {
	addresses := r.URL.RawQuery
	if r.Method == http.MethodPost {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(5 * time.Second))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSymbolBody))
		if err != nil {
			fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is not read: at most %d bytes, within 5 s", maxSymbolBody))
			return "body"
		}
		addresses = string(body)
	}
	var out bytes.Buffer
	out.WriteString("num_symbols: 1\n")
	for addresses != "" {
		var word string
		word, addresses, _ = strings.Cut(addresses, "+")
		if pc, err := strconv.ParseUint(word, 0, 64); err == nil && pc != 0 {
			if f := runtime.FuncForPC(uintptr(pc)); f != nil {
				fmt.Fprintf(&out, "%#x %s\n", pc, f.Name())
			}
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(out.Bytes())
	return ""
}

// index lists what there is. Programs look for the title and for names such as
// "goroutine".
func index(w http.ResponseWriter) {
	counts := make(map[string]string)
	for _, p := range pprof.Profiles() {
		counts[p.Name()] = strconv.Itoa(p.Count())
	}
	for _, name := range recordings {
		counts[name] = ""
	}
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	sort.Strings(names)
	var out bytes.Buffer
	out.WriteString("<html>\n<head><title>/debug/pprof/</title></head>\n<body>\n<h1>/debug/pprof/</h1>\n<table>\n")
	for _, name := range names {
		fmt.Fprintf(&out, "<tr><td>%s</td><td><a href=\"%s?debug=1\">%s</a></td></tr>\n",
			counts[name], html.EscapeString(url.PathEscape(name)), html.EscapeString(name))
	}
	out.WriteString("</table>\n</body>\n</html>\n")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}
