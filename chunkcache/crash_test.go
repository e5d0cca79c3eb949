package chunkcache

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/db"
)

// crashChild is set for the process that TestKilledAtAnyMoment kills: the directory it works in. crashSeed makes its
// doings differ.
const (
	crashChild  = "MSB_CHUNKCACHE_CRASH_DIR"
	crashSeed   = "MSB_CHUNKCACHE_CRASH_SEED"
	crashRounds = "MSB_CHUNKCACHE_CRASHES"
)

const crashChunks = 1500

// crashChunk is the chunk that parent and child know by a number.
func crashChunk(i int) (Key, []byte) {
	n := 1 + i*7919%12000
	if i%100 == 0 {
		n = 100_000 + i*100
	}
	return chunk(uint64(i), n)
}

// TestKilledAtAnyMoment kills a process that puts, reads, deletes and compacts at random moments, also while it
// recovers from the kill before, and looks at what it left: every chunk it had acknowledged is there, and right. It does
// so 8 times; MSB_CHUNKCACHE_CRASHES=200 go test -run KilledAtAnyMoment does it more often.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 8
	if s := os.Getenv(crashRounds); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(uint64(rounds), uint64(time.Now().UnixNano())))
	known := make(map[int]bool) // acknowledged and not deleted
	kills, indexed := 0, 0
	for round := range rounds {
		for range 1 + r.IntN(3) {
			kills++
			killWriter(t, dir, kills, time.Duration(20+r.IntN(250))*time.Millisecond, known)
		}
		h := open(t, dir, Options{})
		for i := range crashChunks {
			k, data := crashChunk(i)
			if !h.Has(k) {
				if known[i] {
					t.Errorf("round %d: chunk %d was acknowledged and is gone", round, i)
				}
				continue
			}
			indexed++
			if filled := want(t, h.Cache, k, data); filled && known[i] {
				t.Errorf("round %d: chunk %d was acknowledged and is wrong on disk", round, i)
			}
			known[i] = true
		}
		if v, err := h.Verify(t.Context()); err != nil || v.Wrong != 0 {
			t.Errorf("round %d: %+v, %v", round, v, err)
		}
		h.close(t)
		if t.Failed() {
			return
		}
	}
	if indexed == 0 {
		t.Error("nothing was ever written: this test tests nothing")
	}
	t.Logf("%d kills, %d chunks read back", kills, indexed)
}

// killWriter starts the child, kills it after d, and notes in known what it has acknowledged. Where seed is odd d begins
// when the child has begun to write, however slow the machine is; else when it is started, so that its recovery is hit.
func killWriter(t *testing.T, dir string, seed int, d time.Duration, known map[int]bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashChild+"="+dir, crashSeed+"="+strconv.Itoa(seed))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start := d
	if seed%2 == 1 {
		start = time.Minute
	}
	kill := time.AfterFunc(start, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); first = false {
		if first && seed%2 == 1 {
			kill.Reset(d)
		}
		var what string
		var i int
		if _, err := fmt.Sscanf(lines.Text(), "%s %d", &what, &i); err != nil {
			continue // cut short
		}
		known[i] = what == "put"
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("the child ended by itself: %v", err)
	}
}

// crashWriter is the child. It says what it is about to delete, and what it has put.
func crashWriter() int {
	dir := os.Getenv(crashChild)
	seed, _ := strconv.Atoi(os.Getenv(crashSeed))
	d, err := db.Open(filepath.Join(dir, "db"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	c, err := Open(d, filepath.Join(dir, "chunks"), Options{segmentBytes: 4 << 20, Hot: 256})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	lease := c.Lease()
	for i := range crashChunks {
		k, _ := crashChunk(i)
		lease.Add(k)
	}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(seed), uint64(w)))
			for err := error(nil); err == nil; {
				i := r.IntN(crashChunks/3)*3 + w // workers keep out of each other's way, so that what they say is in order
				k, data := crashChunk(i)
				switch r.IntN(10) {
				case 0, 1, 2:
					fmt.Printf("delete %d\n", i)
					err = c.Delete(k)
				case 3:
					_, err = c.ReadAt(ctx, k, int64(len(data)), make([]byte, 1), 0, func(context.Context) ([]byte, error) { return data, nil })
				default:
					if err = c.Put(ctx, k, data); err == nil {
						fmt.Printf("put %d\n", i)
					}
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		})
	}
	wg.Go(func() {
		for {
			if _, err := c.Evict(ctx, 0); err != nil { // all is leased: this only compacts
				fmt.Fprintln(os.Stderr, err)
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	wg.Wait()
	return 1
}
