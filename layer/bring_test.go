package layer

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"
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

// slowStore is a store that takes nothing before it is told so.
type slowStore struct {
	*memStore
	gate chan struct{}
}

func (s *slowStore) Put(ctx context.Context, key [32]byte, data []byte) error {
	select {
	case <-s.gate:
		return s.memStore.Put(ctx, key, data)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestFetchJoinsBring has somebody need a chunk that is being brought: its bytes are here already and are not fetched again. Who brings
// it gives up, and the chunk comes all the same.
func TestFetchJoinsBring(t *testing.T) {
	var items []item
	for i := range 3 {
		items = append(items, file(fmt.Sprint(i), noise(uint64(i), 100_000)))
	}
	for _, f := range forms() {
		if f.mode != LazyTOC {
			continue
		}
		for _, givesUp := range []bool{false, true} {
			blob, ann := f.pack(t, makeTar(t, items...))
			st, mb := &slowStore{newStore(), make(chan struct{})}, &memBlob{data: blob}
			l := open(t, descriptor(blob, f.typ, ann), mb, Options{Chunks: st})
			var nums []int
			var last Chunk
			for i := range allEntries(t, l) {
				if p, ok := l.Place(i, 0); ok && p.Size == 100_000 {
					nums = append(nums, p.Num)
					last, _ = l.Chunk(t.Context(), i, 0)
				}
			}
			mb.reads = 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			brought := make(chan error, 1)
			go func() { brought <- l.Bring(ctx, nums) }()
			flying(t, l, func(fl *flight) bool { return fl.landed })
			got := make(chan []byte, 1)
			go func() {
				data, err := l.Fetch(t.Context(), last)
				if err != nil {
					t.Error(err)
				}
				got <- data
			}()
			flying(t, l, func(fl *flight) bool { return fl.wanted[last.Index] })
			reads := 1
			if givesUp {
				cancel()
				reads = 2
			}
			if !givesUp {
				close(st.gate)
			}
			if err := <-brought; (err != nil) != givesUp {
				t.Errorf("%s, giving up %v: %v", f.name, givesUp, err)
			}
			if givesUp {
				close(st.gate)
			}
			if data := <-got; !bytes.Equal(data, noise(2, 100_000)) {
				t.Errorf("%s: %d other bytes", f.name, len(data))
			}
			if mb.reads != reads {
				t.Errorf("%s, giving up %v: %d reads", f.name, givesUp, mb.reads)
			}
		}
	}
}

// flying waits until the only flight of l is as it should be.
func flying(t *testing.T, l *Layer, is func(*flight) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		ok := len(l.flights) > 0 && is(l.flights[0])
		l.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing flies as it should")
		}
	}
}
