package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// jsonNode is a JSON value that remembers where it stands, so that a complaint about it can name its line.
type jsonNode struct {
	offset int64 // of the first byte after the value's key, or of the value
	value  any   // nil, bool, json.Number, string, []*jsonNode or []jsonMember
}

type jsonMember struct {
	key  string
	node *jsonNode
}

const maxJSONDepth = 32

// parseJSON reads one JSON document. An object with the same key twice is an error: which one counts would be a guess.
func parseJSON(data []byte) (*jsonNode, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	n, err := parseJSONValue(d, 0)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return n, nil
		} else if err == nil {
			err = errors.New("more after the end of the document")
		}
	}
	var syntax *json.SyntaxError
	at := d.InputOffset()
	if errors.As(err, &syntax) {
		at = syntax.Offset
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the document ends too early")
	}
	return nil, &lineError{offset: at, err: err}
}

func parseJSONValue(d *json.Decoder, depth int) (*jsonNode, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxJSONDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	n := &jsonNode{offset: d.InputOffset(), value: t}
	switch t {
	case json.Delim('['):
		items := []*jsonNode{}
		for d.More() {
			item, err := parseJSONValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			items = append(items, item)
		}
		n.value = items
		_, err = d.Token()
	case json.Delim('{'):
		n.value, err = parseJSONMembers(d, depth)
	}
	return n, err
}

func parseJSONMembers(d *json.Decoder, depth int) ([]jsonMember, error) {
	members := []jsonMember{}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string) // the decoder allows nothing else here
		at := d.InputOffset()
		if seen[key] {
			return nil, &lineError{offset: at, err: fmt.Errorf("key %q is there twice", key)}
		}
		seen[key] = true
		node, err := parseJSONValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		node.offset = at
		members = append(members, jsonMember{key, node})
	}
	_, err := d.Token()
	return members, err
}

// lineError is an error at a place of a document.
type lineError struct {
	offset int64
	err    error
}

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// lineOf is the number of the line of data that offset is in, from 1.
func lineOf(data []byte, offset int64) int {
	offset = min(max(offset, 0), int64(len(data)))
	return 1 + bytes.Count(data[:offset], []byte{'\n'})
}
