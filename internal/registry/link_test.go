package registry

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestLinkDelaysWithoutSerialising has many connections ask at once: each waits for its round trips (no less: a lower
// bound holds on any machine), and all together far less than one after the other would.
func TestLinkDelaysWithoutSerialising(t *testing.T) {
	const rtt, n = 50 * time.Millisecond, 60
	s := start(t, Options{Link: NewLink(0, rtt)})
	begin := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			c := client(t)
			start := time.Now()
			if _, _, err := get(t, c, s.URL()+"/v2/", ""); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d < 2*rtt {
				t.Errorf("connect and ask took %v, less than two round trips of %v", d, rtt)
			}
			start = time.Now()
			if _, _, err := get(t, c, s.URL()+"/v2/", ""); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d < rtt {
				t.Errorf("asking again took %v, less than a round trip of %v", d, rtt)
			}
		})
	}
	wg.Wait()
	if d := time.Since(begin); d > n*rtt {
		t.Errorf("%d clients took %v together: they waited for each other", n, d)
	}
	if c := s.o.Link.Stats().Conns; c != n {
		t.Errorf("%d connections counted", c)
	}
}

// TestLinkLimitsAllConnectionsTogether downloads over several connections: no faster than the link.
func TestLinkLimitsAllConnectionsTogether(t *testing.T) {
	const rate = 2 << 20
	link := NewLink(rate, 0)
	s := start(t, Options{Link: link})
	img, digest, blob := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	const n = 20
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			_, b, err := get(t, client(t), s.URL()+"/v2/a/blobs/"+digest, "")
			if err != nil || !bytes.Equal(b, blob) {
				t.Errorf("%d bytes: %v", len(b), err)
			}
		})
	}
	wg.Wait()
	least := time.Duration(n*len(blob))*time.Second/rate - 2*queue
	if d := time.Since(begin); d < least {
		t.Errorf("%d bytes took %v, at this rate no less than %v is possible", n*len(blob), d, least)
	}
	if st := link.Stats(); st.Down < int64(n*len(blob)) || st.Busy < least {
		t.Errorf("counted %+v", st)
	}
}

// TestLinkCarriesResets has a connection reset on the far side: the client sees a reset, not an end.
func TestLinkCarriesResets(t *testing.T) {
	s := start(t, Options{Link: NewLink(0, time.Millisecond)})
	s.Inject(Match{Op: Ping}, Refuse())
	if _, _, err := get(t, client(t), s.URL()+"/v2/", ""); err == nil {
		t.Error("no error")
	}
}

// TestLinkPassesCancelOn has a client leave in mid-body: the handler's context must end.
func TestLinkPassesCancelOn(t *testing.T) {
	s := start(t, Options{Link: NewLink(1<<20, time.Millisecond)})
	img, digest, _ := image(t)
	if _, err := s.AddImage("a", img); err != nil {
		t.Fatal(err)
	}
	s.Inject(Match{Op: Blob}, StallAt(100))
	c := client(t)
	resp, err := c.Get(s.URL() + "/v2/a/blobs/" + digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for done := false; !done; time.Sleep(time.Millisecond) {
		r := s.Requests(Blob)
		done = len(r) == 1 && r[0].Done
	}
}

func BenchmarkLink(b *testing.B) {
	s, err := Start(Options{Link: NewLink(125e6, 20*time.Millisecond)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	blob := make([]byte, 32<<20)
	h, err := s.AddBlob(blob)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		resp, err := http.Get(s.URL() + "/v2/a/blobs/" + h)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}
