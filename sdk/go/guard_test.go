package memtrace

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const goodToken = "0123456789abcdef-good-token"

// waitFor reads the log until it holds a text: a line is written after the answer.
func (b *locked) waitFor(t *testing.T, text string) string {
	t.Helper()
	for i := 0; i < 500; i++ {
		if all := b.String(); strings.Contains(all, text) {
			return all
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %q in the audit log:\n%s", text, b.String())
	return ""
}

// enable sets the environment as a test wants it, whatever the user's is.
func enable(t *testing.T) {
	t.Helper()
	t.Setenv("PPROF_ENABLED", "1")
	t.Setenv("PPROF_TOKEN", "")
	t.Setenv("PPROF_TOKEN_FILE", "")
}

func open(t *testing.T, options ...GuardOption) *Endpoint {
	t.Helper()
	enable(t)
	all := []GuardOption{GuardListen("127.0.0.1:0"), GuardToken(goodToken), GuardAuditLog(nil)}
	e, err := Guard(nil, append(all, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// ask sends a request with the right token.
func ask(t *testing.T, e *Endpoint, method, path, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+e.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Pprof-Token", goodToken)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// raw sends bytes and reads the answer to its end.
func raw(t *testing.T, address, request string) (status int, head, body string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go io.WriteString(c, request) // the server may answer and close before it has all
	var all bytes.Buffer
	// A reset after the answer is the answer's end too.
	if _, err := io.Copy(&all, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection stays open after %q", all.String())
	}
	head, body, _ = strings.Cut(all.String(), "\r\n\r\n")
	if words := strings.Fields(head); len(words) > 1 {
		status, _ = strconv.Atoi(words[1])
	}
	return status, head, body
}

func TestHostileRequests(t *testing.T) {
	var audit locked
	e := open(t, GuardAuditLog(&audit))
	const (
		heap  = "GET /debug/pprof/heap HTTP/1.1\r\n"
		host  = "Host: 127.0.0.1\r\n"
		good  = "X-Pprof-Token: " + goodToken + "\r\n"
		end   = "Connection: close\r\n\r\n"
		basic = "Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n"
	)
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"no token", heap + host + end, 403},
		{"wrong token", heap + host + "X-Pprof-Token: 0123456789abcdef-evil-token\r\n" + end, 403},
		{"empty token", heap + host + "X-Pprof-Token:\r\n" + end, 403},
		{"prefix", heap + host + "X-Pprof-Token: " + goodToken[:len(goodToken)-1] + "\r\n" + end, 403},
		{"longer", heap + host + "X-Pprof-Token: " + goodToken + "x\r\n" + end, 403},
		{"other case", heap + host + "X-Pprof-Token: " + strings.ToUpper(goodToken) + "\r\n" + end, 403},
		{"quoted", heap + host + "X-Pprof-Token: \"" + goodToken + "\"\r\n" + end, 403},
		{"list of tokens", heap + host + "X-Pprof-Token: " + goodToken + ", " + goodToken + "\r\n" + end, 403},
		{"two headers", heap + host + good + good + end, 403},
		{"right and wrong header", heap + host + good + "X-Pprof-Token: x\r\n" + end, 403},
		{"underscores", heap + host + "X_Pprof_Token: " + goodToken + "\r\n" + end, 403},
		{"long token", heap + host + "X-Pprof-Token: " + strings.Repeat("a", 8<<10) + "\r\n" + end, 403},
		{"header of 1 MiB", heap + host + "X-Pprof-Token: " + strings.Repeat("a", 1<<20) + "\r\n" + end, 431},
		{"many headers", heap + host + good + strings.Repeat("X-A: b\r\n", 1<<12) + end, 431},
		{"Basic", heap + host + basic + end, 403},
		{"Basic beside the token", heap + host + good + basic + end, 403},
		{"basic in lower case", heap + host + good + strings.ToLower(basic) + end, 403},
		{"Bearer for the token", heap + host + "Authorization: Bearer " + goodToken + "\r\n" + end, 403},
		{"cookie for the token", heap + host + "Cookie: X-Pprof-Token=" + goodToken + "\r\n" + end, 403},
		{"token in the query", "GET /debug/pprof/heap?token=" + goodToken + " HTTP/1.1\r\n" + host + end, 403},
		{"token in query and header", "GET /debug/pprof/heap?X-Pprof-Token=" + goodToken + " HTTP/1.1\r\n" + host + good + end, 403},
		{"another token in the query", "GET /debug/pprof/heap?Token=abc HTTP/1.1\r\n" + host + good + end, 403},
		{"the value in the query", "GET /debug/pprof/heap?k=%30" + goodToken[1:] + " HTTP/1.1\r\n" + host + good + end, 403},
		{"a query that cannot be read", "GET /debug/pprof/heap?%zz HTTP/1.1\r\n" + host + good + end, 403},
		{"token in the path", "GET /debug/pprof/" + goodToken + " HTTP/1.1\r\n" + host + end, 403},
		{"user and password in the address", "GET http://u:" + goodToken + "@127.0.0.1/debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"double slash", "GET //debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"double slash inside", "GET /debug//pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"dots", "GET /state/../debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"encoded dots", "GET /%2e%2e/debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"encoded path", "GET /debug/pprof/%68eap HTTP/1.1\r\n" + host + end, 403},
		{"encoded slash", "GET /debug%2fpprof%2fheap HTTP/1.1\r\n" + host + end, 403},
		{"backslash", "GET /debug\\pprof\\heap HTTP/1.1\r\n" + host + end, 403},
		{"NUL", "GET /debug/pprof/heap%00 HTTP/1.1\r\n" + host + end, 403},
		{"other case of the path", "GET /DEBUG/PPROF/heap HTTP/1.1\r\n" + host + end, 403},
		{"another page", "GET / HTTP/1.1\r\n" + host + end, 403},
		{"memtrace page", "GET /debug/memtrace/ HTTP/1.1\r\n" + host + end, 403},
		{"POST", "POST /debug/pprof/heap HTTP/1.1\r\n" + host + "Content-Length: 3\r\n" + end + "a=b", 403},
		{"POST of 1 GB that is announced", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Content-Length: 1073741824\r\n" + end, 403},
		{"HEAD", "HEAD /debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"PUT", "PUT /debug/pprof/heap HTTP/1.1\r\n" + host + "Content-Length: 0\r\n" + end, 403},
		{"CONNECT", "CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n" + end, 403},
		{"TRACE", "TRACE /debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + host + end, 403},
		{"a method of its own", "STEAL /debug/pprof/heap HTTP/1.1\r\n" + host + end, 403},
		{"method override", heap + host + "X-HTTP-Method-Override: GET\r\n" + end, 403},
		{"rebound name", heap + "Host: evil.example\r\n" + good + end, 403},
		{"rebound name in the address", "GET http://evil.example/debug/pprof/heap HTTP/1.1\r\n" + host + good + end, 403},
		{"public host", heap + "Host: 93.184.216.34\r\n" + good + end, 403},
		{"host that starts well", heap + "Host: 127.0.0.1.evil.example\r\n" + good + end, 403},
		{"forwarded host", heap + "Host: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n" + good + end, 403},
		{"two hosts", heap + host + "Host: evil.example\r\n" + good + end, 400},
		{"no host", heap + good + end, 400},
		{"HTTP/1.0 without a host", "GET /debug/pprof/heap HTTP/1.0\r\n" + good + "\r\n", 403},
		{"HTTP/0.9", "GET /debug/pprof/heap\r\n" + host + good + end, 400},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403},
		{"space before the colon", heap + host + "X-Pprof-Token : " + goodToken + "\r\n" + end, 400},
		{"folded header", heap + host + "X-A: b\r\n X-Pprof-Token: " + goodToken + "\r\n" + end, 403},
		{"NUL in a header", heap + host + "X-Pprof-Token: a\x00b\r\n" + end, 400},
		{"both lengths", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n" + end + "0\r\n\r\n", 403},
		{"two lengths", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Content-Length: 4\r\nContent-Length: 5\r\n" + end + "0x12", 400},
		{"chunked twice", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n" + end, 501},
		{"negative length", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Content-Length: -1\r\n" + end, 400},
		{"a request inside a body", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + "Content-Length: 200\r\n\r\n" + heap + host + good + end, 403},
		{"expectation", heap + host + "Expect: 200-everything\r\n" + end, 417},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},

		// With the right token, but not everything is allowed.
		{"PUT with the token", "PUT /debug/pprof/heap HTTP/1.1\r\n" + host + good + "Content-Length: 0\r\n" + end, 405},
		{"POST with the token", "POST /debug/pprof/heap HTTP/1.1\r\n" + host + good + "Content-Length: 3\r\n" + end + "a=b", 405},
		{"TRACE with the token", "TRACE /debug/pprof/heap HTTP/1.1\r\n" + host + good + end, 405},
		{"CPU profile", "GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\n" + host + good + end, 403},
		{"trace", "GET /debug/pprof/trace?seconds=1 HTTP/1.1\r\n" + host + good + end, 403},
		{"dots with the token", "GET /debug/pprof/../pprof/heap HTTP/1.1\r\n" + host + good + end, 404},
		{"double slash with the token", "GET //debug/pprof/heap HTTP/1.1\r\n" + host + good + end, 404},
		{"unknown profile", "GET /debug/pprof/%3Cscript%3E HTTP/1.1\r\n" + host + good + end, 404},
		{"difference", "GET /debug/pprof/heap?seconds=1 HTTP/1.1\r\n" + host + good + end, 400},
		{"body too large", "POST /debug/pprof/symbol HTTP/1.1\r\n" + host + good + "Content-Length: 300000\r\n" + end + strings.Repeat("0x1+", 75000), 413},
	} {
		status, head, body := raw(t, e.Addr().String(), c.request)
		if status != c.status {
			t.Errorf("%s: %d, want %d", c.name, status, c.status)
		}
		if status == 403 && body != "Forbidden\n" && !strings.HasPrefix(c.request, "HEAD") {
			t.Errorf("%s: says %q", c.name, body)
		}
		if strings.Count(head, "HTTP/1.") > 1 || len(body) > 200 || strings.ContainsAny(body, "\x1f\x8b<") || strings.Contains(head+body, goodToken) ||
			strings.Contains(strings.ToLower(head), "www-authenticate") {
			t.Errorf("%s: gives away %q %q", c.name, head, body)
		}
	}
	e.Close()
	log := audit.String()
	if strings.Contains(log, goodToken) || strings.Contains(log, goodToken[1:]) {
		t.Errorf("the token is in the audit log:\n%s", log)
	}
	if !strings.Contains(log, ` method="CONNECT" `) && !strings.Contains(log, "lines left out") {
		t.Errorf("the audit log lacks refusals:\n%s", log)
	}
}

func TestPublicPeerIsRefused(t *testing.T) {
	e := open(t)
	for remote, status := range map[string]int{
		"127.0.0.1:1": 200, "10.1.2.3:1": 200, "192.168.7.7:1": 200, "172.31.0.1:1": 200, "[fd00::1]:1": 200,
		"[fe80::1%eth0]:1": 200, "[::ffff:10.0.0.1]:1": 200,
		"8.8.8.8:1": 403, "172.32.0.1:1": 403, "100.64.0.1:1": 403, "[2001:db8::1]:1": 403, "[::ffff:8.8.8.8]:1": 403,
		"0.0.0.0:1": 403, "": 403, "@": 403, "localhost:1": 403,
	} {
		r := httptest.NewRequest("GET", "http://localhost/debug/pprof/cmdline", nil)
		r.RemoteAddr = remote
		r.Header.Set("X-Pprof-Token", goodToken)
		r.Header.Set("X-Forwarded-For", "127.0.0.1")
		w := httptest.NewRecorder()
		e.Handler().ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("from %q: %d, want %d", remote, w.Code, status)
		}
	}
}

func TestHosts(t *testing.T) {
	e := open(t, GuardListen("localhost:0"), GuardHost("cnc.plant"))
	for host, status := range map[string]int{
		"localhost": 200, "LOCALHOST:6060": 200, "[::1]:6060": 200, "[::1]": 200, "10.0.0.1": 200, "cnc.plant:6060": 200,
		"": 403, "localhost.evil": 403, "8.8.8.8": 403, "[2001:db8::1]:1": 403, "0.0.0.0": 403, "2130706433": 403,
	} {
		r := httptest.NewRequest("GET", "http://x/debug/pprof/cmdline", nil)
		r.RemoteAddr, r.Host = "127.0.0.1:1", host
		r.Header.Set("X-Pprof-Token", goodToken)
		w := httptest.NewRecorder()
		e.Handler().ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("to %q: %d, want %d", host, w.Code, status)
		}
	}
}

func TestOffUnlessEnabled(t *testing.T) {
	for _, value := range []string{"", "0", "true", " 1"} {
		enable(t)
		t.Setenv("PPROF_ENABLED", value)
		mux := http.NewServeMux()
		e, err := Guard(mux, GuardListen("0.0.0.0:6060"))
		if err != nil || e.Enabled() || e.Addr() != nil {
			t.Fatalf("%q: %+v %v", value, e, err)
		}
		for _, h := range []http.Handler{mux, e.Handler()} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/debug/pprof/heap", nil))
			if w.Code != 404 {
				t.Errorf("%q: %d", value, w.Code)
			}
		}
		if e.Close() != nil || e.Shutdown(context.Background()) != nil {
			t.Error("closing what is off fails")
		}
	}
}

func TestNeverOpen(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	enable(t)
	token := GuardToken(goodToken)
	used := http.NewServeMux()
	used.HandleFunc("/debug/pprof/cmdline", http.NotFound)
	for _, c := range []struct {
		mux     *http.ServeMux
		options []GuardOption
		want    string
	}{
		{nil, nil, "without a token"},
		{nil, []GuardOption{GuardToken("short")}, "has 5 bytes"},
		{nil, []GuardOption{GuardToken(strings.Repeat("a", 513))}, "has 513 bytes"},
		{nil, []GuardOption{GuardToken("0123456789 abcdef")}, "visible ASCII"},
		{nil, []GuardOption{GuardTokenFile(filepath.Join(dir, "none"))}, "no such file"},
		{nil, []GuardOption{GuardTokenFile(file("empty", "\n"))}, "has 0 bytes"},
		{nil, []GuardOption{token, GuardListen(":0")}, "all addresses"},
		{nil, []GuardOption{token, GuardListen("0.0.0.0:0")}, "all addresses"},
		{nil, []GuardOption{token, GuardListen("[::]:0")}, "all addresses"},
		{nil, []GuardOption{token, GuardListen("[::ffff:0.0.0.0]:0")}, "all addresses"},
		{nil, []GuardOption{token, GuardListen("8.8.8.8:0")}, "not a private address"},
		{nil, []GuardOption{token, GuardListen("[2001:db8::1]:0")}, "not a private address"},
		{nil, []GuardOption{token, GuardListen("127.0.0.1")}, "missing port"},
		{nil, []GuardOption{token, GuardTLS("a", "b")}, "GuardListen"},
		{nil, []GuardOption{token, GuardClientCA("ca.pem")}, "GuardTLS"},
		{nil, []GuardOption{token, GuardListen("127.0.0.1:0"), GuardTLS(filepath.Join(dir, "none"), "b")}, "no such file"},
		{nil, []GuardOption{token, GuardGoroutineInterval(-1)}, "negative"},
		{used, []GuardOption{token}, "already"},
	} {
		e, err := Guard(c.mux, c.options...)
		if err == nil || e != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.want, err)
		}
	}
}

func TestMounted(t *testing.T) {
	enable(t)
	t.Setenv("PPROF_TOKEN", goodToken)
	if servesProfiles(http.DefaultServeMux) {
		t.Fatal("net/http/pprof is linked in")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "business") })
	e, err := Guard(mux, GuardAuditLog(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Guard(mux, GuardAuditLog(nil)); err == nil {
		t.Error("mounted twice")
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	get := func(path, token string) (int, string) {
		t.Helper()
		status, _, body := raw(t, server.Listener.Addr().String(),
			"GET "+path+" HTTP/1.1\r\nHost: localhost\r\nX-Pprof-Token: "+token+"\r\nConnection: close\r\n\r\n")
		return status, body
	}
	for _, c := range []struct {
		path, token string
		status      int
	}{
		{"/debug/pprof/heap", goodToken, 200},
		{"/debug/pprof/heap", "", 403},
		{"/debug/pprof/%68eap", "", 403},
		{"/debug/memtrace/x", "", 403},
		{"/debug/memtrace/x", goodToken, 404},
		{"/anything", "", 200},
	} {
		if status, body := get(c.path, c.token); status != c.status || status == 403 && body != "Forbidden\n" {
			t.Errorf("%s with %q: %d %q, want %d", c.path, c.token, status, body, c.status)
		}
	}
	// The mux itself sends these elsewhere; it must not serve them.
	for _, path := range []string{"//debug/pprof/heap", "/debug/pprof/../pprof/heap", "/debug/pprof"} {
		if status, body := get(path, ""); status/100 != 3 || strings.Contains(body, "\x1f") {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	e.Close()
	if status, _ := get("/debug/pprof/heap", goodToken); status != 403 {
		t.Errorf("after Close: %d", status)
	}
}

// TestProfiles compares with the shape of net/http/pprof's answers.
func TestProfiles(t *testing.T) {
	e := open(t, GuardGoroutineInterval(0), GuardAllowCPU(), GuardAllowTrace())
	const binary, text = "application/octet-stream", "text/plain; charset=utf-8"
	pc, _, _, _ := runtime.Caller(0)
	address := fmt.Sprintf("%#x", pc)
	for _, c := range []struct{ method, path, body, kind, starts, holds string }{
		{"GET", "heap", "", binary, "\x1f\x8b", ""},
		{"GET", "heap?gc=1", "", binary, "\x1f\x8b", ""},
		{"GET", "heap?debug=1", "", text, "heap profile: ", "# NumGC = "},
		{"GET", "allocs", "", binary, "\x1f\x8b", ""},
		{"GET", "goroutine", "", binary, "\x1f\x8b", ""},
		{"GET", "goroutine?debug=1", "", text, "goroutine profile: total ", ""},
		{"GET", "goroutine?debug=2", "", text, "goroutine ", "[running]"},
		{"GET", "block", "", binary, "\x1f\x8b", ""},
		{"GET", "mutex?debug=1", "", text, "--- mutex:", ""},
		{"GET", "threadcreate", "", binary, "\x1f\x8b", ""},
		{"GET", "cmdline", "", text, os.Args[0], ""},
		{"GET", "symbol", "", text, "num_symbols: 1\n", ""},
		{"GET", "symbol?" + address + "+0x1+nonsense+" + address, "", text, "num_symbols: 1\n" + address + " memtrace.TestProfiles\n" + address, ""},
		{"POST", "symbol", address, text, "num_symbols: 1\n", address + " memtrace.TestProfiles\n"},
		{"GET", "profile?seconds=0.2", "", binary, "\x1f\x8b", ""},
		{"GET", "trace?seconds=0.2", "", binary, "go 1.", ""},
		{"GET", "", "", "text/html; charset=utf-8", "<html>", "<title>/debug/pprof/</title>"},
		{"GET", "", "", "text/html; charset=utf-8", "<html>", `<a href="goroutine?debug=1">goroutine</a>`},
		{"HEAD", "heap", "", binary, "", ""},
		{"HEAD", "profile", "", binary, "", ""},
	} {
		resp, body := ask(t, e, c.method, "/debug/pprof/"+c.path, c.body)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != c.kind ||
			resp.Header.Get("X-Content-Type-Options") != "nosniff" ||
			!strings.HasPrefix(body, c.starts) || !strings.Contains(body, c.holds) {
			t.Errorf("%s %s: %d %v %.200q", c.method, c.path, resp.StatusCode, resp.Header, body)
		}
	}
	for path, status := range map[string]int{
		"profile?seconds=61": 400, "profile?seconds=-1": 400, "profile?seconds=NaN": 400, "profile?seconds=x": 400,
		"trace?seconds=11": 400, "trace?seconds=Inf": 400, "nonsense": 404,
	} {
		if resp, body := ask(t, e, "GET", "/debug/pprof/"+path, ""); resp.StatusCode != status {
			t.Errorf("%s: %d %q, want %d", path, resp.StatusCode, body, status)
		}
	}
}

func TestPprofToolReadsTheProfile(t *testing.T) {
	e := open(t)
	kept := make([][]byte, 0, 64)
	for i := 0; i < 64; i++ {
		kept = append(kept, make([]byte, 1<<20))
	}
	_, body := ask(t, e, "GET", "/debug/pprof/heap?gc=1", "")
	runtime.KeepAlive(kept)
	file := filepath.Join(t.TempDir(), "heap.pb.gz")
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := exec.Command("go", "tool", "pprof", "-top", "-sample_index=inuse_space", file).CombinedOutput()
	if err != nil || !strings.Contains(string(top), "memtrace.TestPprofToolReadsTheProfile") {
		t.Errorf("%v\n%s", err, top)
	}
}

func TestGoroutineProfilesAreRare(t *testing.T) {
	e := open(t)
	for i, want := range []int{200, 429, 429} {
		resp, body := ask(t, e, "GET", "/debug/pprof/goroutine?debug=1", "")
		wait, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		if resp.StatusCode != want || want == 429 && (wait < 30 || wait > 60 || strings.Contains(body, "goroutine")) {
			t.Errorf("%d: %d, after %d s, %.100q", i, resp.StatusCode, wait, body)
		}
	}
	if resp, _ := ask(t, e, "GET", "/debug/pprof/heap", ""); resp.StatusCode != 200 {
		t.Errorf("heap: %d", resp.StatusCode)
	}
	// The clock of the limit, without waiting for it.
	start := time.Now()
	b := newBucket(1/time.Minute.Seconds(), 1, start)
	for _, c := range []struct {
		after time.Duration
		ok    bool
	}{{0, true}, {59 * time.Second, false}, {60 * time.Second, true}, {119 * time.Second, false}, {time.Hour, true}, {time.Hour, false}} {
		if _, ok := b.take(start.Add(c.after)); ok != c.ok {
			t.Errorf("after %v: %v", c.after, ok)
		}
	}
}

func TestOneProfileAtATime(t *testing.T) {
	e := open(t, GuardAllowCPU())
	done := make(chan int)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://"+e.Addr().String()+"/debug/pprof/profile?seconds=60", nil)
		r.Header.Set("X-Pprof-Token", goodToken)
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		done <- 0
	}()
	for len(e.guard.profiling) == 0 {
		time.Sleep(time.Millisecond)
	}
	resp, _ := ask(t, e, "GET", "/debug/pprof/heap", "")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("beside a CPU profile: %d", resp.StatusCode)
	}
	if resp, _ = ask(t, e, "GET", "/debug/memtrace/heap", ""); resp.StatusCode != 429 {
		t.Errorf("a labelled heap profile beside another: %d", resp.StatusCode)
	}
	// The minute's goroutine profile is not used up by a refusal.
	if resp, _ = ask(t, e, "GET", "/debug/pprof/goroutine", ""); resp.StatusCode != 429 {
		t.Errorf("beside a CPU profile: %d", resp.StatusCode)
	}
	stop() // the client goes: its profile ends
	<-done
	for len(e.guard.profiling) > 0 {
		time.Sleep(time.Millisecond)
	}
	if resp, _ = ask(t, e, "GET", "/debug/pprof/goroutine", ""); resp.StatusCode != 200 {
		t.Errorf("after it: %d", resp.StatusCode)
	}
}

func TestTooManyAllowedRequests(t *testing.T) {
	e := open(t)
	seen := make(map[int]int)
	for i := 0; i < 3*accessBurst; i++ {
		resp, _ := ask(t, e, "GET", "/debug/pprof/cmdline", "")
		seen[resp.StatusCode]++
	}
	if seen[200] < accessBurst || seen[429] == 0 || seen[200]+seen[429] != 3*accessBurst {
		t.Errorf("%v", seen)
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(goodToken + "\n")
	c := guardConfig{tokenFile: file}
	source, err := c.tokenSource()
	if err != nil {
		t.Fatal(err)
	}
	const fresh = "another-token-of-some-length"
	now := source.read
	if !source.matches(goodToken, now) {
		t.Error("the token of the file is refused")
	}
	write(fresh)
	if source.matches(fresh, now) {
		t.Error("read with each request")
	}
	if now = now.Add(tokenAge); !source.matches(fresh, now) || source.matches(goodToken, now) {
		t.Error("the new token does not replace the old one")
	}
	for _, text := range []string{"", "short"} {
		write(text)
		if now = now.Add(tokenAge); source.matches(fresh, now) || source.matches(text, now) {
			t.Errorf("with %q in the file somebody gets in", text)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if now = now.Add(tokenAge); source.matches(fresh, now) || source.matches("", now) {
		t.Error("without a file somebody gets in")
	}
	write(goodToken)
	if now = now.Add(tokenAge); !source.matches(goodToken, now) {
		t.Error("the file that came back is not read")
	}
}

func TestTokenFromTheEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("a-token-in-a-file-0001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ env, envFile, option, want string }{
		{"a-token-in-the-environment", "", "", "a-token-in-the-environment"},
		{"", file, "", "a-token-in-a-file-0001"},
		{"a-token-in-the-environment", file, "", "a-token-in-the-environment"},
		{"a-token-in-the-environment", file, goodToken, goodToken},
	} {
		t.Setenv("PPROF_TOKEN", c.env)
		t.Setenv("PPROF_TOKEN_FILE", c.envFile)
		source, err := (&guardConfig{token: c.option}).tokenSource()
		if err != nil || !source.matches(c.want, time.Now()) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestComparison pins that tokens are compared as hashes: a difference in the first
// byte, in the last and in length are all differences of the same 32 bytes. That
// subtle.ConstantTimeCompare is what compares them is read from the source.
func TestComparison(t *testing.T) {
	source := new(tokenSource)
	if err := source.set(goodToken); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{
		goodToken: true, "": false, goodToken[1:]: false, goodToken + " ": false, "1" + goodToken[1:]: false,
		string(source.hash[:]): false,
	} {
		if sameToken(token, source.hash) != want {
			t.Errorf("%q: %v", token, !want)
		}
	}
	text, err := os.ReadFile("guard_auth.go")
	if err != nil {
		t.Fatal(err)
	}
	body := regexp.MustCompile(`(?s)func sameToken\(.*?\n}\n`).FindString(string(text))
	if !strings.Contains(body, "sha256.Sum256(") || !strings.Contains(body, "subtle.ConstantTimeCompare(") || strings.Contains(body, "if ") {
		t.Errorf("sameToken takes another way:\n%s", body)
	}
}

func TestAuditLog(t *testing.T) {
	var audit locked
	e := open(t, GuardAuditLog(&audit))
	ask(t, e, "GET", "/debug/pprof/heap?debug=1", "")
	log := audit.waitFor(t, "path=\"/debug/pprof/heap\"")
	if !regexp.MustCompile(`^memtrace guard: time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z remote="127\.0\.0\.1:\d+" method="GET" path="/debug/pprof/heap" verdict=served status=200 ms=\d+\.\d{3}\n$`).MatchString(log) {
		t.Errorf("%q", log)
	}
	// What an attacker sends cannot start a line, end a quote or carry control codes.
	raw(t, e.Addr().String(), "GET /x%0amemtrace%20guard:%22%20verdict=served%1b%5b2J%c2%85%e2%80%ae HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	log = audit.waitFor(t, "verdict=refused")
	line := strings.Split(log, "\n")[1]
	if strings.Count(log, "\n") != 2 || !strings.Contains(line, `path="/x\nmemtrace guard:\" verdict=served\x1b[2J\u0085\u202e" verdict=refused reason="token" status=403`) {
		t.Errorf("%q", log)
	}
	ask(t, e, "GET", "/"+goodToken+strings.Repeat("x", 1000), "")
	log = audit.waitFor(t, "no such page")
	if strings.Contains(log, goodToken) || strings.Contains(log, strings.Repeat("x", auditWord)) {
		t.Errorf("%q", log)
	}
}

// stuck is a log that nobody reads.
type stuck struct{ free chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.free; return len(p), nil }

func TestAuditLogThatHangs(t *testing.T) {
	w := stuck{make(chan struct{})}
	a := newAuditLog(w)
	first := make(chan struct{})
	go func() { a.note("first"); close(first) }()
	for {
		a.mu.Lock()
		writing := a.writing
		a.mu.Unlock()
		if writing {
			break
		}
		time.Sleep(time.Millisecond)
	}
	const lines = 5000
	for i := 0; i < lines; i++ {
		a.access(entry{at: time.Now(), path: strings.Repeat("p", 100)}, false) // returns at once
	}
	a.mu.Lock()
	queued, left := bytes.Count(a.queue, []byte("\n")), int(a.leftOut)
	size := len(a.queue)
	a.mu.Unlock()
	if size > auditQueue || queued == 0 || queued+left != lines {
		t.Errorf("%d bytes, %d lines queued, %d left out", size, queued, left)
	}
	close(w.free)
	<-first
}

func TestFlood(t *testing.T) {
	var audit locked
	e := open(t, GuardAuditLog(&audit))
	// A scraper keeps its connection.
	ask(t, e, "GET", "/debug/pprof/heap", "")
	var wg sync.WaitGroup
	results := make(chan int, 2000) // 0 for a connection that was closed
	for i := 0; i < 4; i++ {
		keep := i%2 == 0
		wg.Add(1)
		go func() {
			defer wg.Done()
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keep}}
			defer client.CloseIdleConnections()
			for j := 0; j < 500 && !(keep && j == 3); j++ {
				r, _ := http.NewRequest("GET", "http://"+e.Addr().String()+"/debug/pprof/heap", nil)
				r.Header.Set("X-Pprof-Token", "not-the-token-at-all")
				resp, err := client.Do(r)
				if err != nil {
					results <- 0
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				results <- resp.StatusCode
			}
		}()
	}
	for i := 0; i < 5; i++ {
		if resp, body := ask(t, e, "GET", "/debug/pprof/heap", ""); resp.StatusCode != 200 || !strings.HasPrefix(body, "\x1f\x8b") {
			t.Errorf("in the flood: %d", resp.StatusCode)
		}
	}
	wg.Wait()
	close(results)
	seen := make(map[int]int)
	for status := range results {
		seen[status]++
	}
	if seen[403] < connBurst/2 || seen[0]+seen[403] != 1006 {
		t.Errorf("%v", seen)
	}
	// Shutdown waits for the handlers.
	if err := e.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	log := audit.String()
	refused := strings.Count(log, "verdict=refused")
	left := 0
	for _, m := range regexp.MustCompile(`note="(\d+) lines left out"`).FindAllStringSubmatch(log, -1) {
		n, _ := strconv.Atoi(m[1])
		left += n
	}
	if strings.Count(log, "verdict=served") != 6 || refused < refusalBurst || left == 0 || refused+left != seen[403] {
		t.Errorf("%d lines of refusals, %d left out, of %d", refused, left, seen[403])
	}
}

// TestFloodOnOneConnection sends far more than is read in a second.
func TestFloodOnOneConnection(t *testing.T) {
	e := open(t)
	c, err := net.Dial("tcp", e.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = 4 * refusalBurst
	if _, err := io.WriteString(c, strings.Repeat("GET /debug/pprof/heap HTTP/1.1\r\nHost: localhost\r\n\r\n", sent)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	answers, _ := io.ReadAll(c)
	if n := strings.Count(string(answers), "HTTP/1.1 403 "); n < refusalBurst || n >= sent/2 {
		t.Errorf("%d of %d are answered", n, sent)
	}
}

func TestSlowLoris(t *testing.T) {
	e := open(t)
	var held []net.Conn
	for i := 0; i < maxPeerConns; i++ {
		c, err := net.Dial("tcp", e.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /debug/pprof/heap HTTP/1.1\r\nHost: localhost\r\nX-A"); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	// Accepting is in order, so the places are taken by now: one more is shut at once.
	if status, _, _ := raw(t, e.Addr().String(), "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 0 {
		t.Errorf("one more from the same address: %d", status)
	}
	if runtime.GOOS == "linux" { // where all of 127.0.0.0/8 is this machine
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
		r, _ := http.NewRequest("GET", "http://"+e.Addr().String()+"/debug/pprof/heap", nil)
		r.Header.Set("X-Pprof-Token", goodToken)
		resp, err := client.Do(r)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("another address: %v %v", resp, err)
		} else {
			resp.Body.Close()
		}
	}
	if testing.Short() {
		return
	}
	// Nobody keeps a place by silence.
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && resp.StatusCode != 408 && resp.StatusCode != 400 {
			t.Errorf("an unfinished request: %d", resp.StatusCode)
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatal("an unfinished request is waited for")
		}
	}
	for i := 0; ; i++ {
		if status, _, _ := raw(t, e.Addr().String(), "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status == 403 {
			break
		}
		if i == 100 {
			t.Fatal("the places do not become free")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestBoundedListener(t *testing.T) {
	now := time.Now()
	l := newBoundedListener(nil)
	from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := 0; i < maxConns; i++ {
		if !l.enter(from(i%4), now) {
			t.Fatalf("connection %d is shut out", i)
		}
	}
	if l.enter(from(9), now) {
		t.Error("one more than all")
	}
	l.leave(from(0))
	if !l.enter(from(9), now) {
		t.Error("a place that became free is not given")
	}

	l = newBoundedListener(nil)
	for i := 0; i < maxPeerConns; i++ {
		if !l.enter(from(1), now) {
			t.Fatalf("connection %d of one address is shut out", i)
		}
	}
	if l.enter(from(1), now) || !l.enter(from(2), now) {
		t.Error("one address takes the places of the others, or more than its own")
	}

	// The rate counts where connections end at once, too.
	l = newBoundedListener(nil)
	passed := 0
	for i := 0; i < 2*connBurst; i++ {
		if l.enter(from(1), now) {
			passed++
			l.leave(from(1))
		}
	}
	if passed != connBurst || !l.enter(from(2), now) || !l.enter(from(1), now.Add(time.Second)) {
		t.Errorf("%d of %d pass at once", passed, 2*connBurst)
	}

	l = newBoundedListener(nil)
	for i := 0; i < maxPeers; i++ {
		if !l.enter(from(i), now) {
			t.Fatalf("address %d is shut out", i)
		}
		l.leave(from(i))
	}
	if l.enter(from(maxPeers), now) {
		t.Error("an address that has taken is forgotten")
	}
	if !l.enter(from(maxPeers), now.Add(time.Minute)) || len(l.peers) != 1 {
		t.Errorf("%d addresses are remembered", len(l.peers))
	}
}

// BenchmarkRefusal is what a request without the right token costs, beside HTTP.
func BenchmarkRefusal(b *testing.B) {
	g, err := newEndpoint(nil, guardConfig{token: goodToken, goroutineEvery: time.Minute, audit: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "http://localhost/debug/pprof/heap", nil)
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("X-Pprof-Token", "not-the-token-at-all")
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		g.Handler().ServeHTTP(nowhere{}, r)
	}
	g.Close()
}

type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}

func TestExtraHandler(t *testing.T) {
	defer func(was http.Handler) { extraHandler = was }(extraHandler)
	extraHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "extra "+r.URL.Path) })
	e := open(t)
	for path, want := range map[string]string{
		"/debug/memtrace/tags": "extra /debug/memtrace/tags", "/debug/memtrace/": "extra /debug/memtrace/",
		"/debug/memtrace/../x": "not found\n", "/debug/memtrace//x": "not found\n",
	} {
		_, _, body := raw(t, e.Addr().String(), "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nX-Pprof-Token: "+goodToken+"\r\nConnection: close\r\n\r\n")
		if body != want {
			t.Errorf("%s: %q", path, body)
		}
	}
}
