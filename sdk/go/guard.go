package memtrace

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	pprofRoot    = "/debug/pprof/"
	memtraceRoot = "/debug/memtrace/"
	// bodyPatience is how long a body that nobody wants may keep a connection.
	bodyPatience = 500 * time.Millisecond
)

// extraHandler serves [memtraceRoot] behind the guard.
var extraHandler = Handler()

// GuardOption changes what [Guard] does.
type GuardOption func(*guardConfig)

type guardConfig struct {
	listen            string
	token, tokenFile  string
	certFile, keyFile string
	clientCA          string
	cpu, trace        bool
	audit             io.Writer
	goroutineEvery    time.Duration
	hosts             []string
}

// GuardListen serves the endpoint, and nothing else, on a TCP address of its own, such
// as "127.0.0.1:6060"; port 0 picks a free one. The address must be a loopback, private
// (RFC 1918, unique local) or link-local one, or a name that stands for such addresses
// only.
func GuardListen(addr string) GuardOption { return func(c *guardConfig) { c.listen = addr } }

// GuardToken sets the token: 16 to 512 visible ASCII characters. Without it and
// [GuardTokenFile] it is the value of PPROF_TOKEN, else the content of the file that
// PPROF_TOKEN_FILE names.
func GuardToken(token string) GuardOption { return func(c *guardConfig) { c.token = token } }

// GuardTokenFile reads the token from a file. The file is read again at most once a
// second, so that a token can be changed while the service runs; while it is missing or
// holds no valid token, nobody is let in.
func GuardTokenFile(path string) GuardOption { return func(c *guardConfig) { c.tokenFile = path } }

// GuardTLS makes the listener of [GuardListen] speak TLS (1.2 or newer) with a
// certificate and key in PEM files, which are read once.
func GuardTLS(certFile, keyFile string) GuardOption {
	return func(c *guardConfig) { c.certFile, c.keyFile = certFile, keyFile }
}

// GuardClientCA asks each client of the TLS listener for a certificate signed by an
// authority in a PEM file (mTLS). A token is then not needed; where one is set, both are.
func GuardClientCA(file string) GuardOption { return func(c *guardConfig) { c.clientCA = file } }

// GuardAllowCPU permits CPU profiles, of at most one minute. They interrupt the program
// 100 times a second, which a real-time loop feels; without this option they get 403.
func GuardAllowCPU() GuardOption { return func(c *guardConfig) { c.cpu = true } }

// GuardAllowTrace permits execution traces, of at most ten seconds. They slow the
// scheduler; without this option they get 403.
func GuardAllowTrace() GuardOption { return func(c *guardConfig) { c.trace = true } }

// GuardAuditLog writes one line for each access to w, in one Write, never two at a
// time; without it to standard error, with nil nowhere. For a [log.Logger] pass its
// Writer. Lines of refused requests are limited to ten a second; what was left out is
// counted in a line of its own.
func GuardAuditLog(w io.Writer) GuardOption { return func(c *guardConfig) { c.audit = w } }

// GuardGoroutineInterval sets the least time between two goroutine profiles, which stop
// the program while all its stacks are walked. The default is one minute.
func GuardGoroutineInterval(d time.Duration) GuardOption {
	return func(c *guardConfig) { c.goroutineEvery = d }
}

// GuardHost permits names in the Host header beside "localhost", private addresses and
// the host of [GuardListen]; for instance that of a Kubernetes service.
func GuardHost(names ...string) GuardOption {
	return func(c *guardConfig) { c.hosts = append(c.hosts, names...) }
}

// Endpoint is what [Guard] made.
type Endpoint struct {
	guard    *guard // nil while switched off
	server   *http.Server
	listener net.Listener
}

// Guard serves the profiles of this process safely: /debug/pprof/, which answers as
// net/http/pprof does, and /debug/memtrace/. It mounts both on mux, where that is not
// nil, and serves both on a listener of its own, where [GuardListen] is given; the
// latter is to be preferred, as it keeps operations apart from business and bounds the
// cost of connections too. [Endpoint.Handler] is the same for any other server.
//
// Unless the environment says PPROF_ENABLED=1 it does nothing and returns no error.
//
// A request must come from a private address, name a private host, carry the token
// exactly once in X-Pprof-Token, and neither use Basic authorisation nor have a token in
// its query, where logs would keep it. All else gets the same 403. Goroutine profiles
// are given once a minute, one profile at a time (429 for the rest), CPU profiles and
// traces only where allowed.
//
// It fails rather than open: on a token that is missing or shorter than 16 bytes (but
// see [GuardClientCA]), on an address that is not private, and on a mux that serves
// /debug/pprof/ already, as http.DefaultServeMux does when net/http/pprof is linked in.
func Guard(mux *http.ServeMux, options ...GuardOption) (*Endpoint, error) {
	if os.Getenv("PPROF_ENABLED") != "1" {
		return &Endpoint{}, nil
	}
	c := guardConfig{audit: os.Stderr, goroutineEvery: time.Minute}
	for _, o := range options {
		o(&c)
	}
	e, err := newEndpoint(mux, c)
	if err != nil {
		return nil, fmt.Errorf("memtrace: guard: %w", err)
	}
	return e, nil
}

