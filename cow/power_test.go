package cow

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// disk is a disk with a cache that forgets: one file, for a loop device, of which fsync is the flush. What was written since
// the last is on it after a power failure or not, each write by itself.
type disk struct {
	fuse.RawFileSystem
	size uint64

	mu      sync.Mutex
	now     []byte
	safe    []byte
	pending []diskWrite // since safe
}

type diskWrite struct {
	off  int64
	data []byte
}

func newDisk(size int) *disk {
	return &disk{RawFileSystem: fuse.NewDefaultRawFileSystem(), size: uint64(size), now: make([]byte, size), safe: make([]byte, size)}
}

// cut is what is on the disk if the power fails now.
func (d *disk) cut(r *rand.Rand) (image []byte, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	image = bytes.Clone(d.safe)
	for _, w := range d.pending {
		if r.Intn(2) == 0 {
			lost++
			continue
		}
		copy(image[w.off:], w.data)
	}
	return image, lost
}

func (d *disk) attr(id uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: id, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	if id == 2 {
		*a = fuse.Attr{Ino: id, Mode: unix.S_IFREG | 0o600, Nlink: 1, Size: d.size, Blocks: d.size / 512}
	}
}

func (d *disk) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != 1 || name != "disk" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	d.attr(2, &out.Attr)
	return fuse.OK
}

func (d *disk) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (d *disk) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO // the loop device's writes come at once
	return fuse.OK
}

func (d *disk) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	if in.Offset < d.size {
		n = copy(buf, d.now[in.Offset:])
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *disk) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset+uint64(len(data)) > d.size {
		return 0, fuse.Status(unix.ENOSPC)
	}
	copy(d.now[in.Offset:], data)
	d.pending = append(d.pending, diskWrite{int64(in.Offset), bytes.Clone(data)})
	return uint32(len(data)), fuse.OK
}

func (d *disk) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.pending {
		copy(d.safe[w.off:], w.data)
	}
	d.pending = nil
	return fuse.OK
}

