package fs

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// A damaged tree file is refused, or gives wrong answers: it never ends the process.
func TestDamagedFile(t *testing.T) {
	l := newLayer(file("a/b", "1").xattr("user.k", "v"), hardlink("c", "a/b"), symlink("s", "a"), dir("d"), file("d/x", "y"))
	path := filepath.Join(t.TempDir(), "tree")
	sealedTree(t, Options{File: path}, l)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseFlat(aligned(good)); err != nil {
		t.Fatal(err)
	}
	header := int(unsafe.Sizeof(flatHeader{}))
	rapid.Check(t, func(rt *rapid.T) {
		b := aligned(good)
		for range rapid.IntRange(1, 8).Draw(rt, "bytes") {
			b[rapid.IntRange(header, len(b)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "value")
		}
		f, err := parseFlat(b)
		if err != nil {
			rt.Fatal("the header was not touched:", err)
		}
		tree := &Tree{layers: []Layer{l}, cache: newCache(), ctx: context.Background()}
		tree.flat.Store(f)
		tree.fetches.New = func() any { return new(Tree).newFetch() }
		for id := ID(1 << 24); id < 1<<24+12; id++ {
			use(tree, id)
		}
		use(tree, Root)
	})
	for n := range header + 1 {
		b := aligned(good[:n])
		if n == 0 {
			continue
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openFlat(path, 1); err == nil {
			t.Fatalf("a file cut to %d bytes was taken", n)
		}
	}
}

// aligned copies b to where a mapping could be.
func aligned(b []byte) []byte {
	words := make([]uint64, (len(b)+7)/8+1)
	out := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(b))
	copy(out, b)
	return out
}

// use asks a tree everything about one file; only that it returns matters.
func use(t *Tree, id ID) {
	ctx := context.Background()
	_, _ = t.Attr(ctx, id)
	_, _, _ = t.Lookup(ctx, id, "b")
	_ = t.ReadDir(ctx, id, 0, func(string, ID, Attr) bool { return true })
	_, _ = t.Readlink(ctx, id)
	_, _ = t.Getxattr(ctx, id, "user.k")
	_, _ = t.Listxattr(ctx, id)
	_ = t.Parent(id)
	_ = t.Path(id)
	_, _, _ = t.Walk(ctx, "a/../s/b", true)
}
