package fs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/layer"
	"golang.org/x/sys/unix"
)

// fakeLayer is a layer in memory whose entries are shown step by step.
type fakeLayer struct {
	trouble atomic.Pointer[error] // of the stream, for now
	entries []layer.Entry
	data    map[int][]byte
	chunk   int64 // chunk size

	mu      sync.Mutex
	shown   int
	ended   bool
	err     error
	changed chan struct{}

	fetches atomic.Int64

	cache   Cache   // where Bring puts what it brings
	brought [][]int // what Bring was asked for; guarded by mu
}

// item is one tar entry of a test's layer.
type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1e9, 5e8)}, body}
}

func dir(name string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1.1e9, 0)}, ""}
}

func symlink(name, to string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777, ModTime: time.Unix(1.2e9, 0)}, ""}
}

func hardlink(name, to string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

func (i item) mode(m int64) item     { i.Mode = m; return i }
func (i item) owner(u, g int) item   { i.Uid, i.Gid = u, g; return i }
func (i item) at(sec, ns int64) item { i.ModTime = time.Unix(sec, ns); return i }
func (i item) xattr(k, v string) item {
	recs := map[string]string{"SCHILY.xattr." + k: v}
	for k, v := range i.PAXRecords {
		recs[k] = v
	}
	i.PAXRecords = recs
	return i
}

func device(name string, typ byte, major, minor int64) item {
	return item{tar.Header{Name: name, Typeflag: typ, Devmajor: major, Devminor: minor, Mode: 0o660, ModTime: time.Unix(1.3e9, 0)}, ""}
}

// newLayer makes a layer of items, all of it shown.
func newLayer(items ...item) *fakeLayer {
	l := streamLayer(items...)
	l.show(len(l.entries))
	l.end()
	return l
}

// streamLayer makes a layer of items, none of them shown yet.
func streamLayer(items ...item) *fakeLayer {
	l := &fakeLayer{data: map[int][]byte{}, chunk: 1 << 16, changed: make(chan struct{})}
	dirs := map[string]bool{"": true}
	for _, it := range items {
		name := strings.Trim(path.Clean("/"+it.Name), "/")
		e := layer.Entry{Name: name, UID: uint32(it.Uid), GID: uint32(it.Gid), Kind: layer.Plain,
			Mtime: layer.Time{Sec: it.ModTime.Unix(), Nsec: uint32(it.ModTime.Nanosecond())}}
		for k, v := range it.PAXRecords {
			e.Xattrs = append(e.Xattrs, layer.Xattr{Name: strings.TrimPrefix(k, "SCHILY.xattr."), Value: []byte(v)})
		}
		perm := uint32(it.Mode & 0o7777)
		base := path.Base(name)
		switch {
		case base == ".wh..wh..opq":
			e = layer.Entry{Name: dirOf(name), Kind: layer.Opaque}
		case strings.HasPrefix(base, ".wh."):
			e = layer.Entry{Name: path.Join(dirOf(name), base[4:]), Kind: layer.Whiteout}
		default:
			switch it.Typeflag {
			case tar.TypeReg:
				e.Mode, e.Size = perm|syscall.S_IFREG, int64(len(it.body))
			case tar.TypeDir:
				e.Mode = perm | syscall.S_IFDIR
			case tar.TypeSymlink:
				e.Mode, e.Linkname, e.Size = syscall.S_IFLNK|0o777, it.Linkname, int64(len(it.Linkname))
			case tar.TypeLink:
				e = layer.Entry{Name: name, Kind: layer.HardLink, Linkname: strings.Trim(path.Clean("/"+it.Linkname), "/")}
			case tar.TypeChar, tar.TypeBlock:
				e.Mode, e.Rdev = perm|syscall.S_IFCHR, uint32(unix.Mkdev(uint32(it.Devmajor), uint32(it.Devminor)))
				if it.Typeflag == tar.TypeBlock {
					e.Mode = perm | syscall.S_IFBLK
				}
			case tar.TypeFifo:
				e.Mode = perm | syscall.S_IFIFO
			}
		}
		at := e.Name
		if e.Kind != layer.Opaque {
			at = dirOf(at)
		}
		for i, parents := 0, strings.Split(at, "/"); i < len(parents); i++ {
			if d := strings.Join(parents[:i+1], "/"); !dirs[d] {
				dirs[d] = true
				l.entries = append(l.entries, layer.Entry{Name: d, Kind: layer.Implicit, Mode: syscall.S_IFDIR | 0o755})
			}
		}
		if e.Kind == layer.Plain || e.Kind == layer.HardLink {
			dirs[e.Name] = e.Mode&syscall.S_IFMT == syscall.S_IFDIR
		}
		if it.body != "" {
			l.data[len(l.entries)] = []byte(it.body)
		}
		l.entries = append(l.entries, e)
	}
	return l
}

func dirOf(p string) string {
	if d := path.Dir(p); d != "." {
		return d
	}
	return ""
}

// show lets the first n entries pass by.
func (l *fakeLayer) show(n int) {
	l.mu.Lock()
	l.shown = max(l.shown, n)
	l.wake()
	l.mu.Unlock()
}

func (l *fakeLayer) end()           { l.fail(nil) }
func (l *fakeLayer) fail(err error) { l.mu.Lock(); l.ended, l.err = true, err; l.wake(); l.mu.Unlock() }
func (l *fakeLayer) wake()          { close(l.changed); l.changed = make(chan struct{}) }

func (l *fakeLayer) Entries(ctx context.Context, from int) ([]layer.Entry, bool, error) {
	for {
		l.mu.Lock()
		shown, ended, err, changed := l.shown, l.ended, l.err, l.changed
		l.mu.Unlock()
		if shown > from || ended {
			if ended && err != nil {
				return nil, false, err
			}
			return l.entries[from:shown], ended, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

func (l *fakeLayer) Trouble() error {
	if err := l.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *fakeLayer) Chunk(_ context.Context, entry int, off int64) (layer.Chunk, error) {
	d := l.data[entry]
	if off < 0 || off >= int64(len(d)) {
		return layer.Chunk{}, errors.New("no such chunk")
	}
	at := off / l.chunk * l.chunk
	b := d[at:min(at+l.chunk, int64(len(d)))]
	return layer.Chunk{Digest: sha256.Sum256(b), Offset: at, Size: int64(len(b)), Index: entry<<16 | int(at/l.chunk)}, nil
}

func (l *fakeLayer) Fetch(_ context.Context, c layer.Chunk) ([]byte, error) {
	l.fetches.Add(1)
	return l.data[c.Index>>16][c.Offset : c.Offset+c.Size], nil
}

func (l *fakeLayer) Place(entry int, off int64) (p layer.Place, ok bool) {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	c, err := l.Chunk(context.Background(), entry, off)
	if err != nil || !ended {
		return layer.Place{}, false
	}
	at := int64(entry)<<20 + c.Offset
	return layer.Place{Num: c.Index, Offset: c.Offset, Size: c.Size, From: at, To: at + c.Size}, true
}

func (l *fakeLayer) Bring(ctx context.Context, nums []int) error {
	l.mu.Lock()
	l.brought = append(l.brought, slices.Clone(nums))
	l.mu.Unlock()
	for _, n := range nums {
		c, err := l.Chunk(ctx, n>>16, int64(n&0xffff)*l.chunk)
		if err != nil {
			return err
		}
		var one [1]byte
		if _, err := l.cache.ReadAt(ctx, c.Digest, c.Size, one[:], 0, func(ctx context.Context) ([]byte, error) { return l.Fetch(ctx, c) }); err != nil {
			return err
		}
	}
	return nil
}

// fakeCache keeps chunks in memory.
type fakeCache struct {
	mu     sync.Mutex
	chunks map[[32]byte][]byte
}

func newCache() *fakeCache { return &fakeCache{chunks: map[[32]byte][]byte{}} }

func (c *fakeCache) Has(k [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.chunks[k]
	return ok
}

func (c *fakeCache) ReadAt(ctx context.Context, k [32]byte, _ int64, p []byte, off int64, fill func(context.Context) ([]byte, error)) (int, error) {
	c.mu.Lock()
	b, ok := c.chunks[k]
	c.mu.Unlock()
	if !ok {
		var err error
		if b, err = fill(ctx); err != nil {
			return 0, err
		}
		if sha256.Sum256(b) != k {
			return 0, errors.New("wrong digest")
		}
		c.mu.Lock()
		c.chunks[k] = bytes.Clone(b)
		c.mu.Unlock()
	}
	return copy(p, b[off:]), nil
}

// newTree makes a tree of layers, bottom first, that is closed with the test.
func newTree(t testing.TB, o Options, layers ...*fakeLayer) *Tree {
	t.Helper()
	cache := newCache()
	ls := make([]Layer, len(layers))
	for i := range layers {
		layers[i].cache, ls[i] = cache, layers[i]
	}
	tree, err := New(context.Background(), ls, cache, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// sealedTree is newTree waiting until it is sealed.
func sealedTree(t testing.TB, o Options, layers ...*fakeLayer) *Tree {
	t.Helper()
	tree := newTree(t, o, layers...)
	<-tree.Sealed()
	return tree
}

// dump lists a tree as "path mode..." lines, sorted.
func dump(t testing.TB, tree *Tree) []string {
	t.Helper()
	ctx := context.Background()
	var out []string
	names := map[ID][]string{}
	var walk func(p string, id ID, a Attr)
	walk = func(p string, id ID, a Attr) {
		line := describe(t, tree, p, id, a)
		out = append(out, line)
		if !a.IsDir() {
			names[id] = append(names[id], p)
			return
		}
		prev := ""
		err := tree.ReadDir(ctx, id, 0, func(name string, kid ID, ka Attr) bool {
			if name <= prev {
				t.Errorf("%s: %q after %q", p, name, prev)
			}
			prev = name
			lid, la, err := tree.Lookup(ctx, id, name)
			if err != nil || lid != kid || la != ka {
				t.Errorf("lookup %s/%s: %d %+v, %v; readdir says %d %+v", p, name, lid, la, err, kid, ka)
			}
			walk(p+"/"+name, kid, ka)
			return true
		})
		if err != nil {
			t.Errorf("readdir %s: %v", p, err)
		}
	}
	a, err := tree.Attr(ctx, Root)
	if err != nil {
		t.Fatal(err)
	}
	walk("", Root, a)
	for _, n := range names {
		if len(n) > 1 {
			sort.Strings(n)
			out = append(out, "linked: "+strings.Join(n, " "))
		}
	}
	sort.Strings(out)
	return out
}
