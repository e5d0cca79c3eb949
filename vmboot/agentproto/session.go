package agentproto

import (
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// SessionConfig returns the yamux settings of both sides.
func SessionConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	// A paused or emulated machine answers late; that it is gone is known by other means.
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 10 * time.Minute
	c.StreamOpenTimeout = 0
	// Standard input is closed by the host long before its process ends.
	c.StreamCloseTimeout = 0
	c.MaxStreamWindowSize = 1 << 20
	// Also what a hostile guest can make the host hold: streams nobody accepts, of 256 KiB each.
	c.AcceptBacklog = 32
	return c
}

// Coalesce returns conn with every yamux header (12 bytes) kept back until the data it announces is written: one
// system call, and in the guest one exit of the virtual machine, instead of two. One goroutine writes, as in yamux.
func Coalesce(conn io.ReadWriteCloser) io.ReadWriteCloser { return &coalescer{ReadWriteCloser: conn} }

type coalescer struct {
	io.ReadWriteCloser
	mu      sync.Mutex
	pending []byte
}

// headerSize, typeData and the length's place are those of yamux's spec.md, "Framing".
const (
	headerSize = 12
	typeData   = 0
)

func (c *coalescer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 && len(p) == headerSize && p[1] == typeData && (p[8]|p[9]|p[10]|p[11]) != 0 {
		c.pending = append(c.pending, p...)
		return len(p), nil
	}
	if len(c.pending) == 0 {
		return c.ReadWriteCloser.Write(p)
	}
	kept := len(c.pending)
	c.pending = append(c.pending, p...)
	n, err := c.ReadWriteCloser.Write(c.pending)
	c.pending = c.pending[:0]
	return max(n-kept, 0), err
}
