package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// genTar draws a tar with the oddities of real and hostile layers, none of which is refused.
func genTar(t *rapid.T) []byte {
	comp := rapid.SampledFrom([]string{"a", "b", ".", "c.d", "caf\u00e9", "x\xff", ".whx", strings.Repeat("n", 120), strings.Repeat("m", 255)})
	name := rapid.Custom(func(t *rapid.T) string {
		s := strings.Join(rapid.SliceOfN(comp, 1, 5).Draw(t, "components"), "/")
		return rapid.SampledFrom([]string{"", "./", "/", "//"}).Draw(t, "prefix") + s
	})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range rapid.IntRange(0, 25).Draw(t, "entries") {
		h := &tar.Header{
			Name: name.Draw(t, "name"), Mode: rapid.Int64Range(0, 0o7777).Draw(t, "mode"), Uid: rapid.IntRange(0, 1<<31).Draw(t, "uid"),
			ModTime: time.Unix(rapid.Int64Range(-1<<33, 1<<33).Draw(t, "mtime"), 0),
		}
		var data []byte
		switch rapid.IntRange(0, 9).Draw(t, "type") {
		case 0:
			h.Typeflag = tar.TypeDir
		case 1:
			h.Mode = 0o777 // the only one there is
			h.Typeflag, h.Linkname = tar.TypeSymlink, rapid.SampledFrom([]string{"a", "../..", "/etc", "\xfe"}).Draw(t, "target")
		case 2:
			h.Typeflag, h.Linkname = tar.TypeLink, name.Draw(t, "target")
		case 3:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, rapid.Int64Range(0, 4095).Draw(t, "major"), rapid.Int64Range(0, 1<<20-1).Draw(t, "minor")
		case 4:
			h.Name += rapid.SampledFrom([]string{"/.wh.gone", "/.wh..wh..opq", "/.wh..wh.aufs"}).Draw(t, "whiteout")
			h.Typeflag = tar.TypeReg
		default:
			h.Typeflag = tar.TypeReg
			seed := rapid.Uint64Range(0, 9).Draw(t, "seed")
			n := rapid.SampledFrom([]int{0, 1, 511, 512, 513, 5000, 70_000, 300_001}).Draw(t, "size")
			switch {
			case seed == 0:
				if n == 300_001 {
					n = ChunkSize + 10
				}
				data = make([]byte, n)
			case seed < 4:
				data = noise(seed, n)
			default:
				data = bytes.Repeat(text(seed, min(n, 50_000)), n/50_000+1)[:n]
			}
			h.Size = int64(n)
			if rapid.Bool().Draw(t, "xattr") {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v\x00w"}
			}
		}
		if clean, err := cleanName(h.Name); err != nil || clean == "" && h.Typeflag != tar.TypeDir {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			if clean, err := cleanName(h.Linkname); err != nil || clean == "" {
				continue
			}
		}
		if err := w.WriteHeader(h); err != nil {
			continue // what Go cannot write
		}
		w.Write(data)
	}
	w.Close()
	return b.Bytes()
}

// model is what a layer must show, told from the tar without the help of the package's own parts: entries that are not
// made up, in order, and the data of regular files.
type model struct {
	entries []string
	data    map[int][]byte // by place in entries
}

func modelOf(t *rapid.T, b []byte) model {
	m := model{data: make(map[int][]byte)}
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, p := range strings.Split(h.Name, "/") {
			if p != "" && p != "." {
				parts = append(parts, p)
			}
		}
		name := strings.Join(parts, "/")
		dir := strings.Join(parts[:max(len(parts)-1, 0)], "/")
		switch base := name[strings.LastIndex(name, "/")+1:]; {
		case base == ".wh..wh..opq":
			m.entries = append(m.entries, "opaque "+dir)
			continue
		case base == ".wh..wh.aufs":
			continue
		case strings.HasPrefix(base, ".wh."):
			m.entries = append(m.entries, "whiteout "+join(dir, base[4:]))
			continue
		}
		if h.Typeflag == tar.TypeReg {
			m.data[len(m.entries)], _ = io.ReadAll(tr)
		}
		link := h.Linkname
		if h.Typeflag == tar.TypeLink {
			link, _ = cleanName(link)
		}
		m.entries = append(m.entries, fmt.Sprintf("%c %s %o %d %s %d %d:%d %q", h.Typeflag, name, h.Mode, h.Uid, link, h.ModTime.Unix(), h.Devmajor, h.Devminor, h.PAXRecords["SCHILY.xattr.user.k"]))
	}
}

