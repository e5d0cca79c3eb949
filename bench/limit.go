package main

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Facts are what is true of an image whoever starts it: a line of images.jsonl.
type Facts struct {
	Image   string  `json:"image"`
	About   string  `json:"about"`
	Layers  int     `json:"layers"`
	Bytes   int64   `json:"bytes"`          // of all layers, as gzip
	Native  float64 `json:"native_seconds"` // until it is ready on a local file system with everything in memory, the fastest of five
	Pages   int64   `json:"touched_bytes"`  // in pages of the image's files that a start reads
	Touched int64   `json:"touched_gzip"`   // the same, each file's compressed by itself
	Files   int     `json:"touched_files"`
	Opened  int64   `json:"opened_gzip"` // whole files of which a start reads something
}

// MB is bytes in 10^6.
func (f Facts) MB(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/1e6) }

// roundTrips is how many must follow each other before the first byte of a file can be here: a connection, the manifest, the file.
const roundTrips = 3

// limit is the time that no system can beat on a link: what a start reads has to come over it, and the program has to run.
func (f Facts) limit(l link) float64 { return f.limitOf(f.Touched, l) }

// fileLimit is the same for a system that fetches whole files.
func (f Facts) fileLimit(l link) float64 { return f.limitOf(f.Opened, l) }

func (f Facts) limitOf(bytes int64, l link) float64 {
	return math.Max(l.wire(bytes).Seconds()+roundTrips*l.rtt.Seconds(), f.Native)
}

// measureFacts runs the image's program on an ext4 file system without read-ahead, and looks which pages are in memory then.
func measureFacts(ctx context.Context, img *image) (f Facts, err error) {
	f = Facts{Image: img.name, About: img.about, Layers: img.layers, Bytes: img.size}
	dir, err := os.MkdirTemp("", "msb-bench-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, endAll(), unmountIn(dir), os.RemoveAll(dir)) }()
	bundle := filepath.Join(dir, "unpacked")
	if err := do(exec.CommandContext(ctx, "umoci", "unpack", "--image", img.layout+":latest", bundle), nil); err != nil {
		return f, err
	}
	original, root := filepath.Join(bundle, "rootfs"), filepath.Join(dir, "root")
	if err := mountExt4(ctx, original, filepath.Join(dir, "ext4"), root); err != nil {
		return f, err
	}
	var times []float64
	for n := range 6 {
		t := &trial{dir: dir, img: img, start: time.Now(), ready: make(chan struct{}), marks: map[string]float64{}, atReady: func() {}}
		in, err := overlay(ctx, dir, root, n) // in which nothing is of what a run before has written
		if err != nil {
			return f, err
		}
		if err := nativeRun(ctx, t, in); err != nil {
			return f, fmt.Errorf("run %s on this host: %w", img.name, err)
		}
		if n > 0 {
			times = append(times, t.at(markReady))
			continue
		}
		if err := f.countPages(original, root); err != nil {
			return f, err
		}
	}
	f.Native = slices.Min(times)
	return f, nil
}

// overlay makes a directory in dir that is root with what is written kept elsewhere.
func overlay(ctx context.Context, dir, root string, n int) (string, error) {
	at := filepath.Join(dir, fmt.Sprint("run", n))
	for _, d := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(at, d), 0o755); err != nil {
			return "", err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", root, at, at)
	return filepath.Join(at, "root"), do(exec.CommandContext(ctx, "mount", "-t", "overlay", "overlay", "-o", options, filepath.Join(at, "root")), nil)
}

// nativeRun runs a trial's program in root.
func nativeRun(ctx context.Context, t *trial, root string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return t.inRoot(ctx, root)
}

// mountExt4 makes a file system of a directory and mounts it, without read-ahead, so that only pages that are asked for come.
func mountExt4(ctx context.Context, from, file, to string) error {
	var size int64
	err := filepath.WalkDir(from, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			size += i.Size()
		}
		size += 4096
		return nil
	})
	if err != nil {
		return err
	}
	err = errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size*3/2+256<<20), os.Mkdir(to, 0o755))
	if err != nil {
		return err
	}
	if err := do(exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", from, file), nil); err != nil {
		return err
	}
	if err := do(exec.CommandContext(ctx, "mount", "-o", "loop", file, to), nil); err != nil {
		return err
	}
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == to {
			return do(exec.CommandContext(ctx, "blockdev", "--setra", "0", f[0]), nil)
		}
	}
	return fmt.Errorf("mount %s: it is not there", to)
}

// countPages adds up what is in memory of the files in root that are as they are in original.
func (f *Facts) countPages(original, root string) error {
	return filepath.WalkDir(original, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(original, path)
		if err != nil {
			return err
		}
		file, err := os.Open(filepath.Join(root, rel))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := e.Info()
		if err != nil {
			return err
		}
		now, err := file.Stat()
		if err != nil || info.Size() != now.Size() || !info.ModTime().Equal(now.ModTime()) || info.Size() == 0 {
			return err // it has been written to
		}
		return f.addFile(file, info.Size())
	})
}

// addFile adds what is in memory of one file.
func (f *Facts) addFile(file *os.File, size int64) error {
	resident, err := residentPages(file, size)
	if err != nil || !slices.Contains(resident, true) {
		return err
	}
	f.Files++
	var touched, whole counter
	pages, err := gzip.NewWriterLevel(&touched, gzip.DefaultCompression)
	if err != nil {
		return err
	}
	all := gzip.NewWriter(&whole)
	buf := make([]byte, pageSize)
	for i, here := range resident {
		n, err := file.ReadAt(buf, int64(i)*pageSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if here {
			f.Pages += int64(n)
			pages.Write(buf[:n])
		}
		all.Write(buf[:n])
	}
	if err := errors.Join(pages.Close(), all.Close()); err != nil {
		return err
	}
	f.Touched += int64(touched)
	f.Opened += int64(whole)
	return nil
}

const pageSize = 4096

// residentPages says of each page of a file whether it is in memory (mincore(2)).
func residentPages(file *os.File, size int64) ([]bool, error) {
	m, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", file.Name(), err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, (size+pageSize-1)/pageSize)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		return nil, fmt.Errorf("look at the pages of %s: %w", file.Name(), errno)
	}
	resident := make([]bool, len(vec))
	for i, v := range vec {
		resident[i] = v&1 != 0
	}
	return resident, nil
}

// counter counts what is written.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
