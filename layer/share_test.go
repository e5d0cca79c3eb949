package layer

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// exported streams blob and exports its index.
func exported(t *testing.T, d Descriptor, blob []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	l := open(t, d, &memBlob{data: blob}, Options{Dir: dir})
	if <-l.Done(); l.Err() != nil {
		t.Fatal(l.Err())
	}
	b, err := Export(dir, d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestImport reads a layer lazily that this machine has never seen, by the index that another one made.
func TestImport(t *testing.T) {
	items, tarball := sample(t)
	for _, f := range []testForm{named("gzip-6"), named("zstd-frames"), named("tar")} {
		t.Run(f.name, func(t *testing.T) {
			blob, _ := f.pack(t, tarball)
			d := descriptor(blob, f.typ, nil)
			d.DiffID = sum(tarball)
			packed := exported(t, d, blob)
			t.Logf("index of %d bytes for a blob of %d", len(packed), len(blob))
			o := Options{Dir: t.TempDir(), Chunks: newStore()}
			if err := Import(o.Dir, d.Digest, d.Size, d.DiffID, bytes.NewReader(packed)); err != nil {
				t.Fatal(err)
			}
			mb := &memBlob{data: blob}
			l := open(t, d, mb, o)
			if m, why := l.Mode(); m != LazyIndex || !strings.Contains(why, "pulled") || l.Trusted() {
				t.Fatalf("mode %s (%s), trusted %v", m, why, l.Trusted())
			}
			readAll(t, l, o.Chunks.(*memStore), items)
			select {
			case <-l.Done():
				t.Error("done before it is verified")
			default:
			}
			if err := l.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-l.Done()
			if m, _ := l.Mode(); m != Full || !l.Trusted() {
				t.Errorf("mode %s, trusted %v", m, l.Trusted())
			}
			readAll(t, l, o.Chunks.(*memStore), items)
			if n := len(slices.Collect(l.Digests())); n != len(l.t.chunks) {
				t.Errorf("%d digests of %d", n, len(l.t.chunks))
			}
			files, _ := os.ReadDir(o.Dir)
			if len(files) != 2 {
				t.Errorf("%d files left", len(files))
			}
			again := open(t, d, mb, o)
			if !again.Trusted() {
				t.Error("its own index is not trusted")
			}
			if m, _ := again.Mode(); m != Full {
				t.Error("a complete layer is not known as one at once")
			}
			again.owned.Wait()
			if m, why := again.Mode(); m != Full {
				t.Errorf("all is stored, the mode is %s (%s)", m, why)
			}
			if have, total := again.Progress(); have != total {
				t.Errorf("all is stored, progress is %d of %d", have, total)
			}
			for dir, lazy := range map[string]bool{o.Dir: true, t.TempDir(): false, "": false} {
				if Lazy(dir, d) != lazy {
					t.Errorf("Lazy is %v", !lazy)
				}
			}
		})
	}
}

// TestImportLies imports indexes that are sound but not of the layer. They are found out when the layer is complete.
func TestImportLies(t *testing.T) {
	data := text(1, 200_000)
	tarball := makeTar(t, file("a", data), file("b", noise(2, 100_000)))
	blob := gz(t, tarball)
	d := descriptor(blob, typeGzip, nil)
	lies := map[string]func(tab *table){
		"owner": func(tab *table) { tab.entries[0].uid = 0; tab.entries[0].mode |= 0o4000 },
		"name":  func(tab *table) { tab.text[0] = 'z' },
		"swapped": func(tab *table) {
			tab.chunks[0].digest, tab.chunks[1].digest = tab.chunks[1].digest, tab.chunks[0].digest
		},
		"shorter":  func(tab *table) { tab.entries = tab.entries[:1]; tab.chunks = tab.chunks[:1] },
		"whiteout": func(tab *table) { tab.entries[1].kind, tab.entries[1].chunks, tab.entries[1].size = Whiteout, 0, 0 },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			st := newStore()
			o := Options{Dir: t.TempDir(), Chunks: st}
			good := exported(t, d, blob)
			bad := forge(t, good, lie)
			if err := Import(o.Dir, d.Digest, d.Size, "", bytes.NewReader(bad)); err != nil {
				t.Fatal(err)
			}
			l := open(t, d, &memBlob{data: blob}, o)
			if err := l.Complete(t.Context()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Complete: %v", err)
			}
			<-l.Done()
			if _, _, err := l.Entries(t.Context(), 0); !errors.Is(err, ErrCorrupt) || !errors.Is(l.Err(), ErrCorrupt) {
				t.Errorf("Entries: %v", err)
			}
			again := open(t, d, &memBlob{data: blob}, o)
			if got := readEntry(t, again, st, 0, 0, 1000); !again.Trusted() || !bytes.Equal(got, data[:1000]) {
				t.Error("the layer is not right the next time")
			}
			if err := Remove(o.Dir, d.Digest, st); err != nil {
				t.Fatal(err)
			}
			if err := Import(o.Dir, d.Digest, d.Size, "", bytes.NewReader(bad)); !errors.Is(err, ErrFalseIndex) {
				t.Errorf("the same index once more: %v", err)
			}
			if err := Import(o.Dir, d.Digest, d.Size, "", bytes.NewReader(good)); err != nil {
				t.Errorf("the right index: %v", err)
			}
		})
	}
}

