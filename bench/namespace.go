package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
)

// namespaceHeader says in a gRPC call which namespace of containerd it is about
// (https://github.com/containerd/containerd/blob/main/pkg/namespaces/grpc.go).
const namespaceHeader = "containerd-namespace"

// addNamespace serves at the socket listen what the snapshotter at the socket to serves, for the namespace that ctr uses. containerd before
// 1.7, such as Debian 12's, does not tell snapshotters whom they work for, and some want to know. The caller calls stop.
func addNamespace(listen, to string) (stop func(), err error) {
	l, err := net.Listen("unix", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for containerd: %w", err)
	}
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &h2c, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", to)
	}}
	srv := &http.Server{Protocols: &h2c, Handler: &httputil.ReverseProxy{
		// No FlushInterval: a flush parts the head of an answer that is an error from its end, and gRPC wants them in one frame.
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "snapshotter"
			if r.Out.Header.Get(namespaceHeader) == "" {
				r.Out.Header.Set(namespaceHeader, "default")
			}
		},
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // until it is closed; whoever calls sees it
	}()
	return func() {
		srv.Close()
		transport.CloseIdleConnections()
		<-done
	}, nil
}
