package remote

import (
	"net/http"
	"strings"
)

// challenge is one scheme of a WWW-Authenticate header (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // by lower-case name
}

// pickChallenge finds the first challenge that this package can answer; ok is false when there is none.
func pickChallenge(h http.Header) (c challenge, ok bool) {
	for _, line := range h.Values("WWW-Authenticate") {
		for _, c := range parseChallenges(line) {
			if c.scheme == "bearer" && c.params["realm"] != "" || c.scheme == "basic" {
				return c, true
			}
		}
	}
	return challenge{}, false
}

// parseChallenges reads a header that may hold several challenges, separated by the same commas that separate the
// parameters of one. What cannot be read is skipped: a registry's mistake in one challenge must not hide another.
func parseChallenges(s string) []challenge {
	const maxHeader = 16 << 10
	s = s[:min(len(s), maxHeader)]
	var list []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return list
		}
		word, rest := headerToken(s)
		if word == "" {
			s = s[1:] // not the beginning of anything
			continue
		}
		afterSpace := strings.TrimLeft(rest, " \t")
		if strings.HasPrefix(afterSpace, "=") && len(list) > 0 {
			var value string
			value, s = paramValue(strings.TrimLeft(afterSpace[1:], " \t"))
			p := list[len(list)-1].params
			if name := strings.ToLower(word); p[name] == "" {
				p[name] = value
			}
			continue
		}
		list = append(list, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
		s = rest
	}
}

// headerToken splits off the longest token (RFC 9110, section 5.6.2) at the start of s.
func headerToken(s string) (word, rest string) {
	i := 0
	for i < len(s) && isTokenByte(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

func isTokenByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

// paramValue splits off a token or quoted string. Registries leave URLs unquoted too, so that anything up to the next
// comma or space counts.
func paramValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), "" // the closing quote is missing
}
