package daemon

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// events writes a request's stream of JSON lines. It is safe for concurrent use.
type events struct {
	start time.Time

	mu sync.Mutex
	w  http.ResponseWriter
}

func newEvents(w http.ResponseWriter) *events {
	w.Header().Set("Content-Type", "application/jsonl")
	return &events{start: time.Now(), w: w}
}

// send writes e at once. A caller who has hung up is noticed by the request's context, not here.
func (s *events) send(e api.Event) {
	e.MS = float64(time.Since(s.start).Microseconds()) / 1000
	s.mu.Lock()
	defer s.mu.Unlock()
	json.NewEncoder(s.w).Encode(e)
	http.NewResponseController(s.w).Flush()
}

// fail ends the stream with err.
func (s *events) fail(err error) { s.send(api.Event{Name: api.EventError, Error: toError(err)}) }
