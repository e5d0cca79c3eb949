package registry

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is one request as the registry saw it.
type Request struct {
	Time     time.Time // when it arrived
	Duration time.Duration
	Op       Op
	Method   string
	Path     string
	Ref      string // the tag or digest of the path
	Range    string // the Range header
	Status   int    // 0 when none was sent
	Bytes    int64  // of the body, handed to the connection
	Auth     bool   // an Authorization header came with it
	Done     bool   // the handler has returned
}

// Stats sums up requests.
type Stats struct {
	Requests int64
	Bytes    int64        // of bodies
	ByOp     map[Op]int64 // requests
	BytesOf  map[string]int64
	// Leaked counts requests to the object store that brought the registry's credentials.
	Leaked int64
}

// requestLog keeps every request since the last reset.
type requestLog struct {
	mu       sync.Mutex
	requests []*Request
}

// recorder notes what a handler answers.
type recorder struct {
	http.ResponseWriter
	log *requestLog
	req *Request
}

func (l *requestLog) begin(w http.ResponseWriter, r *http.Request, t target) *recorder {
	req := &Request{
		Time: time.Now(), Op: t.op, Method: r.Method, Path: r.URL.Path, Ref: t.ref,
		Range: r.Header.Get("Range"), Auth: r.Header.Get("Authorization") != "",
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, req)
	return &recorder{ResponseWriter: w, log: l, req: req}
}

func (l *requestLog) end(rec *recorder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rec.req.Duration = time.Since(rec.req.Time)
	rec.req.Done = true
}

func (r *recorder) WriteHeader(status int) {
	r.log.mu.Lock()
	if r.req.Status == 0 {
		r.req.Status = status
	}
	r.log.mu.Unlock()
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.log.mu.Lock()
	if r.req.Status == 0 {
		r.req.Status = http.StatusOK
	}
	r.req.Bytes += int64(n)
	r.log.mu.Unlock()
	return n, err
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Requests are the requests since the last ResetLog in order of arrival, those still being answered included.
// With ops, only these operations.
func (s *Server) Requests(ops ...Op) []Request {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	var out []Request
	for _, r := range s.log.requests {
		if len(ops) == 0 || slices.Contains(ops, r.Op) {
			out = append(out, *r)
		}
	}
	return out
}

// Stats sums up the requests since the last ResetLog.
func (s *Server) Stats() Stats {
	st := Stats{ByOp: map[Op]int64{}, BytesOf: map[string]int64{}}
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	for _, r := range s.log.requests {
		st.Requests++
		st.Bytes += r.Bytes
		st.ByOp[r.Op]++
		if r.Ref != "" {
			st.BytesOf[r.Ref] += r.Bytes
		}
		if r.Op == Object && r.Auth {
			st.Leaked++
		}
	}
	return st
}

// ResetLog forgets the requests so far.
func (s *Server) ResetLog() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.log.requests = nil
}
