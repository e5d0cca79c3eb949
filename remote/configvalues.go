package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// field reads the value of one key.
type field func(n *jsonNode, key string) error

// object reads an object all of whose keys are known.
func object(n *jsonNode, key string, fields map[string]field) error {
	list, err := members(n, key)
	if err != nil {
		return err
	}
	for _, m := range list {
		k := strings.TrimPrefix(key+"."+m.key, ".")
		f := fields[m.key]
		if f == nil {
			return complain(m.node, k, "is not a known key")
		}
		if m.node.value == nil {
			continue // null is an absent value, as it is to microsandbox
		}
		if err := f(m.node, k); err != nil {
			return err
		}
	}
	return nil
}

func members(n *jsonNode, key string) ([]jsonMember, error) {
	list, ok := n.value.([]jsonMember)
	if !ok {
		return nil, complain(n, key, "is not an object")
	}
	return list, nil
}

func boolean(n *jsonNode, key string) (bool, error) {
	b, ok := n.value.(bool)
	if !ok {
		return false, complain(n, key, "is neither true nor false")
	}
	return b, nil
}

func text(n *jsonNode, key string) (string, error) {
	s, ok := n.value.(string)
	if !ok || s == "" {
		return "", complain(n, key, "is not a string with something in it")
	}
	return s, nil
}

// oneOf reads one of some words.
func oneOf(n *jsonNode, key string, words ...string) (string, error) {
	s, err := text(n, key)
	if err == nil && !slices.Contains(words, s) {
		last := len(words) - 1
		err = complain(n, key, fmt.Sprintf("is %q: use %s or %s", oneLine(s), strings.Join(words[:last], ", "), words[last]))
	}
	return s, err
}

func complain(n *jsonNode, key, what string) error {
	if key == "" {
		key = "the document"
	}
	return &lineError{offset: n.offset, err: fmt.Errorf("%s %s", oneLine(key), what)}
}

// list reads a list of strings, each of which check likes.
func list(n *jsonNode, key string, check func(string) error) ([]string, error) {
	items, ok := n.value.([]*jsonNode)
	if !ok {
		return nil, complain(n, key, "is not a list")
	}
	var all []string
	for i, item := range items {
		k := fmt.Sprintf("%s[%d]", key, i)
		s, err := text(item, k)
		if err != nil {
			return nil, err
		}
		if err := check(s); err != nil {
			return nil, complain(item, k, err.Error())
		}
		all = append(all, s)
	}
	return all, nil
}

func mirrors(n *jsonNode, key string) ([]string, error) {
	return list(n, key, func(s string) error { _, err := parseMirror(s); return err })
}

func repositories(n *jsonNode, key string) ([]string, error) {
	return list(n, key, func(s string) error {
		if _, err := name.NewRepository(s); err != nil {
			return fmt.Errorf("is %q, not a repository", oneLine(s))
		}
		return nil
	})
}

func stallTimeout(n *jsonNode, key string) (time.Duration, error) {
	s, err := text(n, key)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || d < 0:
		return 0, complain(n, key, fmt.Sprintf("is %q; write a time like \"90s\", or \"0\" to wait for ever", oneLine(s)))
	case d == 0:
		return -1, nil
	}
	return d, nil
}

// byteSize reads a number of bytes, plain or as a string with a unit: decimal as disks have them (GB), or binary (GiB).
func byteSize(n *jsonNode, key string) (int64, error) {
	number, unit := "", ""
	switch v := n.value.(type) {
	case json.Number:
		number = v.String()
	case string:
		number = strings.TrimRight(v, "BKMGTibkmgt ")
		unit = strings.ToLower(strings.TrimSpace(v[len(number):]))
	}
	unit = strings.TrimSuffix(unit, "b")
	base := uint64(1000)
	if strings.HasSuffix(unit, "i") {
		unit, base = strings.TrimSuffix(unit, "i"), 1024
	}
	power := strings.Index("kmgt", unit) + 1
	if unit == "" {
		power = 0
	}
	size, err := strconv.ParseUint(number, 10, 63)
	for range power {
		if size > math.MaxInt64/base {
			err = strconv.ErrRange
		}
		size *= base
	}
	if err != nil || len(unit) > 1 || power == 0 && base == 1024 {
		return 0, complain(n, key, "is not a number of bytes; write 20000000000, \"20GB\" or \"20GiB\"")
	}
	return int64(size), nil
}

// mirror is where a registry's repositories are also to be had.
type mirror struct {
	scheme string // "http", "https", or "" as the host's own settings say
	host   string
	prefix string // of the repository path; "" or ends in "/"
}

func parseMirror(s string) (mirror, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "//" + s
	}
	u, err := url.Parse(full)
	switch {
	case err != nil || !validHost(u.Host) || u.RawQuery != "" || u.Fragment != "":
		return mirror{}, fmt.Errorf("is %q; write host[:port] or http[s]://host[:port][/prefix]", oneLine(s))
	case u.User != nil:
		return mirror{}, errors.New("holds a user name; put it under the mirror's own host")
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https":
		return mirror{}, fmt.Errorf("has the scheme %q; it is http or https", u.Scheme)
	}
	m := mirror{scheme: u.Scheme, host: canonicalHost(u.Host)}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" && prefix != "v2" {
		m.prefix = strings.TrimPrefix(prefix, "v2/") + "/"
	}
	return m, nil
}
