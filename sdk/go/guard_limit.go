package memtrace

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// accessRate and accessBurst bound what a holder of the token can ask, a second.
	accessRate, accessBurst = 10, 40
	// handshakeRate bounds new TLS connections a second: a handshake costs a hundred
	// times what a refusal costs. An open connection goes on.
	handshakeRate, handshakeBurst = 50, 100
	// maxConns bounds the open connections, maxPeerConns those of one address, so that
	// one machine cannot shut out the others.
	maxConns, maxPeerConns = 128, 64
)

// tokenBucket is a token tokenBucket.
type tokenBucket struct {
	rate, burst float64 // a second; at most

	mu    sync.Mutex
	level float64
	last  time.Time
}

func newBucket(rate, burst float64, now time.Time) *tokenBucket {
	return &tokenBucket{rate: rate, burst: burst, level: burst, last: now}
}

// take takes one, or says how long to wait until there is one.
func (b *tokenBucket) take(now time.Time) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if passed := now.Sub(b.last).Seconds(); passed > 0 {
		b.level = min(b.burst, b.level+passed*b.rate)
		b.last = now
	}
	if b.level < 1 {
		return time.Duration((1 - b.level) / b.rate * float64(time.Second)), false
	}
	b.level--
	return 0, true
}

// boundedListener closes connections at once that are too many. Nothing has been read
// from them then, no goroutine runs for them, and no handshake was made.
type boundedListener struct {
	net.Listener
	handshakes *tokenBucket // nil without TLS

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]int
}

func newBoundedListener(l net.Listener) *boundedListener {
	return &boundedListener{Listener: l, peers: make(map[netip.Addr]int)}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var peer netip.Addr
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			peer = a.AddrPort().Addr().Unmap()
		}
		if !l.enter(peer) {
			c.Close()
			continue
		}
		return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
	}
}

func (l *boundedListener) enter(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= maxConns || l.peers[peer] >= maxPeerConns {
		return false
	}
	if l.handshakes != nil {
		if _, ok := l.handshakes.take(time.Now()); !ok {
			return false
		}
	}
	l.open++
	l.peers[peer]++
	return true
}

func (l *boundedListener) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.peers[peer]--; l.peers[peer] == 0 {
		delete(l.peers, peer)
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.leave()
	return err
}

// CloseWrite lets the server end an answer in order before the connection.
func (c *boundedConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}
