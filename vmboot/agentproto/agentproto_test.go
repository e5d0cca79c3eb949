package agentproto

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

func TestFramesAreBounded(t *testing.T) {
	var b bytes.Buffer
	sent := Process{Args: []string{"a", "b"}, Env: []string{"K=V"}, TTY: true, Size: Size{Rows: 3}}
	if err := WriteFrame(&b, sent); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	var got Process
	if err := ReadFrame(bytes.NewReader(whole), MaxReply, &got); err != nil || got.Args[1] != "b" || !got.TTY || got.Size.Rows != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range whole {
		err := ReadFrame(bytes.NewReader(whole[:n]), MaxReply, &got)
		if want := n == 0; err == nil || (err == io.EOF) != want {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	if err := ReadFrame(bytes.NewReader(whole), uint32(len(whole)-5), &got); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long: %v", err)
	}
}

func TestHeaders(t *testing.T) {
	var b bytes.Buffer
	want := Header{Kind: Stderr, Process: 0xdeadbeef}
	if _, err := want.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadHeader(&b); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, kind := range []byte{0, 6, 255} {
		if _, err := ReadHeader(bytes.NewReader([]byte{kind, 0, 0, 0, 0, 0, 0, 0})); err == nil {
			t.Errorf("kind %d was taken", kind)
		}
	}
}

// writes remembers each Write by itself.
type writes struct{ all [][]byte }

func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, bytes.Clone(p))
	return len(p), nil
}
func (w *writes) Read([]byte) (int, error) { return 0, io.EOF }
func (w *writes) Close() error             { return nil }

func TestHeadersTravelWithTheirData(t *testing.T) {
	header := func(kind byte, length uint32) []byte {
		h := make([]byte, headerSize)
		h[1] = kind
		binary.BigEndian.PutUint32(h[8:], length)
		return h
	}
	to := &writes{}
	c := Coalesce(to)
	for _, p := range [][]byte{header(0, 3), []byte("abc"), header(1, 9), header(0, 0), header(0, 12), header(0, 7)} {
		if n, err := c.Write(p); n != len(p) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	var sizes []int
	for _, w := range to.all {
		sizes = append(sizes, len(w))
	}
	// A data frame of twelve bytes that look like a header is data.
	if len(sizes) != 4 || sizes[0] != 15 || sizes[1] != 12 || sizes[2] != 12 || sizes[3] != 24 {
		t.Errorf("written in pieces of %v", sizes)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Reply
		ReadFrame(bytes.NewReader(data), MaxReply, &r)
		ReadHeader(bytes.NewReader(data))
	})
}
