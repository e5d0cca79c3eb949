package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"time"
)

const objectPrefix = "/objects/"

// redirect answers a blob request as a registry before object storage does: with a signed URL that ends.
func (s *Server) redirect(w http.ResponseWriter, r *http.Request, digest string) {
	expires := strconv.FormatInt(s.o.Now().Add(s.o.URLTTL).UnixNano(), 10)
	http.Redirect(w, r, s.scheme()+"://"+s.objects.addr+objectPrefix+digest+
		"?expires="+expires+"&signature="+s.sign(digest, expires), http.StatusTemporaryRedirect)
}

func (s *Server) sign(digest, expires string) string {
	m := hmac.New(sha256.New, s.signKey[:])
	m.Write([]byte(digest + "?" + expires))
	return hex.EncodeToString(m.Sum(nil))
}

// serveObject is the object store: it knows no credentials but the signature, and like S3 answers 400 to a request that
// brings an Authorization header as well, 403 to one that comes too late.
func (s *Server) serveObject(w http.ResponseWriter, r *http.Request, t target) {
	q := r.URL.Query()
	nanos, _ := strconv.ParseInt(q.Get("expires"), 10, 64)
	switch {
	case t.op != Object:
		http.NotFound(w, r)
	case r.Header.Get("Authorization") != "":
		http.Error(w, "Only one auth mechanism allowed", http.StatusBadRequest)
	case !hmac.Equal([]byte(s.sign(t.ref, q.Get("expires"))), []byte(q.Get("signature"))):
		http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
	case !s.o.Now().Before(time.Unix(0, nanos)):
		http.Error(w, "Request has expired", http.StatusForbidden)
	default:
		s.faults.handler(r, t, s.stopped(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.blobs.serve(w, r, t.ref)
		})).ServeHTTP(w, r)
	}
}
