package layer

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd[dir]*")
	st := newStore()
	a := makeTar(t, file("own", text(1, 1000)), file("shared", text(2, 1000)))
	b := makeTar(t, file("other", text(3, 1000)), file("shared", text(2, 1000)))
	for _, blob := range [][]byte{a, b} {
		l := open(t, descriptor(blob, typeTar, nil), &memBlob{data: blob}, Options{Dir: dir, Chunks: st})
		if <-l.Done(); l.Err() != nil {
			t.Fatal(l.Err())
		}
	}
	left := func() int { fs, _ := os.ReadDir(dir); return len(fs) }
	if len(st.m) != 3 || left() != 4 {
		t.Fatalf("%d chunks, %d files", len(st.m), left())
	}
	for i, want := range []int{2, 2} {
		if err := Remove(dir, sum(a), st); err != nil {
			t.Fatal(err)
		}
		if len(st.m) != want || left() != 2 {
			t.Errorf("removed %d times: %d chunks, %d files", i+1, len(st.m), left())
		}
	}
	if err := Remove(dir, sum(b), st); err != nil || len(st.m) != 0 || left() != 0 {
		t.Errorf("%v: %d chunks, %d files", err, len(st.m), left())
	}
	if err := Remove(dir, "sha256:../../x", st); err == nil {
		t.Error("a name that is no digest")
	}
}
