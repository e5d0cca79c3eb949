package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// cutShort streams blob up to about byte upto, with a mark wherever one is possible, and closes the layer there.
func cutShort(t *testing.T, d Descriptor, blob []byte, o Options, upto int) {
	t.Helper()
	o.markEvery = 1
	b := &memBlob{data: blob, gate: newGate(upto)}
	l, err := Open(t.Context(), d, b, o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.Dir, partialName(l.id))
	last := int64(-1)
	for still := 0; still < 20; { // until nothing moves any more
		size := int64(0)
		if st, err := os.Stat(path); err == nil {
			size = st.Size()
		}
		if have, _ := l.Progress(); size+have != last {
			last, still = size+have, 0
		} else if have == int64(upto) {
			still++
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTakenUp cuts the stream of every form short at several places, again and again, and compares what comes of it with
// an uninterrupted one: the same entries, chunks and bytes, and an index that leads to them.
func TestTakenUp(t *testing.T) {
	items, tarball := sample(t)
	for _, f := range forms() {
		if f.mode != Streaming {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			blob, _ := f.pack(t, tarball)
			d := descriptor(blob, f.typ, nil)
			d.DiffID = sum(tarball)
			whole := open(t, d, &memBlob{data: blob}, Options{Chunks: newStore()})
			want := allEntries(t, whole)
			<-whole.Done()
			o := Options{Dir: t.TempDir(), Chunks: newStore()}
			for _, part := range []float64{0.1, 0.35, 0.36, 0.8, 0.95} {
				cutShort(t, d, blob, o, int(part*float64(len(blob))))
			}
			_, _, m, _, err := readJournal(filepath.Join(o.Dir, partialName(whole.id)), whole.id, -1)
			if err != nil {
				t.Fatal(err)
			}
			b := &memBlob{data: blob}
			l := open(t, d, b, o)
			_, why := l.Mode()
			got := allEntries(t, l)
			<-l.Done()
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) || !l.t.same(whole.t, nil) {
				t.Fatal("a stream that was taken up knows other entries or chunks")
			}
			if single := f.name == "zstd-one" || f.name == "zstd-7"; single == (m.Off > 0) || b.bytes != int64(len(blob))-m.Off {
				t.Errorf("%d of %d bytes were read again (%s)", b.bytes, len(blob), why)
			}
			if left, _ := filepath.Glob(filepath.Join(o.Dir, "*.partial")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			// By the index alone, without any chunk.
			again := open(t, d, &memBlob{data: blob}, Options{Dir: o.Dir})
			if m, why := again.Mode(); m != LazyIndex {
				t.Fatalf("mode %s (%s)", m, why)
			}
			for _, it := range items {
				if len(it.data) == 0 {
					continue
				}
				e := find(t, got, it.Name)
				if data := readEntry(t, again, nil, e, 0, int64(len(it.data))); string(data) != string(it.data) {
					t.Errorf("%s has other bytes", it.Name)
				}
			}
		})
	}
}

// TestTakenUpDamaged takes streams up whose journals have been cut or damaged anywhere: nothing wrong may come of it.
func TestTakenUpDamaged(t *testing.T) {
	_, tarball := sample(t)
	blob, _ := goGzip(6, 0)(t, tarball)
	d := descriptor(blob, typeGzip, nil)
	d.DiffID = sum(tarball)
	base := Options{Dir: t.TempDir(), Chunks: newStore()}
	cutShort(t, d, blob, base, len(blob)*3/4)
	journal, err := os.ReadFile(filepath.Join(base.Dir, d.Digest[7:]+".partial"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 24 {
		o := Options{Dir: t.TempDir(), Chunks: base.Chunks}
		bad := append([]byte{}, journal...)
		at := i * len(bad) / 24
		if i%2 == 0 {
			bad[at] ^= 0x10
		} else {
			bad = bad[:at]
		}
		if err := os.WriteFile(filepath.Join(o.Dir, d.Digest[7:]+".partial"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, d, &memBlob{data: blob}, o)
		<-l.Done()
		if err := l.Err(); err != nil {
			t.Errorf("damaged at byte %d of %d: %v", at, len(journal), err)
		}
	}
}

// TestTakenUpCorrupt lets the rest of a blob be another's: all that its start had brought goes, and the next stream begins
// at byte 0.
func TestTakenUpCorrupt(t *testing.T) {
	_, tarball := sample(t)
	blob, _ := goGzip(6, 0)(t, tarball)
	for _, where := range []string{"start", "rest"} {
		t.Run(where, func(t *testing.T) {
			st := newStore()
			o := Options{Dir: t.TempDir(), Chunks: st}
			bad := append([]byte{}, blob...)
			d := descriptor(blob, typeGzip, nil)
			if where == "start" {
				bad[9]++ // the OS byte: the tar is the same
				cutShort(t, d, bad, o, len(blob)/2)
				bad = blob
			} else {
				cutShort(t, d, blob, o, len(blob)/2)
				bad[len(bad)-2]++
			}
			if len(st.m) == 0 {
				t.Fatal("nothing was stored")
			}
			l := open(t, d, &memBlob{data: bad}, o)
			<-l.Done()
			if !errors.Is(l.Err(), ErrCorrupt) {
				t.Fatalf("error %v", l.Err())
			}
			if len(st.m) != 0 {
				t.Errorf("%d chunks are left that nobody vouches for", len(st.m))
			}
			l = open(t, d, &memBlob{data: blob}, o)
			<-l.Done()
			if err := l.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTakenUpTwice opens a layer twice at the same time: only one of the two streams keeps the journal.
func TestTakenUpTwice(t *testing.T) {
	_, tarball := sample(t)
	blob, _ := goGzip(6, 0)(t, tarball)
	d := descriptor(blob, typeGzip, nil)
	o := Options{Dir: t.TempDir(), Chunks: newStore(), markEvery: 1}
	var layers []*Layer
	for range 3 {
		layers = append(layers, open(t, d, &memBlob{data: blob}, o))
	}
	for i, l := range layers {
		<-l.Done()
		if err := l.Err(); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	cutShort(t, d, blob, Options{Dir: t.TempDir(), Chunks: newStore()}, len(blob)/2)
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "*.partial")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestTakenUpRemoved removes a layer that was never finished: its chunks go as well.
func TestTakenUpRemoved(t *testing.T) {
	_, tarball := sample(t)
	st := newStore()
	o := Options{Dir: t.TempDir(), Chunks: st}
	d := descriptor(tarball, typeTar, nil)
	cutShort(t, d, tarball, o, len(tarball)/2)
	if len(st.m) == 0 {
		t.Fatal("nothing was stored")
	}
	before := len(st.m)
	if err := Remove(o.Dir, d.Digest, st); err != nil {
		t.Fatal(err)
	}
	if len(st.m) > before/10 {
		t.Errorf("%d of %d chunks are left", len(st.m), before)
	}
	if left, _ := os.ReadDir(o.Dir); len(left) > 0 {
		t.Errorf("left behind: %v", fmt.Sprint(left))
	}
}
