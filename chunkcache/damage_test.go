package chunkcache

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/microsandbox/msb-fs/internal/db"
)

// cleanly and as if killed, the two ways in which a cache comes to be opened again.
func restarts(t *testing.T, test func(t *testing.T, h *home, restart func(*home) *home)) {
	t.Run("clean stop", func(t *testing.T) {
		test(t, open(t, t.TempDir(), Options{}), func(h *home) *home { return h.reopen(t, Options{}) })
	})
	t.Run("killed", func(t *testing.T) {
		test(t, open(t, t.TempDir(), Options{}), func(h *home) *home {
			if err := h.commits.flush(); err != nil {
				t.Fatal(err)
			}
			return h.killed(t, Options{})
		})
	})
}

func TestFlippedBit(t *testing.T) {
	restarts(t, func(t *testing.T, h *home, restart func(*home) *home) {
		const size = 1 << 20
		k, data := put(t, h.Cache, 1, size)
		other, otherData := put(t, h.Cache, 2, 3000)
		h.damage(t, k, 700_000)
		h = restart(h)
		if !want(t, h.Cache, k, data) {
			t.Error("a damaged chunk was served without being fetched again")
		}
		if want(t, h.Cache, k, data) || want(t, h.Cache, other, otherData) {
			t.Error("a good chunk was fetched again")
		}
		if s := h.Stats(); s.Refetched != 1 {
			t.Errorf("%+v", s)
		}
		h = restart(h)
		if want(t, h.Cache, k, data) || h.Stats().Refetched != 0 {
			t.Errorf("after another restart: %+v", h.Stats())
		}
	})
}

func TestASmallReadChecksOnlyItsBlocks(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	k, data := put(t, h.Cache, 1, 1<<20)
	h.damage(t, k, 700_000)
	h = h.reopen(t, Options{})
	p := make([]byte, 4096)
	if _, err := h.ReadAt(t.Context(), k, 1<<20, p, 4096, noFill); err != nil {
		t.Fatalf("a read of a block that is right: %v", err)
	}
	filled := false
	_, err := h.ReadAt(t.Context(), k, 1<<20, p, 699_000, func(context.Context) ([]byte, error) { filled = true; return data, nil })
	if err != nil || !filled {
		t.Fatalf("a read of the damaged block: filled %v, %v", filled, err)
	}
}

