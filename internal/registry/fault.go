package registry

import (
	"net/http"
	"slices"
	"sync"
)

// Match says which requests a fault hits. Empty fields match everything; the zero value is every request that got past
// authentication, token requests included.
type Match struct {
	Op     Op
	Method string
	Ref    string // the tag or digest that the path ends in, of registry and object store alike
	Ranged bool   // only requests with a Range header
	When   func(*http.Request) bool

	Skip  int // leave the first so many matches alone
	Times int // hit so many, then no more; 0 is no end
}

// Fault changes how a request is answered: it may answer itself, or let next answer and tamper with that.
type Fault func(next http.Handler) http.Handler

// Injection is a fault in force.
type Injection struct {
	faults *faults
	match  Match
	fault  []Fault

	seen, hits int // guarded by faults.mu
}

// faults are the injections of a server, in the order they were made.
type faults struct {
	mu  sync.Mutex
	all []*Injection
}

// Inject puts faults in force for the requests that m matches; the first fault is the outermost. Several injections
// that match one request all apply.
func (s *Server) Inject(m Match, f ...Fault) *Injection {
	in := &Injection{faults: &s.faults, match: m, fault: f}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.all = append(s.faults.all, in)
	return in
}

// Remove ends the injection. Requests that it has hit already run on.
func (in *Injection) Remove() {
	in.faults.mu.Lock()
	defer in.faults.mu.Unlock()
	in.faults.all = slices.DeleteFunc(in.faults.all, func(x *Injection) bool { return x == in })
}

// Hits is how many requests the injection has hit.
func (in *Injection) Hits() int {
	in.faults.mu.Lock()
	defer in.faults.mu.Unlock()
	return in.hits
}

// handler is next with every fault that r is due. Handlers that wait end when stopped is closed.
func (fs *faults) handler(r *http.Request, t target, stopped <-chan struct{}, next http.Handler) http.Handler {
	fs.mu.Lock()
	var due []Fault
	for _, in := range fs.all {
		if !in.match.matches(r, t) {
			continue
		}
		in.seen++
		if in.seen <= in.match.Skip || in.match.Times > 0 && in.hits >= in.match.Times {
			continue
		}
		in.hits++
		due = append(due, in.fault...)
	}
	fs.mu.Unlock()
	if len(due) == 0 {
		return next
	}
	for _, f := range slices.Backward(due) {
		next = f(next)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := withStop(r.Context(), stopped)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (m Match) matches(r *http.Request, t target) bool {
	return (m.Op == "" || m.Op == t.op) &&
		(m.Method == "" || m.Method == r.Method) &&
		(m.Ref == "" || m.Ref == t.ref) &&
		(!m.Ranged || r.Header.Get("Range") != "") &&
		(m.When == nil || m.When(r))
}
