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
	// refusalRate and refusalBurst bound, a second, the refusals that are answered and
	// logged as usual. More are a flood: see refusalPause.
	refusalRate, refusalBurst = 10, 50
	// refusalPause is how long, in a flood, a connection waits after a refusal until its
	// next request is read.
	refusalPause = time.Second
	// connRate and connBurst bound the new connections of one address, a second. An open
	// connection, such as that of a scraper, goes on.
	connRate, connBurst = 100, 200
	// maxConns bounds the open connections, maxPeerConns those of one address, so that
	// one machine cannot shut out the others; maxPeers bounds the addresses known.
	maxConns, maxPeerConns, maxPeers = 128, 64, 256
)

// tokenBucket is a token bucket.
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
	b.fill(now)
	if b.level < 1 {
		return time.Duration((1 - b.level) / b.rate * float64(time.Second)), false
	}
	b.level--
	return 0, true
}

func (b *tokenBucket) isFull(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.level == b.burst
}

// fill is called with the lock held.
func (b *tokenBucket) fill(now time.Time) {
	if passed := now.Sub(b.last).Seconds(); passed > 0 {
		b.level = min(b.burst, b.level+passed*b.rate)
		b.last = now
	}
}

// boundedListener closes connections at once that are too many. Nothing has been read
// from them then, no goroutine runs for them, and no TLS handshake was made.
type boundedListener struct {
	net.Listener

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]*peer
}

type peer struct {
	open  int
	conns *tokenBucket
}

func newBoundedListener(l net.Listener) *boundedListener {
	return &boundedListener{Listener: l, peers: make(map[netip.Addr]*peer)}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		if !l.enter(from, time.Now()) {
			c.Close()
			continue
		}
		return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
	}
}

func (l *boundedListener) enter(from netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[from]
	if p == nil {
		if len(l.peers) >= maxPeers {
			l.forget(now)
		}
		if len(l.peers) >= maxPeers {
			return false
		}
		p = &peer{conns: newBucket(connRate, connBurst, now)}
		l.peers[from] = p
	}
	if l.open >= maxConns || p.open >= maxPeerConns {
		return false
	}
	if _, ok := p.conns.take(now); !ok {
		return false
	}
	l.open++
	p.open++
	return true
}

// forget drops the addresses of which nothing needs to be remembered.
func (l *boundedListener) forget(now time.Time) {
	for from, p := range l.peers {
		if p.open == 0 && p.conns.isFull(now) {
			delete(l.peers, from)
		}
	}
}

func (l *boundedListener) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.peers[from].open-- // an address with open connections is not forgotten
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
