// Load calls one address in one of three ways and prints one JSON object.
//
//	-for D           closed loop: -c connections, each asks again as soon as it was answered, for D
//	-c N             without -for: N requests at once, 2 ms apart (streams that run side by side)
//	-rps R -for D    open loop: R requests a second whatever the answers do
//
// Times are in milliseconds: `first` until the first byte of the body, `gap` between reads of it, `whole`
// until its end.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

type headers []string

func (h *headers) String() string          { return strings.Join(*h, "\r\n") }
func (h *headers) Set(header string) error { *h = append(*h, header); return nil }

type result struct {
	mutex             sync.Mutex
	requests, events  int
	failed            int
	failure           string
	first, gap, whole []float64
}

type client struct {
	address string
	request []byte
	stream  bool
	idle    chan *connection
	*result
}

type connection struct {
	net.Conn
	reader *bufio.Reader
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (c *client) connect() (*connection, error) {
	select {
	case kept := <-c.idle:
		return kept, nil
	default:
	}
	conn, err := net.DialTimeout("tcp", c.address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReaderSize(conn, 16384)}, nil
}

// ask sends one request, reads its answer and counts both.
func (c *client) ask() {
	if err := c.answered(); err != nil {
		c.mutex.Lock()
		c.failed++
		c.failure = err.Error()
		c.mutex.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *client) answered() error {
	conn, err := c.connect()
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	began := time.Now()
	if _, err = conn.Write(c.request); err != nil {
		conn.Close()
		return err
	}
	answer, err := http.ReadResponse(conn.reader, nil)
	if err != nil {
		conn.Close()
		return err
	}
	gaps := make([]float64, 0, 128)
	events, last, done := 0, began, false
	buffer := make([]byte, 16384)
	for {
		n, err := answer.Body.Read(buffer)
		if n > 0 {
			now := time.Now()
			gaps = append(gaps, ms(now.Sub(last)))
			last = now
			events += bytes.Count(buffer[:n], []byte("\n\n"))
			done = done || bytes.Contains(buffer[:n], []byte("[DONE]"))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			conn.Close()
			return err
		}
	}
	if answer.StatusCode != 200 || c.stream != done {
		conn.Close()
		return fmt.Errorf("status %d, [DONE] %t: %.300s", answer.StatusCode, done, buffer)
	}
	if answer.Close {
		conn.Close()
	} else {
		c.idle <- conn
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.requests++
	c.events += events
	c.whole = append(c.whole, ms(time.Since(began)))
	c.first = append(c.first, gaps[0])
	c.gap = append(c.gap, gaps[1:]...)
	return nil
}

func (c *client) closedLoop(connections int, length time.Duration) {
	var group sync.WaitGroup
	until := time.Now().Add(length)
	for i := 0; i < connections; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for time.Now().Before(until) {
				c.ask()
			}
		}()
	}
	group.Wait()
}

// paced starts n requests, `apart` from each other, without waiting for answers in between.
func (c *client) paced(n int, apart time.Duration) {
	var group sync.WaitGroup
	began := time.Now()
	for i := 0; i < n; i++ {
		time.Sleep(time.Until(began.Add(time.Duration(i) * apart)))
		group.Add(1)
		go func() { defer group.Done(); c.ask() }()
	}
	group.Wait()
}

func spread(values []float64) map[string]float64 {
	if len(values) == 0 {
		return nil
	}
	sort.Float64s(values)
	at := func(p float64) float64 { return values[int(float64(len(values)-1)*p)] }
	return map[string]float64{"p50": at(.5), "p99": at(.99)}
}

func main() {
	address := flag.String("addr", "", "host:port")
	body := flag.String("body", "", "the request's body")
	connections := flag.Int("c", 32, "connections, or requests side by side")
	length := flag.Duration("for", 0, "how long")
	rate := flag.Float64("rps", 0, "open loop at this rate")
	var more headers
	flag.Var(&more, "H", "a header")
	flag.Parse()
	more = append(more, "host: "+*address, "content-type: application/json", fmt.Sprintf("content-length: %d", len(*body)))
	c := &client{
		address: *address,
		request: []byte("POST /v1/chat/completions HTTP/1.1\r\n" + more.String() + "\r\n\r\n" + *body),
		stream:  strings.Contains(*body, `"stream":true`),
		idle:    make(chan *connection, 100000),
		result:  &result{},
	}
	began := time.Now()
	switch {
	case *rate > 0:
		c.paced(int(*rate*length.Seconds()), time.Duration(float64(time.Second) / *rate))
	case *length > 0:
		c.closedLoop(*connections, *length)
	default:
		c.paced(*connections, 2*time.Millisecond)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": c.requests, "events": c.events, "failed": c.failed, "failure": c.failure,
		"seconds": time.Since(began).Seconds(),
		"first":   spread(c.first), "gap": spread(c.gap), "whole": spread(c.whole),
	})
}
