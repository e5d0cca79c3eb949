package fs

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/layer"
)

// Small files that are read one after the other cost few waits, as their neighbours are guessed; what is guessed in vain stays within
// its bound.
func TestGuess(t *testing.T) {
	const files, size = 400, 10_000
	var es []item
	for i := range files {
		es = append(es, file(fmt.Sprintf("f%03d", i), string(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2))))
	}
	read := func(window int64, step int) (misses int64, fetched int64) {
		l := packedLayer{newLayer(es...), size}
		l.cache = newCache()
		tree, err := New(t.Context(), []Layer{l}, l.cache, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		<-tree.Sealed()
		if window > 0 {
			tree.Guess(func(int) int64 { return window })
		}
		p := make([]byte, size)
		for i := 0; i < files; i += step {
			id := mustWalk(t, tree, fmt.Sprintf("f%03d", i))
			if n, err := tree.ReadAt(context.Background(), id, p, 0); n != size || err != nil || p[0] != byte(i) {
				t.Fatalf("file %d: %d bytes, %v", i, n, err)
			}
			settled(t, tree)
		}
		return tree.Misses()[0], l.fetches.Load() * size
	}
	if misses, _ := read(0, 1); misses != files {
		t.Errorf("%d misses of %d reads without a guess", misses, files)
	}
	if misses, _ := read(1<<20, 1); misses > files/10 {
		t.Errorf("%d misses of %d reads in order", misses, files)
	}
	// Every 40th file: nothing that is guessed is wanted.
	if _, fetched := read(200_000, 40); fetched <= files/40*size || fetched > guessFloor+files/40*size*(guessShare+1)/guessShare {
		t.Errorf("%d bytes came for %d", fetched, files/40*size)
	}
}

// packedLayer is a layer whose files lie side by side in its blob, each of one size.
type packedLayer struct {
	*fakeLayer
	size int64
}

func (l packedLayer) Place(entry int, off int64) (layer.Place, bool) {
	p, ok := l.fakeLayer.Place(entry, off)
	p.From = int64(entry)*l.size + p.Offset
	p.To = p.From + p.Size
	return p, ok
}

// settled waits until nothing is being guessed.
func settled(t *testing.T, tree *Tree) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		tree.guesses.mu.Lock()
		jobs := tree.guesses.jobs
		tree.guesses.mu.Unlock()
		if jobs == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("guesses do not end")
		}
	}
}

// spanLayer is a layer of whose blob whole spans have to be read for whatever is in them.
type spanLayer struct {
	packedLayer
	span int64
}

func (l spanLayer) Place(entry int, off int64) (layer.Place, bool) {
	p, ok := l.packedLayer.Place(entry, off)
	p.From, p.To = p.From/l.span*l.span, (p.To+l.span-1)/l.span*l.span
	return p, ok
}

// A replay reads no span twice, however far apart in the profile its chunks are.
func TestReplayReadsSpansOnce(t *testing.T) {
	const files, size, span = 300, 10_000, 200_000
	var es []item
	for i := range files {
		es = append(es, file(fmt.Sprintf("f%03d", i), string(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2))))
	}
	l := spanLayer{packedLayer{newLayer(es...), size}, span}
	l.cache = newCache()
	tree, err := New(t.Context(), []Layer{l}, l.cache, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	<-tree.Sealed()
	var profile []Touch
	for i := range files { // first every span's first file, then every second, ...
		profile = append(profile, Touch{ID: mustWalk(t, tree, fmt.Sprintf("f%03d", i*20%files+i*20/files))})
	}
	read := int64(0)
	for _, r := range tree.Ranges(profile) {
		read += r.To - r.From
	}
	if read > files*size+span {
		t.Errorf("%d bytes are read of %d", read, files*size)
	}
	if err := tree.Replay(t.Context(), profile); err != nil {
		t.Fatal(err)
	}
	brought := map[int]int{}
	for _, nums := range l.brought {
		if !slices.IsSorted(nums) {
			t.Errorf("%v is not in order", nums)
		}
		for _, n := range nums {
			brought[n]++
		}
	}
	if len(brought) != files {
		t.Errorf("%d chunks are brought of %d", len(brought), files)
	}
}
