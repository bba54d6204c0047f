package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"cnc/internal/fault"
	"cnc/internal/job"
)

func serve(t *testing.T, args ...string) (*service, string) {
	t.Helper()
	o, err := parseFlags(append([]string{"-load", "500", "-speed", "200"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	web := httptest.NewServer(s.server)
	t.Cleanup(web.Close)
	return s, web.URL
}

func request(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func finish(t *testing.T, base, id string) job.Job {
	t.Helper()
	for i := 0; i < 1000; i++ {
		_, text := request(t, "GET", base+"/jobs/"+id, "")
		var j job.Job
		if err := json.Unmarshal([]byte(text), &j); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if j.State == job.Done || j.State == job.Failed {
			return j
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not end", id)
	return job.Job{}
}

func TestJobs(t *testing.T) {
	s, base := serve(t)
	status, text := request(t, "POST", base+"/jobs", "G21 G90\nT2 M6\nS900 M3\nG0 X10 Y0 Z140\nG4 P0.5\nG1 X60 F600\nM30\n")
	var j job.Job
	if err := json.Unmarshal([]byte(text), &j); err != nil || status != http.StatusAccepted {
		t.Fatalf("%d %s", status, text)
	}
	j = finish(t, base, j.ID)
	// 10 mm across and 10 mm down as one rapid, then 50 mm of feed.
	if j.State != job.Done || j.Length < 64 || j.Length > 65 || j.Seconds < 5.5 || j.Seconds > 6.5 {
		t.Errorf("%+v", j)
	}
	if m := s.machine.State(); m.Tool != 2 || m.Spindle != 0 {
		t.Errorf("machine %+v", m)
	}
	time.Sleep(100 * time.Millisecond)
	if p := s.server.Loop.State().Position; p[0] < 59.9 || p[0] > 60.1 {
		t.Errorf("stands at %v", p)
	}
	if _, text := request(t, "GET", base+"/jobs/"+j.ID, ""); !strings.Contains(text, `"report":"job-`) {
		t.Errorf("no report: %s", text)
	}

	// Its end is in line 2: an error of meaning, found while it runs.
	_, text = request(t, "POST", base+"/jobs", "G21\nG1 X5\n")
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		t.Fatal(text)
	}
	if j = finish(t, base, j.ID); j.State != job.Failed || !strings.Contains(j.Error, "line 2: no feed") {
		t.Errorf("%+v", j)
	}

	_, text = request(t, "GET", base+"/jobs", "")
	var list []job.Job
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 2 {
		t.Errorf("list %s", text)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/jobs", "G1 X#1", 400, "line 1: parameters and expressions"},
		{"POST", "/jobs", "", 400, "empty"},
		{"POST", "/jobs?program=none", "", 404, "surface"},
		{"POST", "/jobs?program=gear", "G0 X1", 404, "both"},
		{"GET", "/jobs/job-999", "", 404, "no such job"},
		{"PUT", "/jobs", "", 405, "not allowed"},
		{"POST", "/jobs/job-1", "", 405, "not allowed"},
		{"GET", "/jitter/reset", "", 405, "not allowed"},
		{"POST", "/state", "", 405, "not allowed"},
		{"POST", "/jobs", strings.Repeat("(long)\n", 700000), 413, "too large"},
	} {
		if status, text := request(t, c.method, base+c.path, c.body); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
		}
	}
}

func TestStateAndTruth(t *testing.T) {
	_, base := serve(t)
	time.Sleep(300 * time.Millisecond)
	var state struct {
		Servo struct {
			Ticks  uint64 `json:"ticks"`
			Jitter struct {
				Count uint64 `json:"count"`
				P50   uint64 `json:"p50"`
				Max   uint64 `json:"max"`
			} `json:"jitter_ns"`
		} `json:"servo"`
		Programs []string `json:"programs"`
	}
	_, text := request(t, "GET", base+"/state", "")
	if err := json.Unmarshal([]byte(text), &state); err != nil {
		t.Fatal(err)
	}
	if state.Servo.Ticks < 50 || state.Servo.Jitter.Max < state.Servo.Jitter.P50 || len(state.Programs) < 8 {
		t.Errorf("%s", text)
	}
	if status, _ := request(t, "POST", base+"/jitter/reset", ""); status != 200 {
		t.Error(status)
	}
	_, text = request(t, "GET", base+"/truth", "")
	var truth fault.Truth
	if err := json.Unmarshal([]byte(text), &truth); err != nil || truth.Leak != fault.None || !strings.Contains(text, `"since":null`) {
		t.Errorf("%s", text)
	}
}

func TestProfiles(t *testing.T) {
	const token = "a-token-of-the-tests"
	profiles := func(enabled string) (string, error) {
		t.Helper()
		t.Setenv("PPROF_ENABLED", enabled)
		t.Setenv("PPROF_TOKEN", token)
		s, base := serve(t)
		_, err := mountProfiles(s.server.Mux(), options{})
		return base, err
	}
	base, err := profiles("1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, token string
		status      int
	}{
		{"/debug/pprof/heap", "", 403},
		{"/debug/pprof/heap", strings.ToUpper(token), 403},
		{"/debug/pprof/heap", token, 200},
		{"/debug/pprof/goroutine?debug=1", token, 200},
		{"/debug/pprof/goroutine?debug=1", token, 429},
		{"/debug/pprof/profile?seconds=1", token, 403},
		{"/debug/pprof/", token, 200},
		{"/debug/memtrace/tags", token, 200},
		{"/debug/memtrace/tags", "", 403},
		{"/state", "", 200},
	} {
		if status, _ := request(t, "GET", base+c.path, "", "X-Pprof-Token", c.token); status != c.status {
			t.Errorf("%s with %q: %d, want %d", c.path, c.token, status, c.status)
		}
	}
	if base, err = profiles(""); err != nil {
		t.Fatal(err)
	}
	if status, _ := request(t, "GET", base+"/debug/pprof/heap", "", "X-Pprof-Token", token); status != 404 {
		t.Errorf("switched off: %d", status)
	}
	t.Setenv("PPROF_ENABLED", "1")
	t.Setenv("PPROF_TOKEN", "")
	t.Setenv("PPROF_TOKEN_FILE", "")
	if err := run(context.Background(), []string{"-load", "0"}); err == nil || !strings.Contains(err.Error(), "without a token") {
		t.Errorf("enabled without a token: %v", err)
	}
}

func TestRun(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = in
	defer func() { os.Stdout = stdout }()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-listen", "127.0.0.1:0", "-leak", "goroutine", "-leak-after", "10ms"})
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !regexp.MustCompile(`^listening http://127\.0\.0\.1:[0-9]+ pid [0-9]+\n$`).MatchString(line) {
		t.Fatalf("%q %v", line, err)
	}
	time.Sleep(500 * time.Millisecond)
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("does not shut down")
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-leak", "all"}, {"-leak-rate", "fast"}, {"-leak-rate", "-1"}, {"-load-shape", "round"},
		{"-speed", "0"}, {"-load", "-1"}, {"extra"}, {"-load-period", "0s"},
		{"-tasks", "-1"}, {"-tasks", "NaN"}, {"-tasks", "1001"}, {"-axes", "0"}, {"-axes", "1001"},
		{"-leak", "tag"}, {"-tagged-jobs", "-1"}, {"-tagged-jobs", "1000"},
	} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	o, err := parseFlags([]string{"-leak", "slice", "-leak-rate", "1.5MB"})
	if err != nil || o.leakRate != 3<<19 || o.leak != fault.Slice {
		t.Errorf("%+v %v", o, err)
	}
}
