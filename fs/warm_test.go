package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/chunkcache"
	"github.com/microsandbox/msb-fs/internal/db"
	"github.com/microsandbox/msb-fs/layer"
	"golang.org/x/sys/unix"
)

var (
	warmDir  = flag.String("warm.dir", "", "a directory tree on a local disk to compare a mount of the same tree with")
	warmRuns = flag.Int("warm.runs", 5, "alternating runs of each command")
	warmKeep = flag.Duration("warm.keep", 0, "keep the mount for so long, to look at it by hand")
)

// hostLayer is a layer made of a directory on disk, whose chunks all go into a cache.
type hostLayer struct {
	entries []layer.Entry
	chunks  [][]layer.Chunk
	paths   []string
}

func (l *hostLayer) Entries(_ context.Context, from int) ([]layer.Entry, bool, error) {
	return l.entries[from:], true, nil
}

func (l *hostLayer) Chunk(_ context.Context, entry int, off int64) (layer.Chunk, error) {
	return l.chunks[entry][off/layer.ChunkSize], nil
}

func (l *hostLayer) Fetch(_ context.Context, c layer.Chunk) ([]byte, error) {
	f, err := os.Open(l.paths[c.Index])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, c.Size)
	_, err = f.ReadAt(b, c.Offset)
	return b, err
}

func (l *hostLayer) Place(int, int64) (layer.Place, bool) { return layer.Place{}, false }

func (l *hostLayer) Bring(context.Context, []int) error { return nil }

// add reads one file of the directory.
func (l *hostLayer) add(root, p string, put func([32]byte, []byte) error) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return err
	}
	if rel == "." {
		rel = ""
	}
	e := layer.Entry{Name: rel, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: uint32(st.Rdev), Size: st.Size, Mtime: layer.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}}
	var chunks []layer.Chunk
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if e.Linkname, err = os.Readlink(p); err != nil {
			return err
		}
	case unix.S_IFREG:
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := make([]byte, min(layer.ChunkSize, st.Size))
		for off := int64(0); off < st.Size; {
			n, err := io.ReadFull(f, buf[:min(int64(len(buf)), st.Size-off)])
			if err != nil {
				return err
			}
			sum := sha256.Sum256(buf[:n])
			if err := put(sum, buf[:n]); err != nil {
				return err
			}
			chunks = append(chunks, layer.Chunk{Digest: sum, Offset: off, Size: int64(n), Index: len(l.entries)})
			off += int64(n)
		}
	}
	l.entries, l.chunks, l.paths = append(l.entries, e), append(l.chunks, chunks), append(l.paths, p)
	return nil
}

// warmTree is a tree of *warmDir whose chunks are all in a cache on disk.
func warmTree(b testing.TB) *Tree {
	b.Helper()
	if *warmDir == "" {
		b.Skip("needs -warm.dir, a directory tree to compare with")
	}
	home, err := os.MkdirTemp(filepath.Dir(filepath.Clean(*warmDir)), "warm-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(home) })
	kv, err := db.Open(filepath.Join(home, "db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { kv.Close() })
	cache, err := chunkcache.Open(kv, filepath.Join(home, "chunks"), chunkcache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cache.Close() })
	l := new(hostLayer)
	put := func(k [32]byte, data []byte) error { return cache.Put(context.Background(), k, bytes.Clone(data)) }
	err = filepath.WalkDir(*warmDir, func(p string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return l.add(*warmDir, p, put)
	})
	if err != nil {
		b.Fatal(err)
	}
	tree, err := New(context.Background(), []Layer{l}, cache, Options{File: filepath.Join(home, "tree")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tree.Close() })
	<-tree.Sealed()
	return tree
}

// BenchmarkWarm runs commands over a mount and over the directory that it is made of, in turns, and reports the ratio of
// the medians. "first" is with the page cache dropped before each run.
func BenchmarkWarm(b *testing.B) {
	tree := warmTree(b)
	ours := mountTree(b, tree)
	if *warmKeep > 0 {
		fmt.Println("mounted on", ours)
		time.Sleep(*warmKeep)
	}
	for _, c := range []struct {
		name string
		run  func(dir string) error
	}{
		{"find", sh(`find . -printf %s >/dev/null`)},
		{"tar", sh(`tar c . | cat >/dev/null`)},
		{"grep", sh(`grep -r nothinglikethis . ; true`)},
		{"rg", sh(`rg -uuu nothinglikethis . ; true`)},
		{"du", sh(`du -s . >/dev/null`)},
		{"ls-lR", sh(`ls -lR . >/dev/null`)},
		{"python", sh(`python3 -B -c 'import sys; sys.path.insert(0, "python"); import asyncio, email.mime.multipart, xml.dom.minidom, http.server, unittest, multiprocessing, sqlite3, ctypes, concurrent.futures, distutils.core' 2>/dev/null; true`)},
		{"git", sh(gitStatus)},
		{"random4k", randomReads},
		{"seq1g", sequentialRead},
	} {
		for _, drop := range []bool{false, true} {
			name := c.name
			if drop {
				name += "/first"
			}
			b.Run(name, func(b *testing.B) {
				for range b.N {
					o, t := alternate(b, drop, func() error { return c.run(ours) }, func() error { return c.run(*warmDir) })
					b.ReportMetric(o.Seconds(), "ours-s")
					b.ReportMetric(t.Seconds(), "disk-s")
					b.ReportMetric(o.Seconds()/t.Seconds(), "ratio")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// gitStatus keeps each tree's index elsewhere, so that it has the inode numbers and times of that tree.
const gitStatus = `test -d repo || exit 0; cd repo; export GIT_INDEX_FILE="${TMPDIR:-/tmp}/index-$(pwd | tr / _)"; test -e "$GIT_INDEX_FILE" || cp .git/index "$GIT_INDEX_FILE"; git -c safe.directory='*' status >/dev/null`

func sh(script string) func(string) error {
	return func(dir string) error {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	}
}

// alternate runs a and b in turns and returns their median times.
func alternate(t testing.TB, drop bool, a, b func() error) (time.Duration, time.Duration) {
	t.Helper()
	var times [2][]time.Duration
	for i := range *warmRuns + 1 {
		for k, f := range []func() error{a, b} {
			if drop {
				unix.Sync()
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
					t.Skip("needs root, to drop the page cache")
				}
			}
			start := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			if i > 0 { // the first fills the caches
				times[k] = append(times[k], time.Since(start))
			}
		}
	}
	slices.Sort(times[0])
	slices.Sort(times[1])
	return times[0][len(times[0])/2], times[1][len(times[1])/2]
}

// randomReads reads 4 KiB at random places of the big file from four threads.
func randomReads(dir string) error {
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[w] = func() error {
				fd, err := unix.Open(filepath.Join(dir, "big"), unix.O_RDONLY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				_ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)
				p, x := make([]byte, 4096), uint64(w+1)
				for range 20000 {
					x = x*6364136223846793005 + 1442695040888963407
					if _, err := unix.Pread(fd, p, int64(x>>33%(1<<18))*4096); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	wg.Wait()
	return slices.MaxFunc(errs, func(a, b error) int {
		switch {
		case a == nil && b != nil:
			return -1
		case a != nil && b == nil:
			return 1
		}
		return 0
	})
}

func sequentialRead(dir string) error {
	fd, err := syscall.Open(filepath.Join(dir, "big"), syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	p := make([]byte, 1<<20)
	for {
		n, err := syscall.Read(fd, p)
		if n <= 0 {
			return err
		}
	}
}
