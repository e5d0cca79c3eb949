package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// withStop is a context that also ends when stopped is closed.
func withStop(ctx context.Context, stopped <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-done }
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Status answers with a status and headers ("Retry-After", "2", ...) instead of what was asked for.
func Status(status int, header ...string) Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			writeError(w, status, "INJECTED", http.StatusText(status))
		})
	}
}

// Latency delays the answer.
func Latency(d time.Duration) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sleep(r.Context(), d)
			next.ServeHTTP(w, r)
		})
	}
}

// Hang never answers: the request ends with the client's patience or the server.
func Hang() Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			abort(w, false)
		})
	}
}

// Hold answers once release is closed.
func Hold(release <-chan struct{}) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
				next.ServeHTTP(w, r)
			case <-r.Context().Done():
				abort(w, false)
			}
		})
	}
}

// Refuse drops the connection without an answer.
func Refuse() Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { abort(w, true) })
	}
}

// IgnoreRange answers 200 with everything, as a registry without range support does.
func IgnoreRange() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			next.ServeHTTP(&tamper{ResponseWriter: w, header: func(_ int, h http.Header) { h.Del("Accept-Ranges") }}, r)
		})
	}
}

// Header sets a header of a good answer to value, or removes it where value is "".
func Header(key, value string) Fault {
	return tampering(func(w *tamper, _ *http.Request) {
		w.header = func(_ int, h http.Header) {
			if value == "" {
				h.Del(key)
				return
			}
			h.Set(key, value)
		}
	})
}

// ShiftRange claims in Content-Range that the body starts delta bytes further on than it does.
func ShiftRange(delta int64) Fault {
	return tampering(func(w *tamper, _ *http.Request) {
		w.header = func(_ int, h http.Header) {
			if first, last, size, ok := contentRange(h); ok {
				h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", first+delta, last+delta, size))
			}
		}
	})
}

// FlipByte delivers byte off of the blob or manifest with one bit wrong, in whichever range it comes.
func FlipByte(off int64) Fault {
	return tampering(func(w *tamper, _ *http.Request) {
		w.body = func(at int64, p []byte) ([]byte, bool) {
			if off < at || off >= at+int64(len(p)) {
				return p, true
			}
			q := append([]byte(nil), p...)
			q[off-at] ^= 1
			return q, true
		}
	})
}

// ResetAt resets the connection after n bytes of the body, of which the client may get fewer.
func ResetAt(n int64) Fault {
	return endAt(n, func(w http.ResponseWriter, _ *http.Request) { abort(w, true) })
}

// CutAt ends the connection in good order after n bytes of the body, with more promised.
func CutAt(n int64) Fault {
	return endAt(n, func(w http.ResponseWriter, _ *http.Request) { abort(w, false) })
}

// StallAt sends n bytes of the body and then nothing more.
func StallAt(n int64) Fault {
	return endAt(n, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		abort(w, false)
	})
}

// Short answers with only the first n bytes of the body, and says so in Content-Length but not in Content-Range.
func Short(n int64) Fault {
	return tampering(func(w *tamper, _ *http.Request) {
		w.header = func(_ int, h http.Header) {
			if size, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && size > n {
				h.Set("Content-Length", strconv.FormatInt(n, 10))
			}
		}
		w.body = func(at int64, p []byte) ([]byte, bool) {
			return p[:max(0, min(int64(len(p)), n-(at-w.first)))], true
		}
	})
}

// Throttle sends the body at so many bytes per second.
func Throttle(bytesPerSecond int64) Fault {
	return tampering(func(w *tamper, r *http.Request) {
		w.body = func(_ int64, p []byte) ([]byte, bool) {
			step := int(max(1, bytesPerSecond/50))
			for len(p) > 0 && r.Context().Err() == nil {
				n := min(step, len(p))
				w.ResponseWriter.Write(p[:n])
				http.NewResponseController(w.ResponseWriter).Flush()
				sleep(r.Context(), time.Duration(n)*time.Second/time.Duration(bytesPerSecond))
				p = p[n:]
			}
			return nil, r.Context().Err() == nil
		}
	})
}

func endAt(n int64, end func(http.ResponseWriter, *http.Request)) Fault {
	return tampering(func(w *tamper, r *http.Request) {
		w.body = func(at int64, p []byte) ([]byte, bool) {
			left := n - (at - w.first)
			if left >= int64(len(p)) {
				return p, true
			}
			w.ResponseWriter.Write(p[:max(0, left)])
			http.NewResponseController(w.ResponseWriter).Flush()
			end(w.ResponseWriter, r)
			return nil, false
		}
	})
}

// tampering lets next answer through a tamper that set has prepared.
func tampering(set func(*tamper, *http.Request)) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			t := &tamper{ResponseWriter: w}
			set(t, r)
			next.ServeHTTP(t, r)
		})
	}
}

// tamper changes good answers (2xx) on their way; others pass.
type tamper struct {
	http.ResponseWriter
	header func(status int, h http.Header)
	// body gets p, which starts at byte at of the whole blob; what it returns is sent. false ends the body.
	body func(at int64, p []byte) (out []byte, more bool)

	status    int
	first, at int64 // of the body's first and next byte in the blob
	ended     bool
}

// Unwrap is for http.ResponseController.
func (w *tamper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *tamper) good() bool { return w.status >= 200 && w.status < 300 }

func (w *tamper) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if first, _, _, ok := contentRange(w.Header()); ok && status == http.StatusPartialContent {
			w.first, w.at = first, first
		}
		if w.header != nil && w.good() {
			w.header(status, w.Header())
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *tamper) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.ended {
		return 0, http.ErrHandlerTimeout
	}
	if w.body == nil || !w.good() {
		return w.ResponseWriter.Write(p)
	}
	out, more := w.body(w.at, p)
	w.at += int64(len(p))
	if !more {
		w.ended = true
		return 0, http.ErrHandlerTimeout
	}
	if len(out) > 0 {
		if _, err := w.ResponseWriter.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// contentRange reads a Content-Range header.
func contentRange(h http.Header) (first, last int64, size string, ok bool) {
	r, found := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	span, size, slash := strings.Cut(r, "/")
	a, b, dash := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	return first, last, size, found && slash && dash && err1 == nil && err2 == nil
}

// abort drops the connection after what has been written: by RST when reset, else by FIN.
func abort(w http.ResponseWriter, reset bool) {
	c := http.NewResponseController(w)
	if !reset {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := c.Hijack()
	if err != nil { // HTTP/2 has no connection to give away: the stream is reset
		panic(http.ErrAbortHandler)
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	conn.Close()
}
