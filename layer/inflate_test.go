package layer

import (
	"bytes"
	"io"
	"testing"
)

// TestSpans inflates from every span of every form that has them: the tar's bytes must come, and no two spans may be much
// farther apart than asked for.
func TestSpans(t *testing.T) {
	_, tarball := sample(t)
	for _, f := range forms() {
		if f.typ == typeTar || f.mode != Streaming || f.name == "zstd-one" || f.name == "zstd-7" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			blob, _ := f.pack(t, tarball)
			var inf inflater = newGzipReader(bytes.NewReader(blob), true)
			if f.typ == typeZstd {
				z, err := newZstdReader(bytes.NewReader(blob), span{}, true)
				if err != nil {
					t.Fatal(err)
				}
				defer z.Close()
				inf = z
			}
			got, err := io.ReadAll(inf)
			if err != nil || !bytes.Equal(got, tarball) {
				t.Fatalf("inflates to %d bytes of %d: %v", len(got), len(tarball), err)
			}
			last := int64(0)
			spans := append(inf.spans(), span{uoff: int64(len(tarball))})
			for _, s := range spans {
				// A deflate block of zeros may be 8 MiB long.
				if s.uoff-last > 5*spanLen/2 && !zero(tarball[last+spanLen:s.uoff-spanLen]) {
					t.Errorf("no span between %d and %d", last, s.uoff)
				}
				last = s.uoff
			}
			spans[len(spans)-1].off = int64(len(blob))
			for k, s := range spans[:len(spans)-1] {
				// No more of the blob than a run has.
				piece := blob[s.off:min(spans[k+1].off+slack, int64(len(blob)))]
				var r io.Reader = resumeGzip(bytes.NewReader(piece), s)
				if f.typ == typeZstd {
					z, err := newZstdReader(bytes.NewReader(piece), s, false)
					if err != nil {
						t.Fatal(err)
					}
					defer z.Close()
					r = z
				}
				want := tarball[s.uoff:spans[k+1].uoff]
				got := make([]byte, len(want))
				if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("span at %d (bit %d, tar %d) gives other bytes: %v", s.off, s.bit, s.uoff, err)
				}
			}
		})
	}
}
