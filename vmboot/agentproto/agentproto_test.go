package agentproto

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestFramesAreBounded(t *testing.T) {
	var b bytes.Buffer
	sent := Process{Args: []string{"a", "b"}, Env: []string{"K=V"}, TTY: true, Size: Size{Rows: 3}}
	if err := WriteFrame(&b, &sent); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	var got Process
	if err := ReadFrame(bytes.NewReader(whole), MaxReply, &got); err != nil || got.Args[1] != "b" || !got.TTY || got.Size.Rows != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range whole {
		var got Process
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
	for _, b := range [][8]byte{{0, Version}, {6, Version}, {255, Version}, {byte(Control), Version - 1}} {
		if _, err := ReadHeader(bytes.NewReader(b[:])); err == nil {
			t.Errorf("%v was taken", b)
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
	f.Add([]byte{0, 0, 0, 2, 6, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []Message{new(Hello), new(Setup), new(Request), new(Reply), new(Shutdown)} {
			if ReadFrame(bytes.NewReader(data), MaxReply, m) != nil {
				continue
			}
			again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			var b bytes.Buffer
			if err := WriteFrame(&b, m); err != nil {
				t.Fatal(err)
			}
			if err := ReadFrame(&b, 16*MaxReply, again); err != nil || !reflect.DeepEqual(m, again) {
				t.Fatalf("%+v came back as %+v, %v", m, again, err)
			}
		}
		ReadHeader(bytes.NewReader(data))
	})
}

// fill sets everything v has to something else than its zero value.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.String:
		v.SetString(strings.Repeat("x", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-int64(*n))
	default:
		v.SetUint(uint64(*n))
	}
}

// A field that was forgotten in a fields method would arrive as zero.
func TestEveryFieldArrives(t *testing.T) {
	for _, m := range []Message{&Hello{}, &Setup{}, &Request{}, &Reply{}, &Shutdown{}, &Process{Rlimits: []Rlimit{{Soft: 1<<64 - 1}}}} {
		n := 0
		fill(reflect.ValueOf(m).Elem(), &n)
		var b bytes.Buffer
		if err := WriteFrame(&b, m); err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		if err := ReadFrame(&b, MaxRequest, got); err != nil || !reflect.DeepEqual(m, got) {
			t.Errorf("%+v came as %+v, %v", m, got, err)
		}
	}
}

func TestMessagesDistrustTheirSender(t *testing.T) {
	frame := func(b ...byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	huge := binary.AppendVarint(nil, 1<<40)
	for name, c := range map[string]struct {
		sent []byte
		into Message
		good bool
	}{
		"empty":                {frame(), new(Reply), true},
		"of a newer peer":      {frame(2, 0, 1, 2, 3), new(Reply), true},
		"of an older one":      {frame(2), new(Reply), true},
		"no end of a number":   {frame(0x80, 0x80), new(Reply), false},
		"a number of 11 bytes": {frame(bytes.Repeat([]byte{0x80}, 11)...), new(Reply), false},
		"a long string":        {frame(huge...), new(Hello), false},
		"a negative length":    {frame(1), new(Hello), false},
		"a long list":          {frame(append([]byte{2, 0, 0}, huge...)...), new(Setup), false},
		"a list cut short":     {frame(2, 0, 0, 4, 2), new(Setup), false},
		"a large row":          {frame(append([]byte{0, 0, 2, 10}, huge...)...), new(Request), false},
	} {
		if err := ReadFrame(bytes.NewReader(c.sent), MaxReply, c.into); (err == nil) != c.good {
			t.Errorf("%s: %+v, %v", name, c.into, err)
		}
	}
}