func newEndpoint(mux *http.ServeMux, c guardConfig) (*Endpoint, error) {
	tlsConfig, err := c.tls()
	if err != nil {
		return nil, err
	}
	if c.goroutineEvery < 0 {
		return nil, errors.New("the interval of goroutine profiles is negative")
	}
	g := &guard{
		config:     c,
		audit:      newAuditLog(c.audit),
		accesses:   newBucket(accessRate, accessBurst, time.Now()),
		refusals:   newBucket(refusalRate, refusalBurst, time.Now()),
		goroutines: newBucket(1/c.goroutineEvery.Seconds(), 1, time.Now()),
		profiling:  make(chan struct{}, 1),
	}
	if g.token, err = c.tokenSource(); err != nil {
		return nil, err
	}
	e := &Endpoint{guard: g}
	if c.listen != "" {
		address, host, err := privateAddress(c.listen)
		if err != nil {
			return nil, err
		}
		g.config.hosts = append(g.config.hosts, host)
		// Every wait has a limit of its own: no keep-alive, which costs each connection
		// four system calls.
		quick := net.ListenConfig{KeepAlive: -1}
		if e.listener, err = quick.Listen(context.Background(), "tcp", address); err != nil {
			return nil, err
		}
	}
	if err := mount(mux, g); err != nil {
		if e.listener != nil {
			e.listener.Close()
		}
		return nil, err
	}
	if mux != http.DefaultServeMux && servesProfiles(http.DefaultServeMux) {
		g.audit.note("net/http/pprof is linked in: whoever serves http.DefaultServeMux gives out profiles unguarded")
	}
	if e.listener != nil {
		e.serve(tlsConfig)
	}
	return e, nil
}

