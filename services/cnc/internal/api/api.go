// Package api is the HTTP face of the controller.
package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime/metrics"
	"sort"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"cnc/internal/events"
	"cnc/internal/fault"
	"cnc/internal/gcode"
	"cnc/internal/heapsize"
	"cnc/internal/job"
	"cnc/internal/load"
	"cnc/internal/machine"
	"cnc/internal/scheduler"
	"cnc/internal/servo"
)

const maxBody = 4 << 20

// Parts are the rooms of the service that the API shows.
type Parts struct {
	Programs  map[string]string
	Jobs      *job.Manager
	Reports   *job.Reports
	Bus       *events.Bus
	Loop      *servo.Loop
	Machine   *machine.Machine
	Scheduler *scheduler.Scheduler
	Engine    *load.Engine
	History   *servo.History
	Cache     *gcode.Cache
	Fault     *fault.Fault
}

// Server answers requests.
type Server struct {
	Parts
	mux     *http.ServeMux
	started time.Time
	last    atomic.Pointer[outcome]
}

// outcome is what is remembered of the request of the last finished job.
type outcome struct {
	Job    string `json:"job"`
	Remote string `json:"remote"`
	Path   string `json:"path"`
	Bytes  int    `json:"bytes"`
}

// New returns a server with its own mux, so that nothing else that is linked in can
// add routes.
func New(p Parts) *Server {
	s := &Server{Parts: p, mux: http.NewServeMux(), started: time.Now()}
	p.Fault.SetBacking(fault.Closure, p.Bus.Backing)
	s.mux.HandleFunc("/jobs", s.jobs)
	s.mux.HandleFunc("/jobs/", s.job)
	s.mux.HandleFunc("/state", only(http.MethodGet, s.state))
	s.mux.HandleFunc("/jitter/reset", only(http.MethodPost, s.resetJitter))
	s.mux.HandleFunc("/truth", only(http.MethodGet, s.truth))
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Mux is where other rooms can add their routes before the server is used.
func (s *Server) Mux() *http.ServeMux { return s.mux }

func only(method string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method && !(method == http.MethodGet && r.Method == http.MethodHead) {
			w.Header().Set("Allow", method)
			fail(w, http.StatusMethodNotAllowed, "method not allowed")
			return
		}
		next(w, r)
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here means that the client has gone.
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, msg string) {
	reply(w, status, map[string]string{"error": msg})
}

func (s *Server) jobs(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		reply(w, http.StatusOK, s.Jobs.List())
	case http.MethodPost:
		s.submit(w, r)
	default:
		w.Header().Set("Allow", "GET, POST")
		fail(w, http.StatusMethodNotAllowed, "method not allowed")
	}
}

// submit takes a program by name (?program=NAME) or as the body.
func (s *Server) submit(w http.ResponseWriter, r *http.Request) {
	id := s.Jobs.NextID()
	body, err := s.watch(r, id)
	if err != nil {
		fail(w, http.StatusRequestEntityTooLarge, err.Error())
		return
	}
	name, text := r.URL.Query().Get("program"), string(body)
	if name == "" {
		name = "body"
	} else {
		var ok bool
		if text, ok = s.Programs[strings.TrimSuffix(name, ".nc")]; !ok || len(body) > 0 {
			s.Bus.Publish(events.Event{Jobs: []string{id}})
			fail(w, http.StatusNotFound, "no such program, or both a name and a body; programs: "+strings.Join(names(s.Programs), ", "))
			return
		}
	}
	j, err := s.Jobs.Submit(id, name, text)
	var syntax *gcode.Error
	switch {
	case err == nil:
		reply(w, http.StatusAccepted, j)
		return
	case errors.Is(err, job.ErrBusy):
		fail(w, http.StatusServiceUnavailable, err.Error())
	case errors.As(err, &syntax):
		fail(w, http.StatusBadRequest, err.Error())
	default:
		fail(w, http.StatusInternalServerError, err.Error())
	}
	s.Bus.Publish(events.Event{Jobs: []string{id}})
}

func names(programs map[string]string) []string {
	out := make([]string, 0, len(programs))
	for name := range programs {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// watch reads the body of a request and keeps both until the job is over, so that
// its end can be told together with what was asked.
//
// The listener holds the request and the body; it is removed with its job. With
// fault.Closure active it is not.
func (s *Server) watch(r *http.Request, id string) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return nil, err
	}
	var unsubscribe func()
	over := false
	unsubscribe = s.Bus.Subscribe(func(e events.Event) {
		if over || !e.Has(id) {
			return
		}
		s.last.Store(&outcome{Job: id, Remote: r.RemoteAddr, Path: r.URL.Path, Bytes: len(body)})
		if s.Fault.Active(fault.Closure) {
			over = true
			s.Fault.Leaked(heapsize.NoScan(cap(body))+requestBytes, 8)
			return
		}
		unsubscribe()
	})
	return body, nil
}

// requestBytes is what a listener keeps on the heap besides the body: request, URL,
// header map, body reader, name of the job and closures.
var requestBytes = heapsize.Scan(int(unsafe.Sizeof(http.Request{}))) +
	heapsize.Scan(int(unsafe.Sizeof(url.URL{}))) + 48 + 48 + 48 + 24 + 64 + 32 + 8

// Watch is watch for requests that do not come from the network: the self load.
func (s *Server) Watch(r *http.Request, id string) error {
	_, err := s.watch(r, id)
	return err
}

func (s *Server) job(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		fail(w, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	id := strings.TrimPrefix(r.URL.Path, "/jobs/")
	j, ok := s.Jobs.Get(id)
	if !ok {
		fail(w, http.StatusNotFound, "no such job")
		return
	}
	out := struct {
		job.Job
		Report string `json:"report,omitempty"`
	}{Job: j}
	if report := s.Reports.Get(id); report != nil {
		out.Report = strings.TrimSpace(string(report.Log))
	}
	reply(w, http.StatusOK, out)
}

// state must not disturb what it shows: it reads runtime/metrics, which unlike
// ReadMemStats does not stop the world.
func (s *Server) state(w http.ResponseWriter, _ *http.Request) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/allocs:objects"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/sched/goroutines:goroutines"},
	}
	metrics.Read(samples)
	memory := make(map[string]uint64)
	for i, key := range []string{"heap_bytes", "total_bytes", "allocated_bytes", "allocated_objects", "goal_bytes", "gc_cycles", "goroutines"} {
		if samples[i].Value.Kind() == metrics.KindUint64 {
			memory[key] = samples[i].Value.Uint64()
		}
	}
	reply(w, http.StatusOK, map[string]any{
		"pid":          os.Getpid(),
		"uptime_s":     time.Since(s.started).Seconds(),
		"servo":        s.Loop.State(),
		"machine":      s.Machine.State(),
		"scheduler":    s.Scheduler.Stats(),
		"load":         s.Engine.Stats(),
		"history":      s.History.Len(),
		"commands":     s.Cache.Len(),
		"reports":      s.Reports.Len(),
		"listeners":    s.Bus.Len(),
		"last_request": s.last.Load(),
		"memory":       memory,
		"programs":     names(s.Programs),
	})
}

func (s *Server) resetJitter(w http.ResponseWriter, _ *http.Request) {
	s.Loop.ResetJitter()
	reply(w, http.StatusOK, map[string]string{"jitter": "reset"})
}

func (s *Server) truth(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, s.Fault.Truth(os.Getpid()))
}