// forge changes an exported index.
func forge(t *testing.T, packed []byte, lie func(*table)) []byte {
	t.Helper()
	dec, _ := zstd.NewReader(nil)
	defer dec.Close()
	raw, err := dec.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	tab, h, err := parseIndex(aligned(raw))
	if err != nil {
		t.Fatal(err)
	}
	lie(tab)
	raw, err = appendIndex(nil, tab, h.Layer, h.DiffID, h.TOC)
	if err != nil {
		t.Fatal(err)
	}
	enc, _ := zstd.NewWriter(nil)
	defer enc.Close()
	return enc.EncodeAll(raw, nil)
}

// TestImportRefuses has indexes that are not even sound.
func TestImportRefuses(t *testing.T) {
	tarball := makeTar(t, file("a", text(1, 200_000)), file("b/c", noise(2, 100_000)))
	blob := gz(t, tarball)
	d := descriptor(blob, typeGzip, nil)
	good := exported(t, d, blob)
	same := func(*table) {}
	tests := []struct {
		name         string
		digest, diff string
		size         int64
		lie          func(*table)
	}{
		{"other layer", sum(nil), "", d.Size, same},
		{"other size", d.Digest, "", d.Size + 1, same},
		{"other diffID", d.Digest, sum(nil), d.Size, same},
		{"no digest", "x", "", d.Size, same},
		{"name with a slash", d.Digest, "", d.Size, func(tab *table) { tab.text[0] = '/' }},
		{"name is a dot", d.Digest, "", d.Size, func(tab *table) { tab.text[0] = '.' }},
		{"entry is its own parent", d.Digest, "", d.Size, func(tab *table) { tab.entries[0].parent = 0 }},
		{"chunks out of bounds", d.Digest, "", d.Size, func(tab *table) { tab.entries[0].chunks = 100 }},
		{"span out of bounds", d.Digest, "", d.Size, func(tab *table) { tab.chunks[0].span = 9 }},
		{"span out of the blob", d.Digest, "", d.Size, func(tab *table) { tab.spans[0].off = d.Size }},
		{"window out of bounds", d.Digest, "", d.Size, func(tab *table) { tab.spans[0].windowLen = 1 << 31 }},
		{"text out of bounds", d.Digest, "", d.Size, func(tab *table) { tab.entries[0].link = 1 << 31 }},
		{"form", d.Digest, "", d.Size, func(tab *table) { tab.form = 77 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := Import(dir, tt.digest, tt.size, tt.diff, bytes.NewReader(forge(t, good, tt.lie))); !errors.Is(err, ErrCorrupt) {
				t.Errorf("err = %v", err)
			}
			if files, _ := os.ReadDir(dir); len(files) != 0 {
				t.Error("files are left")
			}
		})
	}
	for _, b := range [][]byte{nil, []byte("x"), good[:len(good)/2], noise(1, 1000)} {
		if err := Import(t.TempDir(), d.Digest, d.Size, "", bytes.NewReader(b)); err == nil {
			t.Errorf("%d bytes of nothing are imported", len(b))
		}
	}
	if _, err := Export(t.TempDir(), d.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Export of nothing: %v", err)
	}
}

// TestDamagedIndex flips bytes of index files: the layer is streamed again, and nobody hears of it.
func TestDamagedIndex(t *testing.T) {
	data := text(1, 3<<20)
	blob := gz(t, makeTar(t, file("a", data)))
	d := descriptor(blob, typeGzip, nil)
	dir := t.TempDir()
	l := open(t, d, &memBlob{data: blob}, Options{Dir: dir})
	<-l.Done()
	path := filepath.Join(dir, indexName(l.id, Digest{}))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 100, 600, len(good) / 2, len(good) - 10} {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		os.WriteFile(path, bad, 0o600)
		l := open(t, d, &memBlob{data: blob}, Options{Dir: dir})
		if got := readEntry(t, l, nil, 0, 2<<20, 1000); !bytes.Equal(got, data[2<<20:][:1000]) {
			t.Errorf("flipped at %d: other bytes", at)
		}
		<-l.Done()
		if err := l.Err(); err != nil {
			t.Errorf("flipped at %d: %v", at, err)
		}
	}
	for _, n := range []int{0, 10, indexHeader, len(good) - 8} {
		os.WriteFile(path, good[:n], 0o600)
		l := open(t, d, &memBlob{data: blob}, Options{Dir: dir})
		if <-l.Done(); l.Err() != nil || len(allEntries(t, l)) != 1 {
			t.Errorf("cut at %d: %v", n, l.Err())
		}
	}
}
