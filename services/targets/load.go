package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The load of a server on this machine: -workers connections that together ask -rate times a
// second, for at most -for. A request counts from the moment at which it was due: one that
// waits behind a slow one has waited too.
var (
	protocol = flag.String("protocol", "http", "http, nats or etcd")
	address  = flag.String("address", "", "host:port on this machine")
	rate     = flag.Int("rate", 1000, "requests a second")
	workers  = flag.Int("workers", 16, "connections")
	lasts    = flag.Duration("for", 10*time.Minute, "ends by itself after this")
)

// asked is what clients saw since the last question.
type asked struct {
	Requests int64 `json:"requests"`
	Errors   int64 `json:"errors"`
	// FirstError is of all that there were.
	FirstError string `json:"first_error,omitempty"`
	// Latencies are counts of requests by the top of their bucket, nanoseconds.
	Latencies map[uint64]int64 `json:"latencies"`
}

var (
	seenMu sync.Mutex
	seen   *asked
)

// takeAsked is what clients saw since it was called before; nil in other modes.
func takeAsked() *asked {
	seenMu.Lock()
	defer seenMu.Unlock()
	taken := seen
	if taken != nil {
		seen = &asked{FirstError: taken.FirstError, Latencies: map[uint64]int64{}}
	}
	return taken
}

func note(took time.Duration, err error) {
	seenMu.Lock()
	defer seenMu.Unlock()
	seen.Requests++
	if err != nil {
		seen.Errors++
		if seen.FirstError == "" {
			seen.FirstError = err.Error()
		}
		return
	}
	// A bucket begins at most 1/16 below its top.
	ns := uint64(took.Nanoseconds())
	shift := bits.Len64(ns) - 5
	if shift < 0 {
		shift = 0
	}
	seen.Latencies[(ns>>shift+1)<<shift]++
}

// client asks once, with the given number, and checks the answer.
type client func(number uint64) error

func load(int) {
	seen = &asked{Latencies: map[uint64]int64{}}
	connect, known := map[string]func(worker int) (client, error){"http": overHTTP, "nats": overNATS, "etcd": overEtcd}[*protocol]
	host, _, err := net.SplitHostPort(*address)
	if !known || err != nil || !net.ParseIP(host).IsLoopback() {
		must("-protocol and a loopback -address", fmt.Errorf("%q, %q", *protocol, *address))
	}
	ends := time.Now().Add(*lasts)
	step := time.Second * time.Duration(*workers) / time.Duration(*rate)
	for worker := 0; worker < *workers; worker++ {
		ask, err := connect(worker)
		must("connect", err)
		go func(worker int) {
			due := time.Now().Add(step * time.Duration(worker) / time.Duration(*workers))
			for number := uint64(0); due.Before(ends); number++ {
				time.Sleep(time.Until(due))
				err := ask(number)
				note(time.Since(due), err)
				if err != nil {
					// The connection may be gone for good: others go on.
					time.Sleep(100 * time.Millisecond)
				}
				due = due.Add(step)
			}
		}(worker)
	}
}

// post sends a request, or gets a page where there is no body, and gives what came.
func post(client *http.Client, url, body string) ([]byte, error) {
	var answer *http.Response
	var err error
	if body == "" {
		answer, err = client.Get(url)
	} else {
		answer, err = client.Post(url, "application/json", strings.NewReader(body))
	}
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.100s", answer.Status, text)
	}
	return text, err
}

func overHTTP(int) (client, error) {
	connection := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	expected, err := post(connection, "http://"+*address+"/page.txt", "")
	return func(uint64) error {
		text, err := post(connection, "http://"+*address+"/page.txt", "")
		if err == nil && !bytes.Equal(text, expected) {
			err = fmt.Errorf("%d bytes instead of %d", len(text), len(expected))
		}
		return err
	}, err
}

// overEtcd writes a key and reads it back, by the gateway of JSON.
func overEtcd(worker int) (client, error) {
	connection := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	coded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	ask := func(number uint64) error {
		key := coded(fmt.Sprintf("key-%d-%d", worker, number/2%64))
		value := coded(strconv.FormatUint(number/2, 10))
		if number%2 == 0 {
			_, err := post(connection, "http://"+*address+"/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, key, value))
			return err
		}
		text, err := post(connection, "http://"+*address+"/v3/kv/range", fmt.Sprintf(`{"key":%q}`, key))
		if err == nil && !bytes.Contains(text, []byte(value)) {
			err = fmt.Errorf("%.200s without %s", text, value)
		}
		return err
	}
	return ask, ask(0)
}

// overNATS publishes and waits for the message to come back.
func overNATS(worker int) (client, error) {
	connection, err := net.Dial("tcp", *address)
	if err != nil {
		return nil, err
	}
	subject := fmt.Sprintf("harm.%d", worker)
	lines := bufio.NewReader(connection)
	fmt.Fprintf(connection, "CONNECT {\"verbose\":false}\r\nSUB %s 1\r\n", subject)
	return func(number uint64) error {
		text := fmt.Sprintf("%016d", number)
		connection.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := fmt.Fprintf(connection, "PUB %s 16\r\n%s\r\n", subject, text); err != nil {
			return err
		}
		for {
			line, err := lines.ReadString('\n')
			switch {
			case err != nil:
				return err
			case strings.HasPrefix(line, "PING"):
				fmt.Fprint(connection, "PONG\r\n")
			case strings.HasPrefix(line, "-ERR"):
				return fmt.Errorf("%s", strings.TrimSpace(line))
			case strings.HasPrefix(line, "MSG "):
				if line, err = lines.ReadString('\n'); err != nil || strings.TrimSpace(line) != text {
					return fmt.Errorf("%q instead of %q, %v", line, text, err)
				}
				return nil
			}
		}
	}, nil
}
