package registry

import (
	"net/http"
	"strings"
)

// Op is what a request is for.
type Op string

// The operations of the distribution API, of the token service and of the object store.
const (
	Ping      Op = "ping"      // GET /v2/
	Token     Op = "token"     // GET or POST /token
	Manifest  Op = "manifest"  // /v2/<name>/manifests/<tag or digest>
	Blob      Op = "blob"      // /v2/<name>/blobs/<digest>
	Upload    Op = "upload"    // /v2/<name>/blobs/uploads/...
	Referrers Op = "referrers" // /v2/<name>/referrers/<digest>
	Tags      Op = "tags"      // /v2/<name>/tags/list
	Object    Op = "object"    // a signed URL of the object store
	Other     Op = "other"
)

// target is what a path names.
type target struct {
	op   Op
	repo string
	ref  string // the tag or digest
}

// parse reads a path as https://github.com/opencontainers/distribution-spec/blob/main/spec.md#endpoints has it.
func parse(path string) target {
	switch {
	case path == "/v2/" || path == "/v2":
		return target{op: Ping}
	case path == "/token":
		return target{op: Token}
	case strings.HasPrefix(path, objectPrefix):
		return target{op: Object, ref: strings.TrimPrefix(path, objectPrefix)}
	case !strings.HasPrefix(path, "/v2/"):
		return target{op: Other}
	}
	path = strings.TrimPrefix(path, "/v2/")
	if i := strings.LastIndex(path, "/blobs/uploads"); i >= 0 {
		return target{op: Upload, repo: path[:i]}
	}
	for _, k := range []struct {
		infix string
		op    Op
	}{{"/manifests/", Manifest}, {"/blobs/", Blob}, {"/referrers/", Referrers}, {"/tags/", Tags}} {
		if i := strings.LastIndex(path, k.infix); i > 0 {
			return target{op: k.op, repo: path[:i], ref: path[i+len(k.infix):]}
		}
	}
	return target{op: Other}
}

// wrap gives a handler what every request passes: the log, and an end when the server goes down.
func (s *Server) wrap(serve func(http.ResponseWriter, *http.Request, target)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.enter()
		defer s.leave()
		t := parse(r.URL.Path)
		rec := s.log.begin(w, r, t)
		defer s.log.end(rec)
		serve(rec, r, t)
	})
}

func (s *Server) serveRegistry(w http.ResponseWriter, r *http.Request, t target) {
	if t.op == Token {
		s.faults.handler(r, t, s.stopped(), http.HandlerFunc(s.auth.serveToken)).ServeHTTP(w, r)
		return
	}
	if !s.auth.allow(w, r, s.URL(), t) {
		return
	}
	next := s.inner
	if t.op == Blob && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.objects != nil {
				s.redirect(w, r, t.ref)
				return
			}
			s.blobs.serve(w, r, t.ref)
		})
	}
	s.faults.handler(r, t, s.stopped(), next).ServeHTTP(w, r)
}
