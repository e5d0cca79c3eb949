package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The kinds of failure a caller can act upon; test for them with errors.Is.
var (
	// ErrNotFound: the registry answered and does not know the repository, tag, digest or blob.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the registry refused the credentials, or wants some and there are none.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnreachable: no usable answer came within the deadline: no route, no name, no TLS, only errors, or silence.
	ErrUnreachable = errors.New("unreachable")
	// ErrDigest: bytes arrived that are not those their digest names.
	ErrDigest = errors.New("digest mismatch")
	// ErrInvalidReference: the reference cannot be parsed.
	ErrInvalidReference = errors.New("invalid reference")
	// ErrUnsupported: the image is not one that can be run: foreign layers, an unknown manifest type, no such platform.
	ErrUnsupported = errors.New("unsupported image")
	// ErrClosed: the Client has been closed.
	ErrClosed = errors.New("client closed")
)

// Error is what Resolve, Blob.ReadAt and Blob.Open fail with: one line that says what failed, on what, and what to do.
// It holds no secret: credentials and query strings of URLs are left out.
type Error struct {
	Op    string // what was being done: "resolve", "read"
	Ref   string // on what: a reference or a blob
	Kind  error  // one of the sentinels
	Cause error  // what happened; may be nil
	Hint  string // what to do; may be empty
}

func (e *Error) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s: %v", e.Op, e.Ref, e.Kind)
	if e.Cause != nil {
		if cause := oneLine(e.Cause.Error()); cause != e.Kind.Error() {
			s.WriteString(": " + cause)
		}
	}
	if e.Hint != "" {
		s.WriteString("; " + e.Hint)
	}
	return s.String()
}

// Permanent says that doing the same again will not help: nobody who only waits for a registry to come back need try.
func (e *Error) Permanent() bool {
	return e.Kind != ErrUnreachable || e.Cause != nil && !transient(e.Cause)
}

// Unwrap makes both the kind and the cause visible to errors.Is and errors.As.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Cause} }

// oneLine keeps what a registry wrote from breaking or flooding a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "..."
	}
	return s
}

// statusError is an answer with a status that is not what the request was for.
type statusError struct {
	host       string
	code       int
	detail     string        // the registry's own words, one line
	retryAfter time.Duration // 0 = none given
	storage    bool          // it came from where a registry redirected to, which knows no accounts
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answered %d %s", e.host, e.code, http.StatusText(e.code))
	if e.detail != "" {
		s += " (" + e.detail + ")"
	}
	return s
}

// protocolError is an answer that breaks HTTP's or the registry API's rules: a wrong Content-Range, an encoded body.
type protocolError struct{ host, what string }

func (e *protocolError) Error() string { return e.host + " " + e.what }

// kindOf says which sentinel an attempt's error amounts to.
func kindOf(err error) error {
	for _, kind := range []error{ErrNotFound, ErrUnauthorized, ErrDigest, ErrUnsupported, ErrInvalidReference, ErrClosed} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	var status *statusError
	if errors.As(err, &status) && !status.storage {
		switch status.code {
		case http.StatusNotFound, http.StatusGone:
			return ErrNotFound
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
			return ErrUnauthorized
		}
	}
	return ErrUnreachable
}

// transient says whether trying again may help. A wrong range or a cut body may be one bad server of several.
func transient(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrUnsupported) {
		return false
	}
	var status *statusError
	if errors.As(err, &status) {
		switch status.code {
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
			return true
		}
		if status.storage { // the next redirect may lead to a better place
			return true
		}
		return status.code >= 500 && status.code != http.StatusNotImplemented
	}
	var certificate *tlsError
	return !errors.As(err, &certificate)
}

// hint says what a user can do about err when talking to host.
func hint(err error, host string) string {
	var certificate *tlsError
	if errors.As(err, &certificate) {
		return certificate.hint
	}
	switch kindOf(err) {
	case ErrNotFound:
		return "check the name and the tag"
	case ErrUnauthorized:
		return fmt.Sprintf("check the name, or log in with: msb-fs login %s -u USER --password-stdin", displayHost(host))
	case ErrUnreachable:
		return "check the network and the registry's name, or try again later"
	case ErrDigest:
		return "the registry or something on the way to it alters data; try again or use another mirror"
	}
	return ""
}