// tls is nil where the listener speaks plain HTTP.
func (c *guardConfig) tls() (*tls.Config, error) {
	switch {
	case c.certFile == "" && c.clientCA != "":
		return nil, errors.New("a client CA without a certificate; give GuardTLS")
	case c.certFile == "":
		return nil, nil
	case c.listen == "":
		return nil, errors.New("TLS without a listener; give GuardListen")
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if c.clientCA != "" {
		pem, err := os.ReadFile(c.clientCA)
		if err != nil {
			return nil, err
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", c.clientCA)
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config, nil
}

// mount makes an error of what would panic, and of routes that would win over the guard.
func mount(mux *http.ServeMux, g *guard) (err error) {
	if mux == nil {
		return nil
	}
	if servesProfiles(mux) {
		return errors.New("the mux serves " + pprofRoot + " already, unguarded (is net/http/pprof linked in?)")
	}
	defer func() {
		if why := recover(); why != nil {
			err = fmt.Errorf("the mux does not take the routes: %v", why)
		}
	}()
	mux.Handle(pprofRoot, g)
	mux.Handle(memtraceRoot, g)
	return nil
}

func servesProfiles(mux *http.ServeMux) bool {
	for _, name := range []string{"", "cmdline", "profile", "symbol", "trace", "heap", "goroutine"} {
		r, err := http.NewRequest(http.MethodGet, "http://localhost"+pprofRoot+name, nil)
		if err != nil {
			return true
		}
		// A pattern may have a method and a host before its path.
		if _, pattern := mux.Handler(r); strings.Contains(pattern, path.Clean(pprofRoot)) {
			return true
		}
	}
	return false
}

// ownListener marks requests that came through the guard's listener, whose TLS has
// checked the certificate of the client.
type ownListener struct{}

func (e *Endpoint) serve(config *tls.Config) {
	e.server = &http.Server{
		Handler:           e.guard,
		ReadHeaderTimeout: 5 * time.Second,
		// Longer than the usual interval of a scraper, which keeps its connection.
		IdleTimeout:    3 * time.Minute,
		WriteTimeout:   writeTimeout,
		MaxHeaderBytes: 16 << 10,
		// "OPTIONS *" would else be answered without the guard.
		DisableGeneralOptionsHandler: true,
		// HTTP/2 would let one connection carry many requests at a time.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     log.New(errorNotes{e.guard.audit, e.guard.refusals}, "", 0),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, ownListener{}, e.guard)
		},
	}
	var l net.Listener = newBoundedListener(e.listener)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	go func() {
		if err := e.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			e.guard.audit.note(fmt.Sprintf("the listener ended: %v", err))
		}
	}()
}

// Enabled reports whether PPROF_ENABLED=1 was set.
func (e *Endpoint) Enabled() bool { return e != nil && e.guard != nil }

// Addr is the address listened on, nil where there is no listener.
func (e *Endpoint) Addr() net.Addr {
	if e == nil || e.listener == nil {
		return nil
	}
	return e.listener.Addr()
}

// Handler is the guarded endpoint for a server of the caller's; while switched off, it
// knows no page.
func (e *Endpoint) Handler() http.Handler {
	if e == nil || e.guard == nil {
		return http.NotFoundHandler()
	}
	return e.guard
}

// Close ends the listener and its connections at once. Where mounted elsewhere, the
// endpoint refuses everything from now on.
func (e *Endpoint) Close() error {
	if e == nil || e.guard == nil {
		return nil
	}
	e.guard.closed.Store(true)
	defer e.guard.audit.flush()
	if e.server == nil {
		return nil
	}
	return e.server.Close()
}

// Shutdown does what Close does, but lets profiles that are being written end first.
//
// It returns the error of ctx when that is over before them.
func (e *Endpoint) Shutdown(ctx context.Context) error {
	if e == nil || e.guard == nil {
		return nil
	}
	e.guard.closed.Store(true)
	defer e.guard.audit.flush()
	if e.server == nil {
		return nil
	}
	return e.server.Shutdown(ctx)
}

// guard is the handler: who may come in (guard_auth.go), how often (guard_limit.go),
// what there is (guard_pprof.go), and what is written down (guard_audit.go).
type guard struct {
	config     guardConfig
	token      *tokenSource // nil where a client certificate is enough
	audit      *auditLog
	accesses   *tokenBucket
	refusals   *tokenBucket
	goroutines *tokenBucket
	profiling  chan struct{} // holds one while a profile is taken
	closed     atomic.Bool
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	out := &response{ResponseWriter: w}
	reason := g.refusal(r)
	if r.ContentLength != 0 && (reason != "" || !isSymbolPost(r)) {
		// Else the server would wait for a body that nobody wants, for the next
		// request's sake.
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(bodyPatience))
	}
	if reason != "" {
		forbid(out)
	} else if wait, ok := g.accesses.take(began); !ok {
		reason = "too many requests"
		tooMany(out, wait)
	} else {
		reason = g.route(out, r)
	}
	flood := false
	if reason != "" {
		_, ok := g.refusals.take(began)
		flood = !ok
	}
	g.audit.access(entry{
		at: began, remote: r.RemoteAddr, method: r.Method, path: g.token.redact(r.URL.Path),
		status: out.status, reason: reason, took: time.Since(began),
	}, flood)
	if flood && !r.Close && w.Header().Get("Connection") == "" && r.Context().Value(ownListener{}) == g {
		pause(w, r)
	}
}

// pause answers at once but reads the connection's next request later, so that a flood
// waits in the buffers of its sender instead of waking this program. The listener's
// bounds bound what waits here.
func pause(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).Flush() != nil {
		return
	}
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}

// route serves a request that may come in. It returns why it did not, or nothing.
func (g *guard) route(w http.ResponseWriter, r *http.Request) string {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	name, isProfile := strings.CutPrefix(r.URL.Path, pprofRoot)
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !isSymbolPost(r) {
		h.Set("Allow", "GET, HEAD")
		if name == "symbol" {
			h.Set("Allow", "GET, HEAD, POST")
		}
		fail(w, http.StatusMethodNotAllowed, "method not allowed")
		return "method"
	}
	switch {
	case isProfile:
		return g.pprof(w, r, name)
	case strings.HasPrefix(r.URL.Path, memtraceRoot) && isClean(r.URL.Path):
		if r.URL.Path == memtraceRoot+"heap" {
			end, refused := g.begin(w, 0)
			if refused != "" {
				return refused
			}
			defer end()
		}
		extraHandler.ServeHTTP(w, r)
		return ""
	default:
		fail(w, http.StatusNotFound, "not found")
		return "no such page"
	}
}

func isSymbolPost(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Path == pprofRoot+"symbol"
}

func isClean(p string) bool { return path.Clean(p) == strings.TrimSuffix(p, "/") }

// forbid says the same whatever the reason, and does not invite to try.
func forbid(w http.ResponseWriter) { fail(w, http.StatusForbidden, "Forbidden") }

func tooMany(w http.ResponseWriter, wait time.Duration) {
	seconds := (wait + time.Second - 1) / time.Second
	w.Header().Set("Retry-After", fmt.Sprint(max(int64(seconds), 1)))
	fail(w, http.StatusTooManyRequests, "too many requests")
}

func fail(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Del("Content-Disposition")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // an error means that the client has gone
}

// response remembers the status for the audit log.
type response struct {
	http.ResponseWriter
	status int
}

func (r *response) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets [http.ResponseController] reach the connection.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }
