package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/cow"
	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
)

// mounts are the images that this daemon has mounted on the host. A list of them is kept on disk, so that a daemon that
// follows one that was killed can clean up. It is safe for concurrent use.
type mounts struct {
	images *images
	record string    // path of the list
	fault  func(any) // told of panics while a mount's requests are answered

	mu    sync.Mutex
	byDir map[string]*mount
	left  map[string]bool // directories that cleanUp has unmounted
}

// mount is one image on one directory.
type mount struct {
	api.Mount
	image *openImage
	fuse  *fs.Mounted
	upper *cow.FS       // nil when read-only
	base  int64         // bytes that had been fetched for the image before it was asked for
	limit int64         // bytes that the upper may take; 0: no limit
	gone  chan struct{} // closed when reap has let go of everything
	ready bool          // guarded by mounts.mu: fuse and upper are set

	learning sync.Mutex // while a profile is made
	paged    bool       // guarded by learning: it is made of what the kernel has seen, and not of what was read
}

// add mounts o on req.Dir. The caller's reference to o is the mount's from then on, and stays the caller's when add fails.
func (ms *mounts) add(ctx context.Context, o *openImage, base int64, req api.MountRequest) (*mount, error) {
	m := &mount{Mount: api.Mount{Dir: req.Dir, Reference: o.Reference, Digest: o.Digest, Upper: req.Upper, Since: time.Now().UTC()},
		image: o, base: base, limit: req.Limit, gone: make(chan struct{})}
	if err := ms.reserve(m); err != nil {
		return nil, err
	}
	mounted := false
	defer func() {
		if !mounted {
			ms.forget(m)
		}
	}()
	// Recorded before it exists: a daemon that is killed in between leaves a record too many, never a mount too many.
	if err := ms.save(); err != nil {
		return nil, err
	}
	if err := m.serve(ctx, ms.fault); err != nil {
		return nil, err
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m.ready, mounted = true, true
	return m, nil
}

// reserve enters m unless its directory is taken.
func (ms *mounts) reserve(m *mount) error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.byDir[m.Dir] != nil || mountedByUs(m.Dir) {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("%s has an image mounted: msb-fs umount %s", m.Dir, m.Dir)}
	}
	ms.byDir[m.Dir] = m
	return nil
}

func (ms *mounts) forget(m *mount) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	delete(ms.byDir, m.Dir)
}

func (m *mount) serve(ctx context.Context, fault func(any)) (err error) {
	var raw fuse.RawFileSystem
	opts := fs.MountOptions{Name: m.Reference, Panic: fault}
	if m.Upper == "" {
		raw = fs.Raw(m.image.tree)
		opts.ReadOnly = true
	} else {
		if err := prepareUpper(m.Upper); err != nil {
			return err
		}
		upper, failed := cow.New(m.image.tree, m.Upper, cow.Options{LowerDigest: m.Digest, Bytes: m.limit})
		if failed != nil {
			return failed
		}
		defer func() {
			if m.fuse == nil { // or fs.Mount has panicked
				err = errors.Join(err, upper.Close())
			}
		}()
		m.upper, raw = upper, upper
		opts.Adjust = cow.ServerOptions
	}
	if m.fuse, err = fs.Mount(ctx, fs.WithStatus(raw, m.statusFiles), m.Dir, opts); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Reference, m.Dir, err)
	}
	return nil
}

// prepareUpper makes dir if need be. One that holds something else than an upper is refused: what is deleted in the mount
// would be deleted there.
func prepareUpper(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make upper directory: %w", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open upper directory: %w", err)
	}
	if _, err := cow.LowerDigest(dir); len(names) > 0 && errors.Is(err, cow.ErrNoUpper) {
		return &api.Error{Code: api.CodeInvalid, Message: dir + " is neither empty nor an upper directory of ours: use an empty one"}
	}
	return nil
}

// remove unmounts dir and waits until its upper can be used again. One that is in use is left alone, unless lazy: then it
// goes from the file tree at once, and whoever uses it gets an error.
func (ms *mounts) remove(ctx context.Context, dir string, lazy bool) error {
	ms.mu.Lock()
	m := ms.byDir[dir]
	ready := m != nil && m.ready
	left := ms.left[dir]
	delete(ms.left, dir)
	ms.mu.Unlock()
	if m == nil && left {
		return nil // this daemon was started by the very command that asks for it
	}
	if !ready {
		return &api.Error{Code: api.CodeNotFound, Message: "nothing of ours is mounted on " + dir}
	}
	unmount := m.fuse.TryUnmount
	if lazy {
		unmount = m.fuse.Unmount
	}
	if err := unmount(); errors.Is(err, unix.EBUSY) {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("%v: end that first, or detach it with msb-fs umount --lazy %s", err, dir)}
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: what it used is still being closed: %w", dir, ctx.Err())
	}
}

// reap waits until m has been unmounted, by whomever, and then lets go of what it used.
func (ms *mounts) reap(m *mount) error {
	defer close(m.gone)
	m.fuse.Wait()
	var errs []error
	if m.upper != nil {
		errs = append(errs, m.upper.Close())
	}
	ms.forget(m)
	return errors.Join(append(errs, ms.save(), ms.images.release(m.image))...)
}

// list returns the mounts sorted by directory.
func (ms *mounts) list() []*mount {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	out := make([]*mount, 0, len(ms.byDir))
	for _, m := range ms.byDir {
		if m.ready {
			out = append(out, m)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dir < out[j].Dir })
	return out
}

// describe is m as users see it.
func (m *mount) describe() api.Mount {
	d := m.Mount
	if err := m.image.tree.Err(); err != nil {
		d.Error = err.Error()
	}
	return d
}

// save writes the list of directories.
func (ms *mounts) save() error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	dirs := make([]string, 0, len(ms.byDir))
	for dir := range ms.byDir {
		dirs = append(dirs, dir)
	}
	b, err := json.Marshal(dirs)
	if err != nil {
		return err
	}
	tmp := ms.record + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("record mounts: %w", err)
	}
	return os.Rename(tmp, ms.record)
}

// cleanUp unmounts what a killed daemon left and returns the directories. Nobody else uses ms yet.
func (ms *mounts) cleanUp(ctx context.Context) []string {
	b, err := os.ReadFile(ms.record)
	if err != nil {
		return nil
	}
	var dirs, cleaned []string
	if json.Unmarshal(b, &dirs) != nil {
		return nil
	}
	for _, dir := range dirs {
		// Again and again: dead mounts can lie on top of each other.
		for filepath.IsAbs(dir) && dead(dir) && fs.Unmount(ctx, dir) == nil {
			if !ms.left[dir] {
				cleaned = append(cleaned, dir)
			}
			ms.left[dir] = true
		}
	}
	return cleaned
}

// deadPatience is how long a file system may take to say how it is. One whose server is gone says so at once.
const deadPatience = 2 * time.Second

// dead tells whether a mount of ours, whose server is gone, is on dir. Somebody else's is never touched, nor one of ours that
// answers, or that hangs: it is another daemon's.
func dead(dir string) bool {
	if !mountedByUs(dir) {
		return false
	}
	gone := make(chan bool, 1)
	go func() { // which lasts as long as that server hangs
		// What stat says may be in the kernel's cache; this asks the server (fuse_statfs).
		var st unix.Statfs_t
		gone <- unix.Statfs(dir, &st) != nil
	}()
	select {
	case is := <-gone:
		return is
	case <-time.After(deadPatience):
		return false
	}
}

// mountedByUs tells whether the topmost mount on dir is one of msb-fs, whichever daemon's.
func mountedByUs(dir string) bool {
	mounted, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	// proc_pid_mountinfo(5): the mount point is the fifth field, with octal escapes; the type follows a dash.
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	ours := false
	for line := range strings.Lines(string(mounted)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == escaped {
			ours = strings.Contains(line, " - fuse.msb ") // the last one is on top
		}
	}
	return ours
}
