package trace

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"golang.org/x/sys/unix"
)

// What the kernel says of a mount that is used: its requests, its pages, and nothing of other mounts.
func TestTracer(t *testing.T) {
	if err := Probe(); err != nil {
		if !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, content := t.TempDir(), make([]byte, 300_000)
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{OnAdd: func(ctx context.Context) {
		root.AddChild("f", root.NewPersistentInode(ctx, &fs.MemRegularFile{Data: content}, fs.StableAttr{Ino: 2}), false)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Unmount()
	tracer, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tracer.Add(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time out of the page cache
		if n, err := io.Copy(io.Discard, io.NewSectionReader(f, 0, int64(len(content)))); err != nil || n != int64(len(content)) {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), f.Close()); err != nil {
		t.Fatal(err)
	}
	events, lost, err := tracer.Stop(context.Background())
	if err != nil || lost != 0 {
		t.Fatalf("stop: %d lost, %v", lost, err)
	}
	report := Analyze(&Recording{Events: events, Paths: map[uint64]string{st.Ino: "/f"}, Mounts: map[uint32]string{dev: dir}})
	if len(report.Files) == 0 {
		t.Fatalf("no file among %d events", len(events))
	}
	var file FileStats
	var asked int64 // this server's nodes have other numbers than its files
	for _, f := range report.Files {
		asked += f.ReadBytes
		if f.Path == "/f" {
			file = f
		}
	}
	pages := (len(content) + 4095) / 4096
	if asked < int64(len(content)) || file.Pages < 2*pages || file.Hits < pages || file.Hits+file.ReadAhead+file.Misses != file.Pages {
		t.Errorf("of the file: %+v, want %d pages read twice", file, pages)
	}
	for _, e := range events {
		if e.Dev != dev {
			t.Fatalf("an event of another mount: %+v", e)
		}
	}
	var reads int
	for _, o := range report.Ops {
		if o.Op == "READ" {
			reads = o.Count
		}
	}
	if reads == 0 {
		t.Errorf("no READ among %+v", report.Ops)
	}
	if _, _, err := tracer.Stop(context.Background()); err == nil {
		t.Error("stopped twice")
	}
}
