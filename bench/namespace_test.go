package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestNamespaceIsAdded asks what answers as gRPC does: with a message and trailers, or with an error, which is a head and no more.
func TestNamespaceIsAdded(t *testing.T) {
	dir := t.TempDir()
	behind, front := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l, err := net.Listen("unix", behind)
	if err != nil {
		t.Fatal(err)
	}
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: &h2c, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(namespaceHeader) != "default" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.URL.Path == "/error" {
			w.Header().Set("Grpc-Status", "6")
			return
		}
		_, _ = io.Copy(w, r.Body)
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	stop, err := addNamespace(front, behind)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	transport := &http.Transport{Protocols: &h2c, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", front)
	}}
	defer transport.CloseIdleConnections()
	for range 20 {
		resp, err := transport.RoundTrip(newRequest(t, "http://x/error", ""))
		if err != nil {
			t.Fatal(err)
		}
		// The length is known when the head is also the end.
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "6" || resp.ContentLength != 0 {
			t.Fatalf("an error: %s, %v, %d bytes", resp.Status, resp.Header, resp.ContentLength)
		}
		resp.Body.Close()
		if resp, err = transport.RoundTrip(newRequest(t, "http://x/", "hello")); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "hello" || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Fatalf("a message: %q, %v, %v", body, resp.Trailer, err)
		}
	}
}

func newRequest(t *testing.T, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}