func TestLostData(t *testing.T) {
	restarts(t, func(t *testing.T, h *home, restart func(*home) *home) {
		k, data := put(t, h.Cache, 1, 5000)
		e, _ := h.find(&k)
		path := e.seg.f.Name()
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
		h = restart(h)
		if !want(t, h.Cache, k, data) {
			t.Error("served from nowhere")
		}
		h = restart(h)
		if err := os.Remove(filepath.Join(h.dir, "chunks", filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
		h = restart(h)
		want(t, h.Cache, k, data)
	})
}

func TestLostIndex(t *testing.T) {
	h := open(t, t.TempDir(), Options{segmentBytes: 2 << 20})
	type item struct {
		k    Key
		data []byte
	}
	var items []item
	for i, n := range append(sizes, 100, 64, 8, 1<<20, 70_000) {
		k, data := put(t, h.Cache, uint64(i), n)
		items = append(items, item{k, data})
	}
	h.damage(t, items[5].k, 40_000)
	h.close(t)
	if err := os.RemoveAll(filepath.Join(h.dir, "db")); err != nil {
		t.Fatal(err)
	}
	h = open(t, h.dir, Options{})
	if err := h.Rebuild(t.Context()); err != nil { // waits for the one that Open has started
		t.Fatal(err)
	}
	for i, it := range items {
		if !h.Has(it.k) {
			t.Errorf("chunk %d of %d bytes was not found", i, len(it.data))
		}
		if filled := want(t, h.Cache, it.k, it.data); filled != (i == 5) {
			t.Errorf("chunk %d: filled = %v", i, filled)
		}
	}
	h = h.reopen(t, Options{}) // what was checked has its checksums again
	for i, it := range items {
		if want(t, h.Cache, it.k, it.data) {
			t.Errorf("chunk %d was lost", i)
		}
	}
	if s := h.Stats(); s.Chunks != int64(len(items)) {
		t.Errorf("%+v", s)
	}
}

// What was appended but not yet indexed when the process was killed is found again.
func TestKilledBeforeTheIndexWasWritten(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	put(t, h.Cache, 1, 3000)
	if err := h.commits.flush(); err != nil {
		t.Fatal(err)
	}
	early := t.TempDir()
	if err := os.CopyFS(filepath.Join(early, "db"), os.DirFS(filepath.Join(h.dir, "db"))); err != nil {
		t.Fatal(err)
	}
	k, data := put(t, h.Cache, 2, 3000)
	big, bigData := put(t, h.Cache, 3, 1<<20)
	if err := os.CopyFS(filepath.Join(early, "chunks"), os.DirFS(filepath.Join(h.dir, "chunks"))); err != nil {
		t.Fatal(err)
	}
	h = open(t, early, Options{})
	if want(t, h.Cache, k, data) || want(t, h.Cache, big, bigData) {
		t.Error("what was on disk was fetched again")
	}
}

// A record forged inside a chunk is at worst a chunk with the right name.
func TestForgedRecord(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	victim, victimData := chunk(7, 500)
	_, inner := chunk(8, 500)
	forged := make([]byte, 64, 2000)
	header{key: victim, size: 500}.encode(forged)
	forged = append(forged, inner...)
	forged = append(make([]byte, 64), forged...)
	_, data := chunk(9, 3000)
	copy(data[8:], forged)
	k := sum256(data)
	if err := h.Put(t.Context(), k, data); err != nil {
		t.Fatal(err)
	}
	e, _ := h.find(&k)
	if _, err := e.seg.f.WriteAt(make([]byte, 64), e.off-64); err != nil { // its own header is lost: the scan looks inside
		t.Fatal(err)
	}
	for _, lost := range []bool{false, true} { // the database
		if lost {
			h.close(t)
			if err := os.RemoveAll(filepath.Join(h.dir, "db")); err != nil {
				t.Fatal(err)
			}
			h = open(t, h.dir, Options{})
		}
		if err := h.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !h.Has(victim) {
			t.Fatal("the forged record was not even looked at: this test tests nothing")
		}
		if !want(t, h.Cache, victim, victimData) {
			t.Error("forged bytes were served")
		}
		if err := h.Delete(victim); err != nil {
			t.Fatal(err)
		}
		if err := h.commits.flush(); err != nil {
			t.Fatal(err)
		}
		if !lost && want(t, h.Cache, k, data) {
			t.Error("dropping the forged chunk damaged the one around it")
		}
	}
}

// A record that was cut short when the process was killed shares no byte with what is written later.
func TestTornRecord(t *testing.T) {
	h := open(t, t.TempDir(), Options{})
	first, firstData := put(t, h.Cache, 1, 3000)
	if err := h.commits.flush(); err != nil {
		t.Fatal(err)
	}
	e, err := h.find(&first)
	if err != nil {
		t.Fatal(err)
	}
	torn, tornData := chunk(2, 9000)
	b := make([]byte, headerSize)
	header{key: torn, size: 9000}.encode(b)
	end := e.off - headerSize + recordLength(3000)
	if _, err := e.seg.f.WriteAt(append(b, tornData[:1000]...), end); err != nil {
		t.Fatal(err)
	}
	h = h.killed(t, Options{})
	later, laterData := put(t, h.Cache, 3, 20_000)
	if e2, err := h.find(&later); err != nil || e2.seg.id == e.seg.id {
		t.Errorf("appended to a torn file: %v", err)
	}
	h = h.killed(t, Options{})
	if !want(t, h.Cache, torn, tornData) {
		t.Error("a torn chunk was served")
	}
	if want(t, h.Cache, first, firstData) || want(t, h.Cache, later, laterData) {
		t.Error("a chunk was lost")
	}
}

// A database that fails, and data files that cannot be written, keep nobody from reading.
func TestReadsGoThroughWhenTheCacheFails(t *testing.T) {
	var told warnings
	h := open(t, t.TempDir(), Options{Hot: 1, Warn: told.add})
	k, data := put(t, h.Cache, 1, 5000)
	h.close(t)
	d, err := db.Open(filepath.Join(h.dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(d, filepath.Join(h.dir, "chunks"), Options{Warn: told.add})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil { // as bad as a database can get
		t.Fatal(err)
	}
	for range 3 {
		if !want(t, c, k, data) {
			t.Error("where from?")
		}
		if err := c.Put(t.Context(), k, data); err != nil {
			t.Error(err)
		}
	}
	if len(told.all) != 1 {
		t.Errorf("warnings: %v", told.all)
	}
	if err := c.Close(); err == nil {
		t.Error("close kept quiet about the database")
	}
	h = open(t, h.dir, Options{})
	if want(t, h.Cache, k, data) {
		t.Error("the chunk was lost")
	}
}