// show is an Entry as the model writes it; ok is false for one that is made up.
func show(e Entry) (s string, ok bool) {
	switch e.Kind {
	case Implicit:
		return "", false
	case Whiteout:
		return "whiteout " + e.Name, true
	case Opaque:
		return "opaque " + e.Name, true
	}
	typ := map[uint32]byte{unix.S_IFREG: '0', unix.S_IFLNK: '2', unix.S_IFCHR: '3', unix.S_IFDIR: '5'}[e.Mode&unix.S_IFMT]
	if e.Kind == HardLink {
		typ = '1'
	}
	xattr := ""
	for _, x := range e.Xattrs {
		xattr = string(x.Value)
	}
	major, minor := e.Rdev>>8&0xfff, e.Rdev&0xff|e.Rdev>>12&0xfff00
	return fmt.Sprintf("%c %s %o %d %s %d %d:%d %q", typ, e.Name, e.Mode&0o7777, e.UID, e.Linkname, e.Mtime.Sec, major, minor, xattr), true
}

// TestRapid is the random access oracle: any layer, in any form, read by several readers before, during and after it is
// streamed, from its index, and after its chunks have been evicted, shows the tar's entries and bytes.
func TestRapid(t *testing.T) {
	cheap := []testForm{named("tar"), {"gzip", goGzip(gzip.BestSpeed, 0), typeGzip, Streaming}, {"members", goGzip(gzip.BestSpeed, 50_000), typeGzip, Streaming},
		{"stored", goGzip(gzip.NoCompression, 0), typeGzip, Streaming}, {"frames", zstdFrames, typeZstd, Streaming},
		{"frame", oneFrame, typeZstd, Streaming}, named("estargz"), named("estargz-inner"), named("zstdchunked")}
	rapid.Check(t, func(rt *rapid.T) {
		b := genTar(rt)
		m := modelOf(rt, b)
		f := rapid.SampledFrom(cheap).Draw(rt, "form")
		if len(b) == 1024 && f.name == "frames" {
			rt.Skip("nothing in it")
		}
		blob, ann := f.pack(t, b)
		dir := t.TempDir()
		d := descriptor(blob, f.typ, ann)
		for _, again := range []bool{false, true} {
			st := newStore()
			mb := &memBlob{data: blob}
			if !again {
				mb.cut = rapid.IntRange(0, len(blob)).Draw(rt, "cut")
				if mb.cut < len(blob)/3 {
					mb.cut = 0
				}
			}
			l, err := Open(t.Context(), d, mb, Options{Dir: dir, Chunks: st})
			if err != nil {
				rt.Fatal(err)
			}
			var readers sync.WaitGroup
			errs := make(chan error, 3)
			for n := range 2 {
				evict := again && n == 1
				seed := rapid.Uint64().Draw(rt, "offsets")
				readers.Go(func() { errs <- m.compare(t, l, st, seed, evict) })
			}
			readers.Go(func() { errs <- l.Complete(t.Context()) })
			readers.Wait()
			close(errs)
			for e := range errs {
				err = errors.Join(err, e)
			}
			l.Close()
			if err != nil {
				rt.Fatalf("%s, again %v: %v", f.name, again, err)
			}
		}
	})
}

// compare reads the layer like fs does and holds it against the model.
func (m *model) compare(t *testing.T, l *Layer, st *memStore, seed uint64, evict bool) error {
	n, k := 0, 0
	for {
		es, done, err := l.Entries(t.Context(), n)
		if err != nil {
			return err
		}
		for i, e := range es {
			s, ok := show(e)
			if !ok || e.Name == "stargz.index.json" {
				continue
			}
			if k >= len(m.entries) || m.entries[k] != s {
				return fmt.Errorf("entry %d is %s, want %q", n+i, s, m.entries[min(k, len(m.entries)-1)])
			}
			if data := m.data[k]; len(data) > 0 {
				seed = seed*6364136223846793005 + 1442695040888963407
				off := int64(seed>>20) % int64(len(data))
				size := min(int64(len(data))-off, 1+int64(seed>>8)%100_000)
				if evict {
					st.mu.Lock()
					clear(st.m)
					st.mu.Unlock()
				}
				got, err := tryRead(t.Context(), l, st, n+i, off, size)
				if err == nil && !bytes.Equal(got, data[off:off+size]) {
					err = errors.New("other bytes")
				}
				if err != nil {
					return fmt.Errorf("%s [%d,+%d): %w", e.Name, off, size, err)
				}
			}
			k++
		}
		if n += len(es); done {
			if k != len(m.entries) {
				return fmt.Errorf("%d entries, want %d", k, len(m.entries))
			}
			return nil
		}
	}
}
