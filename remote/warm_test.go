package remote

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// Connections made ahead are used, each once, and those nobody used are closed.
func TestWarmConnections(t *testing.T) {
	checkLeaks(t)
	var layers [][]byte
	for i := range 3 {
		layers = append(layers, append([]byte{byte(i)}, randomBytes(100_000)...))
	}
	s, err := registry.Start(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	addImage(t, s, "a/b:1", layers...)
	var made, open atomic.Int64
	c := newTestClient(t, Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		made.Add(1)
		open.Add(1)
		return &countedConn{Conn: conn, open: &open}, nil
	}})
	yes := true
	a := Access{Insecure: &yes, Platform: "linux/amd64"}
	img, err := c.Resolve(context.Background(), s.Host()+"/a/b:1", a)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, l := range img.Layers {
		wg.Go(func() {
			if _, err := c.Blob(img, l, a).ReadAt(context.Background(), make([]byte, 1000), 5); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n > warmConns {
		t.Errorf("%d connections for four requests at once, want at most %d", n, warmConns)
	}
	c.Close()
	for deadline := time.Now().Add(10 * time.Second); open.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are open after Close", open.Load())
		}
	}
}

type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}
