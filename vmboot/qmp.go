package vmboot

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"sync"
)

// qmp is a connection to QEMU's machine protocol (docs/interop/qmp-spec.txt). QEMU runs untrusted devices'
// emulation, so what it says is bounded too.
type qmp struct {
	conn net.Conn

	mu      sync.Mutex // serialises commands
	answers chan qmpAnswer
	closed  sync.WaitGroup
}

type qmpAnswer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

const maxQMPLine = 1 << 20

func newQMP(conn net.Conn) *qmp {
	q := &qmp{conn: conn, answers: make(chan qmpAnswer, 1)}
	q.closed.Go(q.read)
	return q
}

func (q *qmp) read() {
	defer close(q.answers)
	s := bufio.NewScanner(q.conn)
	s.Buffer(nil, maxQMPLine)
	for s.Scan() {
		var a qmpAnswer
		if json.Unmarshal(s.Bytes(), &a) != nil || (a.Return == nil && a.Error == nil) {
			continue // the greeting, an event
		}
		q.answers <- a
	}
}

// run sends a command and returns what QEMU answers.
func (q *qmp) run(command string) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := fmt.Fprintf(q.conn, "{\"execute\":%q}\n", command); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", command, err)
	}
	a, ok := <-q.answers
	if !ok {
		return nil, fmt.Errorf("qmp %s: qemu has closed the connection", command)
	}
	if a.Error != nil {
		return nil, fmt.Errorf("qmp %s: %s", command, a.Error.Desc)
	}
	return a.Return, nil
}

// quit asks QEMU to end; it does so without a word to the guest.
func (q *qmp) quit() {
	if _, err := q.run("qmp_capabilities"); err == nil {
		q.run("quit")
	}
}

func (q *qmp) close() {
	q.conn.Close()
	for range q.answers {
	}
	q.closed.Wait()
}
