package remote

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

const (
	hubName = "docker.io"          // what people write
	hubHost = name.DefaultRegistry // where Docker Hub's API is, index.docker.io
)

// Normalize writes ref in full: "python" is "docker.io/library/python:latest". Two references that name the same thing
// have the same normal form, which is what pins are keyed by. With a digest the tag is dropped: the digest decides.
func Normalize(ref string) (string, error) {
	r, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	return displayReference(r), nil
}

// AtDigest is ref's repository at a digest: ("python:3.12", "sha256:...") is "docker.io/library/python@sha256:...".
func AtDigest(ref, digest string) (string, error) {
	r, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	return Normalize(r.Context().Name() + "@" + digest)
}

func parseReference(ref string) (name.Reference, error) {
	// Nobody's reference is longer; the parser's regular expressions need not see what is.
	if len(ref) > 1024 {
		return nil, &Error{Op: "parse", Ref: fmt.Sprintf("%q...", ref[:32]), Kind: ErrInvalidReference, Cause: fmt.Errorf("%d bytes long", len(ref))}
	}
	if strings.HasPrefix(ref, "http://") || strings.HasPrefix(ref, "https://") {
		return nil, &Error{Op: "parse", Ref: fmt.Sprintf("%q", ref), Kind: ErrInvalidReference, Cause: errors.New("it is a URL"),
			Hint: "leave out http:// or https://; plain HTTP is chosen with --insecure or in config.json"}
	}
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return nil, &Error{Op: "parse", Ref: fmt.Sprintf("%q", ref), Kind: ErrInvalidReference, Cause: err, Hint: "write it as [host/]name[:tag][@sha256:...]"}
	}
	if host := r.Context().RegistryStr(); !validHost(host) {
		return nil, &Error{Op: "parse", Ref: fmt.Sprintf("%q", ref), Kind: ErrInvalidReference, Cause: fmt.Errorf("%q is no host[:port]", host)}
	}
	for part := range strings.SplitSeq(r.Context().RepositoryStr(), "/") {
		// A part like ".." would make the request's path another repository's.
		if strings.Trim(part, "._-") != part || part == "" {
			return nil, &Error{Op: "parse", Ref: fmt.Sprintf("%q", ref), Kind: ErrInvalidReference, Cause: fmt.Errorf("the name has the part %q", part)}
		}
	}
	return r, nil
}

func displayReference(r name.Reference) string {
	sep := ":"
	if _, ok := r.(name.Digest); ok {
		sep = "@"
	}
	return displayHost(r.Context().RegistryStr()) + "/" + r.Context().RepositoryStr() + sep + r.Identifier()
}

// validHost says whether s is host[:port]: a name, an IPv4 address or an IPv6 address in brackets.
func validHost(s string) bool {
	name, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		name, port = s[:i], s[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if ip := trimBrackets(name); ip != name {
		a, err := netip.ParseAddr(ip)
		return err == nil && a.Is6() && a.Zone() == ""
	}
	notInNames := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
	}
	return name != "" && len(name) <= 253 && !strings.ContainsFunc(name, notInNames) && name[0] != '.' && !strings.Contains(name, "..")
}

// displayHost is a registry's name as people write it.
func displayHost(host string) string {
	if host == hubHost {
		return hubName
	}
	return host
}

// canonicalHost is a registry's name as the API client spells it: Docker Hub has several.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	switch host {
	case hubName, "registry-1.docker.io", "registry.hub.docker.com":
		return hubHost
	}
	return host
}

// Repository is ref without its tag or digest, in full: "docker.io/library/python". What is no reference stays as it is.
func Repository(ref string) string {
	r, err := parseReference(ref)
	if err != nil {
		return ref
	}
	return displayHost(r.Context().RegistryStr()) + "/" + r.Context().RepositoryStr()
}
