package memtrace

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	tokenHeader = "X-Pprof-Token"
	minToken    = 16
	maxToken    = 512
	// tokenAge is how long the content of a token file is believed.
	tokenAge = time.Second
)

// refusal says why a request may not come in, for the audit log only, or nothing. It
// neither reads the body nor allocates with the size of the request.
func (g *guard) refusal(r *http.Request) string {
	switch {
	case g.closed.Load():
		return "closed"
	case !isPrivatePeer(r.RemoteAddr):
		return "remote address"
	case !g.isKnownHost(r.Host):
		return "host"
	case isBasic(r.Header["Authorization"]):
		return "basic authorization"
	case g.config.clientCA != "" && r.Context().Value(ownListener{}) != g:
		return "client certificate"
	}
	if g.token != nil {
		values := r.Header[tokenHeader]
		if len(values) != 1 || len(values[0]) > maxToken || !g.token.matches(values[0], time.Now()) {
			return "token"
		}
	}
	if g.hasToken(r.URL.RawQuery) {
		return "token in query"
	}
	return ""
}

func isPrivate(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast()
}

func isPrivatePeer(remote string) bool {
	peer, err := netip.ParseAddrPort(remote)
	return err == nil && isPrivate(peer.Addr())
}

// isKnownHost keeps out web pages whose name was made to point at this machine (DNS
// rebinding): their requests carry that name.
func (g *guard) isKnownHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if ip, err := netip.ParseAddr(bare); err == nil {
		return isPrivate(ip)
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	for _, known := range g.config.hosts {
		if known != "" && strings.EqualFold(host, known) {
			return true
		}
	}
	return false
}

func isBasic(values []string) bool {
	for _, v := range values {
		if scheme, _, _ := strings.Cut(strings.TrimSpace(v), " "); strings.EqualFold(scheme, "Basic") {
			return true
		}
	}
	return false
}

// hasToken finds what looks like a token in a query, and the token itself.
func (g *guard) hasToken(query string) bool {
	if query == "" {
		return false
	}
	plain, err := url.QueryUnescape(query)
	if err != nil {
		return true // what cannot be read cannot be cleared
	}
	return strings.Contains(strings.ToLower(plain), "token=") || g.token.redact(plain) != plain
}

// privateAddress resolves an address to listen on to one that is private and gives the
// host as written. The answer is an IP address, so that what was checked is what is
// listened on.
func privateAddress(addr string) (address, host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", err
	}
	if host == "" {
		return "", "", fmt.Errorf("%q would listen on all addresses; name a private one, such as 127.0.0.1:%s", addr, port)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", "", err
	}
	for _, ip := range ips {
		switch {
		case ip.Unmap().IsUnspecified():
			return "", "", fmt.Errorf("%q would listen on all addresses; name a private one, such as 127.0.0.1:%s", addr, port)
		case !isPrivate(ip):
			return "", "", fmt.Errorf("%q is or stands for %v, which is not a private address; profiles are for loopback and the operations network only", addr, ip)
		}
	}
	if len(ips) == 0 {
		return "", "", fmt.Errorf("%q stands for no address", addr)
	}
	chosen := ips[0].Unmap()
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() && !chosen.Is4() {
			chosen = ip // "localhost" is often ::1 too, where IPv6 may be off
		}
	}
	return net.JoinHostPort(chosen.String(), port), host, nil
}

// tokenSource holds the token, and reads it again where it is in a file.
type tokenSource struct {
	file string

	mu    sync.Mutex
	read  time.Time // of the file
	plain string    // empty while there is no valid token
	hash  [sha256.Size]byte
}

// tokenSource is nil where a client certificate is enough.
func (c *guardConfig) tokenSource() (*tokenSource, error) {
	token, file := c.token, c.tokenFile
	if token == "" && file == "" {
		token, file = os.Getenv("PPROF_TOKEN"), os.Getenv("PPROF_TOKEN_FILE")
	}
	switch {
	case token != "":
		t := new(tokenSource)
		return t, t.set(token)
	case file != "":
		t := &tokenSource{file: file}
		return t, t.load(time.Now())
	case c.clientCA != "":
		return nil, nil
	default:
		return nil, errors.New("PPROF_ENABLED=1 without a token; set PPROF_TOKEN or PPROF_TOKEN_FILE")
	}
}

func (t *tokenSource) set(token string) error {
	t.plain = ""
	if len(token) < minToken || len(token) > maxToken {
		return fmt.Errorf("the token has %d bytes; it must have %d to %d", len(token), minToken, maxToken)
	}
	for i := 0; i < len(token); i++ {
		if token[i] <= ' ' || token[i] > '~' {
			return errors.New("the token has characters beside visible ASCII")
		}
	}
	t.plain, t.hash = token, sha256.Sum256([]byte(token))
	return nil
}

func (t *tokenSource) load(now time.Time) error {
	t.read, t.plain = now, ""
	f, err := os.Open(t.file)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 2*maxToken))
	if err != nil {
		return err
	}
	if err := t.set(strings.TrimSpace(string(text))); err != nil {
		return fmt.Errorf("%s: %w", t.file, err)
	}
	return nil
}

func (t *tokenSource) matches(token string, now time.Time) bool {
	t.mu.Lock()
	if t.file != "" && now.Sub(t.read) >= tokenAge {
		_ = t.load(now) // what is wrong with the file shows as a refusal
	}
	valid, hash := t.plain != "", t.hash
	t.mu.Unlock()
	return valid && sameToken(token, hash)
}

// sameToken takes the same time wherever, and in whatever length, a wrong token differs:
// what is compared are hashes.
func sameToken(token string, want [sha256.Size]byte) bool {
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// redact takes the token out of a text that is to be logged.
func (t *tokenSource) redact(text string) string {
	if t == nil {
		return text
	}
	t.mu.Lock()
	plain := t.plain
	t.mu.Unlock()
	if plain == "" {
		return text
	}
	return strings.ReplaceAll(text, plain, "…")
}
