package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What has been kept of a blob is there for the next daemon, as far as it is sound.
func TestPartialSurvives(t *testing.T) {
	const size = 3*partialBlock + 1000
	digest := "sha256:" + strings.Repeat("a", 64)
	data := []byte(noise(size))
	for _, tt := range []struct {
		name   string
		keep   int
		damage func(t *testing.T, path string)
		want   int64
	}{
		{"nothing", 0, nil, 0},
		{"half a block", partialBlock / 2, nil, 0},
		{"two blocks and a half", partialBlock * 5 / 2, nil, 2 * partialBlock},
		{"all", size, nil, size},
		{"a wrong byte", size, func(t *testing.T, path string) { poke(t, path+".part", partialBlock+5) }, partialBlock},
		{"a wrong byte at the end", size, func(t *testing.T, path string) { poke(t, path+".part", size-1) }, 3 * partialBlock},
		{"a wrong sum", size, func(t *testing.T, path string) { poke(t, path+".crc", 4) }, partialBlock},
		{"data cut", size, func(t *testing.T, path string) { cut(t, path+".part", partialBlock+7) }, partialBlock},
		{"sums cut", size, func(t *testing.T, path string) { cut(t, path+".crc", 9) }, 2 * partialBlock},
		{"no sums", size, func(t *testing.T, path string) { os.Remove(path + ".crc") }, 0},
		{"more than there should be", size, func(t *testing.T, path string) {
			f, _ := os.OpenFile(path+".part", os.O_APPEND|os.O_WRONLY, 0)
			f.Write(data)
			f.Close()
		}, size},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ps := &partials{dir: t.TempDir()}
			p := ps.get(digest, size)
			for off := 0; off < tt.keep; { // in pieces that know nothing of blocks
				n := min(100_000, tt.keep-off)
				p.append(data[off:off+n], int64(off))
				off += n
			}
			p.append([]byte("elsewhere"), int64(tt.keep)+1)
			if got := make([]byte, size); p.read(got, 0) != tt.keep || !bytes.Equal(got[:tt.keep], data[:tt.keep]) {
				t.Error("what was kept reads otherwise")
			}
			ps.release(digest, p)
			if tt.damage != nil {
				tt.damage(t, ps.path(digest))
			}
			p = ps.get(digest, size)
			got := make([]byte, size)
			if n := p.read(got, 0); int64(n) != tt.want || !bytes.Equal(got[:n], data[:n]) {
				t.Errorf("%d sound bytes, want %d", n, tt.want)
			}
			p.append(data[tt.want:], tt.want) // and on
			if n := p.read(got, 0); n != size || !bytes.Equal(got, data) {
				t.Errorf("%d bytes in the end", n)
			}
			ps.release(digest, p)
			if err := ps.remove(digest); err != nil {
				t.Error(err)
			}
			if left, _ := os.ReadDir(ps.dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func poke(t *testing.T, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func TestPartialGrowsOld(t *testing.T) {
	ps := &partials{dir: t.TempDir()}
	for _, c := range []string{"a", "b"} {
		digest := "sha256:" + strings.Repeat(c, 64)
		p := ps.get(digest, 10)
		p.append([]byte("0123456789"), 0)
		ps.release(digest, p)
	}
	old := time.Now().Add(-partialAge - time.Hour)
	if err := os.Chtimes(ps.path("sha256:"+strings.Repeat("a", 64))+".part", old, old); err != nil {
		t.Fatal(err)
	}
	if err := ps.cleanUp(time.Now()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(ps.dir, "*")); len(left) != 2 || !strings.Contains(left[0], "bbb") {
		t.Errorf("left: %v", left)
	}
}
