package chunkcache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Usage is where the cache's disk space goes.
type Usage struct {
	Chunks      int64 // held
	Bytes       int64 // of them
	InUse       int64 // of Bytes, in chunks that are leased
	Reclaimable int64 // of Bytes, in chunks that Evict may drop
	DiskBytes   int64 // that the data files take
	Files       int   // data files
	Limit       int64 // MaxBytes; 0: none
	Free        int64 // of the file system
}

// Usage walks the index: about a second for a million chunks.
func (c *Cache) Usage(ctx context.Context) (Usage, error) {
	u := Usage{Limit: c.o.MaxBytes, Files: len(c.segs.list()), DiskBytes: c.segs.measure()}
	err := c.commits.flush()
	if err == nil {
		err = c.each(ctx, func(k Key, r record) error {
			u.Chunks++
			u.Bytes += int64(r.size)
			if c.leased(&k) {
				u.InUse += int64(r.size)
			}
			return nil
		})
	}
	if err == nil {
		u.Free, err = freeBytes(c.dir)
	}
	u.Reclaimable = u.Bytes - u.InUse
	if err != nil {
		return u, fmt.Errorf("usage of chunk cache: %w", err)
	}
	return u, nil
}

// DefaultLimit is half of the disk space that a cache in dir could take: what is free and what it takes already.
func DefaultLimit(dir string) (int64, error) {
	at := dir
	for { // before the first start the directory is not there
		free, err := freeBytes(at)
		if err == nil {
			return (free + diskBytes(dir)) / 2, nil
		}
		if !os.IsNotExist(err) || at == filepath.Dir(at) {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		at = filepath.Dir(at)
	}
}

// diskBytes is what the data files in dir take.
func diskBytes(dir string) (n int64) {
	names, _ := os.ReadDir(dir)
	for _, de := range names {
		if _, ok := segmentID(de.Name()); !ok {
			continue
		}
		if fi, err := de.Info(); err == nil {
			n += blocksOf(fi)
		}
	}
	return n
}

// blocksOf are the bytes of disk that a file takes, without its holes.
func blocksOf(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