func (d *disk) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// loopMount mounts the ext4 that is in a file.
func loopMount(t *testing.T, image string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop device, or no ext4, to take the power from: %v: %s", err, out)
	}
	return dir, sync.OnceFunc(func() {
		var err error
		for range 100 { // somebody may be looking at all mounts
			if err = unix.Unmount(dir, 0); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("unmount %s: %v", dir, err)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
}

// powered is what a program has been told to be on the disk, by fsync.
type powered struct {
	slots, small, made, moved, removed int
}

const (
	powerSlot  = 3000 // a little is written at each multiple of it in a large file of the lower
	powerFiles = 400
)

func powerLower() *memLower {
	l := newMemLower()
	l.file("big", strings.Repeat("the lower's bytes ", 200000), 0o644)
	for i := range powerFiles {
		l.file(fmt.Sprintf("small/%d", i), strings.Repeat("small ", 2000), 0o644)
		l.file(fmt.Sprintf("gone/%d", i), "x", 0o644)
		l.file(fmt.Sprintf("dirs/%d/f", i), "in it", 0o644)
	}
	l.walk("tmp")
	return l
}

func slotText(i int) string { return fmt.Sprintf("[written as number %d]", i) }

// work changes a tree and asks for each change to be on the disk, until it is told to stop.
func (p *powered) work(t *testing.T, root string, mu *sync.Mutex, stop <-chan struct{}) {
	synced := func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}
	write := func(path string, flags int, off int64, text string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			return err
		}
		return f.Sync()
	}
	for i := range powerFiles {
		steps := []struct {
			count *int
			do    func() error
		}{
			{&p.slots, func() error { return write(root+"/big", 0, int64(i*powerSlot), slotText(i)) }},
			{&p.small, func() error { return write(fmt.Sprintf("%s/small/%d", root, i), 0, 5000, slotText(i)) }},
			{&p.made, func() error {
				if err := write(fmt.Sprintf("%s/tmp/%d", root, i), os.O_CREATE, 0, slotText(i)); err != nil {
					return err
				}
				return synced(root + "/tmp")
			}},
			{&p.moved, func() error {
				if err := os.Rename(fmt.Sprintf("%s/dirs/%d", root, i), fmt.Sprintf("%s/tmp/dir%d", root, i)); err != nil {
					return err
				}
				if err := synced(root + "/dirs"); err != nil {
					return err
				}
				return synced(root + "/tmp")
			}},
			{&p.removed, func() error {
				if err := os.Remove(fmt.Sprintf("%s/gone/%d", root, i)); err != nil {
					return err
				}
				return synced(root + "/gone")
			}},
		}
		for _, s := range steps {
			if err := s.do(); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			*s.count++
			mu.Unlock()
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// check looks whether all that is there, and that nothing else has come to harm.
func (p *powered) check(t *testing.T, root string) {
	t.Helper()
	got, err := os.ReadFile(root + "/big")
	must(t, err)
	want := []byte(strings.Repeat("the lower's bytes ", 200000))
	for i := range p.slots {
		copy(want[i*powerSlot:], slotText(i))
	}
	sure := p.slots * powerSlot / blockSize * blockSize // from here on a write may have been under way
	if len(got) != len(want) || !bytes.Equal(got[:sure], want[:sure]) {
		t.Errorf("big differs from byte %d on, %d were written", firstDiff(got, want), sure)
	}
	for i := range p.small {
		b, err := os.ReadFile(fmt.Sprintf("%s/small/%d", root, i))
		must(t, err)
		want := []byte(strings.Repeat("small ", 2000))
		copy(want[5000:], slotText(i))
		if !bytes.Equal(b, want) {
			t.Errorf("small/%d differs from byte %d on", i, firstDiff(b, want))
		}
	}
	for i := range p.made {
		wantFile(t, fmt.Sprintf("%s/tmp/%d", root, i), slotText(i))
	}
	for i := range p.moved {
		wantFile(t, fmt.Sprintf("%s/tmp/dir%d/f", root, i), "in it")
		wantAbsent(t, fmt.Sprintf("%s/dirs/%d", root, i))
	}
	for i := range p.removed {
		wantAbsent(t, fmt.Sprintf("%s/gone/%d", root, i))
	}
	for i := p.removed + 1; i < powerFiles; i++ {
		wantFile(t, fmt.Sprintf("%s/gone/%d", root, i), "x")
	}
}

// TestPowerCut takes the power from the disk that an upper is on, at moments of a program's that asks for each of its changes
// to be on it: what fsync answered for is there afterwards, and the upper can be opened.
func TestPowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system of one's own needs root")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("e2fsprogs is not installed")
	}
	const size = 96 << 20
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	must(t, os.Truncate(empty, size))
	if out, err := exec.Command(mkfs, "-q", "-O", "^metadata_csum", empty).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := newDisk(size)
	f, err := os.Open(empty)
	must(t, err)
	_, err = io.ReadFull(f, d.now)
	must(t, err)
	must(t, f.Close())
	copy(d.safe, d.now)
	diskDir := t.TempDir()
	srv, err := fuse.NewServer(d, diskDir, &fuse.MountOptions{Name: "cowdisk", FsName: "cowdisk", DirectMountStrict: true, DirectMountFlags: unix.MS_MGC_VAL})
	must(t, err)
	go srv.Serve()
	must(t, srv.WaitMount())
	defer func() {
		for range 100 { // the loop device lets go of it in its own time
			if err = srv.Unmount(); err == nil {
				break
			}
		}
		if err != nil {
			t.Error(err)
			unix.Unmount(diskDir, unix.MNT_DETACH)
		}
		srv.Wait()
	}()
	host, unmount := loopMount(t, diskDir+"/disk")
	defer unmount()

	m := &mounted{t: t, dir: t.TempDir(), upper: host + "/upper", lower: powerLower()}
	must(t, os.Mkdir(m.upper, 0o755))
	m.start()
	var mu sync.Mutex
	var told powered
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		told.work(t, m.dir, &mu, stop)
	}()
	type cut struct {
		told  powered
		image []byte
		lost  int
	}
	r := rand.New(rand.NewSource(*fsxSeed))
	var cuts []cut
	for range 6 {
		time.Sleep(time.Duration(20+r.Intn(200)) * time.Millisecond)
		mu.Lock()
		c := cut{told: told}
		mu.Unlock()
		c.image, c.lost = d.cut(r)
		cuts = append(cuts, c)
	}
	close(stop)
	<-ended
	m.stop()
	unmount()
	for i, c := range cuts {
		t.Logf("cut %d: %+v, %d writes lost", i, c.told, c.lost)
		image := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(image, c.image, 0o600))
		host, unmount := loopMount(t, image)
		if _, err := os.Stat(host + "/upper"); err == nil {
			m := &mounted{t: t, dir: t.TempDir(), upper: host + "/upper", lower: powerLower()}
			m.start()
			c.told.check(t, m.dir)
			snapshot(t, m.dir)
			m.stop()
		} else if c.told != (powered{}) {
			t.Error("the upper is gone")
		}
		unmount()
	}
}
