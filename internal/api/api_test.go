package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindHome(t *testing.T) {
	t.Setenv("HOME", "/users/u")
	t.Setenv("MSB_HOME", "")
	for _, c := range []struct{ flag, env, want string }{
		{"", "", "/users/u/.microsandbox"},
		{"", "/env", "/env"},
		{"/flag", "/env", "/flag"},
	} {
		t.Setenv("MSB_HOME", c.env)
		if got, err := FindHome(c.flag); err != nil || string(got) != c.want {
			t.Errorf("FindHome(%q) with $MSB_HOME=%q = %q, %v, want %q", c.flag, c.env, got, err, c.want)
		}
	}
}

// A socket's address has room for 108 bytes; homes may be longer.
func TestRunDirectoryFitsSockets(t *testing.T) {
	long := Home(filepath.Join(t.TempDir(), strings.Repeat("x", 120)))
	run, err := long.Run()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	ln, err := net.Listen("unix", filepath.Join(run, "sb-0123456789abcdef-agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if again, err := long.Run(); err != nil || again != run {
		t.Errorf("second Run gave %q, %v", again, err)
	}
	if err := os.Chmod(run, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := long.Run(); err == nil {
		t.Error("a run directory that others may write to was taken")
	}
}

// serve answers on a socket in a temporary directory and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	c := Dial(socket)
	t.Cleanup(c.Close)
	return c
}

func TestErrorsKeepTheirCode(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"code":"not_cached","message":"image not cached: x"}`)
	})
	err := c.Call(context.Background(), "GET", "/", nil, nil)
	if !errors.Is(err, &Error{Code: CodeNotCached}) || errors.Is(err, &Error{Code: CodeInUse}) || err.Error() != "image not cached: x" {
		t.Errorf("got %v", err)
	}
}

func TestStreamEndsWithItsError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"event":"resolved","ms":1}`+"\n"+`{"event":"error","ms":2,"error":{"code":"corrupt","message":"bad"}}`+"\n")
	})
	var names []string
	err := c.Stream(context.Background(), "POST", "/", struct{}{}, func(e Event) error {
		names = append(names, e.Name)
		return nil
	})
	if !errors.Is(err, &Error{Code: CodeCorrupt}) || len(names) != 1 || names[0] != EventResolved {
		t.Errorf("got %v after %q", err, names)
	}
}

func TestStreamCutOffIsAnError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, `{"event":"resolved","ms":1}`+"\n")
		panic(http.ErrAbortHandler)
	})
	if err := c.Stream(context.Background(), "POST", "/", nil, func(Event) error { return nil }); err == nil {
		t.Error("a stream that was cut off ended without an error")
	}
}
