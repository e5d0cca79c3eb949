package layer

import (
	"testing"
)

// TestBring has chunks brought together from every form that can be read at random: what is asked for is stored, by one
// read, and what is there already is not read again.
func TestBring(t *testing.T) {
	items, tarball := sample(t)
	for _, f := range forms() {
		t.Run(f.name, func(t *testing.T) {
			blob, ann := f.pack(t, tarball)
			d := descriptor(blob, f.typ, ann)
			if f.mode == Streaming {
				d.DiffID = sum(tarball)
			}
			o := Options{Dir: t.TempDir(), Chunks: newStore()}
			first := open(t, d, &memBlob{data: blob}, o)
			if _, ok := first.Place(-1, 0); ok {
				t.Error("there is a place of entry -1")
			}
			if err := first.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}

			st, mb := newStore(), &memBlob{data: blob}
			l := open(t, d, mb, Options{Dir: o.Dir, Chunks: st})
			es := allEntries(t, l)
			mb.reads, mb.opens = 0, 0
			brought := 0
			for i, e := range es {
				var nums []int
				for off := int64(0); off < e.Size && regular(e.Mode); {
					c, err := l.Chunk(t.Context(), i, off)
					if err != nil {
						t.Fatal(err)
					}
					p, ok := l.Place(i, off)
					if ok && (p.Num != c.Index || p.Offset != c.Offset || p.Size != c.Size || p.From >= p.To || p.To > int64(len(blob))) {
						t.Fatalf("%s at %d: chunk %+v is at %+v", e.Name, off, c, p)
					}
					if ok {
						nums = append(nums, p.Num)
					}
					off = c.Offset + c.Size
				}
				before := mb.reads + mb.opens
				if err := l.Bring(t.Context(), nums); err != nil {
					t.Fatalf("%s: %v", e.Name, err)
				}
				if n := mb.reads + mb.opens - before; n > 1 {
					t.Errorf("%s came by %d reads", e.Name, n)
				}
				for _, n := range nums {
					if !st.Has(l.t.chunks[n].digest) {
						t.Errorf("chunk %d of %s is not there", n, e.Name)
					}
				}
				brought += len(nums)
				before = mb.reads + mb.opens
				if err := l.Bring(t.Context(), nums); err != nil || mb.reads+mb.opens != before {
					t.Errorf("%s was read again (%v)", e.Name, err)
				}
			}
			if brought == 0 {
				t.Error("nothing was brought")
			}
			readAll(t, l, st, items)
			if err := l.Bring(t.Context(), []int{-1, 1 << 30}); err != nil {
				t.Errorf("chunks that do not exist: %v", err)
			}
		})
	}
}

// TestBringRefusesWrongBytes has a blob lie: nothing of it is stored.
func TestBringRefusesWrongBytes(t *testing.T) {
	_, tarball := sample(t)
	for _, f := range forms() {
		if f.mode != LazyTOC {
			continue
		}
		blob, ann := f.pack(t, tarball)
		d := descriptor(blob, f.typ, ann)
		st := newStore()
		mb := &memBlob{data: append([]byte(nil), blob...)}
		l := open(t, d, mb, Options{Chunks: st})
		es := allEntries(t, l)
		for i, e := range es {
			p, ok := l.Place(i, 0)
			if !ok || p.Size < 1000 {
				continue
			}
			for k := p.From + 20; k < p.To-20; k++ {
				mb.data[k] ^= 0x55
			}
			if err := l.Bring(t.Context(), []int{p.Num}); err == nil {
				t.Errorf("%s: %s was taken though its bytes are wrong", f.name, e.Name)
			}
			if st.Has(l.t.chunks[p.Num].digest) || len(st.m) > 0 {
				t.Errorf("%s: wrong bytes of %s are stored", f.name, e.Name)
			}
			break
		}
	}
}
