package cow

import (
	"fmt"
	"math/rand"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A large directory is listed in several goes: each name is in one of them, in order.
func TestFirstNames(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var all []listed
	for i := range 1000 {
		all = append(all, listed{uint64(1 + r.Intn(2000)), fmt.Sprint(i)}) // some meet
	}
	var got []listed
	for after := uint64(0); after < endOffset; {
		f := firstNames{max: 10, upTo: endOffset}
		for _, l := range all {
			if l.offset > after && l.offset <= f.upTo {
				f.add(l)
			}
		}
		f.sort()
		if len(f.names) > 30 {
			t.Errorf("%d names after %d", len(f.names), after)
		}
		got = append(got, f.names...)
		after = f.upTo
	}
	f := firstNames{max: len(all), upTo: endOffset, names: slices.Clone(all)}
	f.sort()
	if !slices.Equal(got, f.names) {
		t.Errorf("%d names came out of %d, or in another order", len(got), len(all))
	}
}

// What is kept of listings is bounded, however many directories are read.
func TestListingsAreBounded(t *testing.T) {
	var l listings
	for range maxListings * 2 {
		n := new(node)
		l.finish(l.begin(n), make([]listed, maxListed), 0, endOffset)
		if l.get(n, upperOffset) == nil {
			t.Error("the latest listing is not kept")
		}
	}
	sum := 0
	for e := l.used.Front(); e != nil; e = e.Next() {
		sum += len(e.Value.(*listing).names)
	}
	if sum > maxKept || sum != l.kept {
		t.Errorf("%d names are kept, counted as %d", sum, l.kept)
	}
}

// A directory that is listed in several goes shows every name that stays once, whatever comes and goes meanwhile, and what
// telldir said is still right afterwards.
func TestListedInGoes(t *testing.T) {
	m := mount(t, sampleLower(), Options{})
	m.most = 50
	m.remount()
	for i := range 1000 {
		must(t, os.WriteFile(m.path(fmt.Sprintf("etc/a rather long name of a file %d", i)), nil, 0o644))
	}
	for range 2 {
		at := openDir(t, unix.AT_FDCWD, m.path("etc"))
		seen := make(map[string]int)
		turn := 0
		eachEntry(t, at, func(name string) {
			seen[name]++
			if turn++; turn%7 == 0 {
				must(t, os.WriteFile(m.path(fmt.Sprintf("etc/new%d", turn)), nil, 0o644))
				must(t, os.Remove(m.path(fmt.Sprintf("etc/new%d", turn))))
			}
		})
		unix.Close(at)
		for i := range 1000 {
			if n := seen[fmt.Sprintf("a rather long name of a file %d", i)]; n != 1 {
				t.Fatalf("file %d is listed %d times", i, n)
			}
		}
		if len(seen) < 1004 {
			t.Errorf("%d names", len(seen))
		}
		m.remount()
	}
}
