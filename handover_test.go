package msb

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// offer sends what a launcher would and returns what the keeper makes of it, with a pipe's end that closes when nobody has the
// descriptors any more.
func offer(t *testing.T, order string, descriptors int) (*received, *os.File, error) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	launcher, err := net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer launcher.Close()
	keeper, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close() })
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close() })
	fds := make([]int, descriptors)
	for i := range fds {
		fds[i] = int(write.Fd())
	}
	if _, _, err := launcher.WriteMsgUnix([]byte{'\n'}, syscall.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if _, err := io.WriteString(launcher, order); err != nil {
		t.Fatal(err)
	}
	launcher.CloseWrite()
	r, err := receiveOrder(keeper)
	return r, read, err
}

func TestOrdersAreUnderstoodOrRefused(t *testing.T) {
	whole, err := json.Marshal(order{Spec: Spec{Image: "x"}, Streams: [3]bool{false, true, false}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		order       string
		descriptors int
		want        bool
	}{
		"whole":                {string(whole), 2, true},
		"more than it says":    {string(whole), 4, true},
		"fewer than it says":   {string(whole), 1, false},
		"nothing":              {"", 2, false},
		"of a newer launcher":  {`{"Spec": {"image": "x", "no_new_thing": true}}`, 2, false},
		"cut short":            {string(whole[:len(whole)/2]), 2, false},
		"no order":             {`"x"`, 2, false},
		"without a descriptor": {string(whole), 0, false},
	} {
		r, pipe, err := offer(t, c.order, c.descriptors)
		if (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if r.lock == nil || r.streams[1] == nil || r.streams[0] != nil || r.order.Spec.Image != "x" {
				t.Errorf("%s: %+v", name, r)
			}
			r.close()
		}
		// A descriptor that is left open would keep this from ending.
		if _, err := io.ReadAll(pipe); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
