package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestStatusDir reads the hidden directory of a mount through the kernel: always what is so now, and nothing that a listing
// or a walk of the tree meets.
func TestStatusDir(t *testing.T) {
	needMount(t)
	tree := sealedTree(t, Options{}, newLayer(file("f", "hello"), dir("d"), file("d/g", "x")))
	var n atomic.Int64
	at := t.TempDir()
	m, err := Mount(context.Background(), WithStatus(Raw(tree), func() map[string][]byte {
		return map[string][]byte{"progress": fmt.Appendf(nil, "%d\n", n.Load()), "long": []byte(strings.Repeat("0123456789", 1000+int(n.Load())))}
	}), at, MountOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	dir := filepath.Join(at, StatusDir)
	for i := range 20 {
		n.Store(int64(i))
		for range 2 {
			if b, err := os.ReadFile(dir + "/progress"); err != nil || string(b) != fmt.Sprintf("%d\n", i) {
				t.Fatalf("progress reads %q, %v, want %d", b, err, i)
			}
		}
		if b, err := os.ReadFile(dir + "/long"); err != nil || len(b) != 10000+10*i || !strings.HasSuffix(string(b), "0123456789") {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 2 || es[0].Name() != "long" || es[1].Name() != "progress" {
		t.Errorf("it lists %v, %v", es, err)
	}
	if out, err := exec.Command("ls", "-la", dir).CombinedOutput(); err != nil || !strings.Contains(string(out), "-r--r--r--") {
		t.Errorf("ls: %v: %s", err, out)
	}
	if out, err := exec.Command("find", at).CombinedOutput(); err != nil || strings.Contains(string(out), StatusDir) || strings.Count(string(out), "\n") != 4 {
		t.Errorf("find: %v: %s", err, out)
	}
	for what, err := range map[string]error{
		"write":  os.WriteFile(dir+"/progress", []byte("x"), 0),
		"create": os.WriteFile(dir+"/new", nil, 0o644),
		"remove": os.Remove(dir + "/progress"),
		"rmdir":  os.Remove(dir),
	} {
		if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := os.Stat(dir + "/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
	if _, err := os.Stat(dir + "/progress/x"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

// TestSnapshotsAreForgotten looks up more files than are kept, and forgets them.
func TestSnapshotsAreForgotten(t *testing.T) {
	raw := WithStatus(Raw(sealedTree(t, Options{}, newLayer(file("f", "hello")))), func() map[string][]byte { return map[string][]byte{"a": []byte("b")} }).(*statusFS)
	var ids []ID
	for range 3 * maxSnapshots {
		var out fuse.EntryOut
		if st := raw.Lookup(nil, &fuse.InHeader{NodeId: statusDir}, "a", &out); !st.Ok() {
			t.Fatal(st)
		}
		ids = append(ids, out.NodeId)
	}
	full := 0
	for _, s := range raw.taken {
		if s.data != nil {
			full++
		}
	}
	if full > maxSnapshots {
		t.Errorf("%d snapshots are kept", full)
	}
	for _, id := range ids {
		raw.Forget(id, 1)
	}
	if len(raw.taken) != 0 {
		t.Errorf("%d snapshots were not forgotten", len(raw.taken))
	}
}

// A mount in use is not unmounted, and who uses it is named; once it is free, it is.
func TestTryUnmount(t *testing.T) {
	needMount(t)
	at := t.TempDir()
	m, err := Mount(context.Background(), Raw(sealedTree(t, Options{}, newLayer(file("f", "hello")))), at, MountOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Unmount()
	for _, use := range [][]string{{"sh", "-c", "cd \"$0\"; echo; read x", at}, {"sh", "-c", "exec 3<\"$0/f\"; echo; read x", at}} {
		cmd := exec.Command(use[0], use[1:]...)
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1))
		err := m.TryUnmount()
		if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), fmt.Sprintf("sh (%d)", cmd.Process.Pid)) {
			t.Errorf("%q: %v", use[2], err)
		}
		if _, err := os.Stat(at + "/f"); err != nil {
			t.Errorf("after that: %v", err)
		}
		in.Close()
		cmd.Wait()
	}
	if err := m.TryUnmount(); err != nil {
		t.Errorf("of a free one: %v", err)
	}
	if err := m.TryUnmount(); err != nil {
		t.Errorf("of none: %v", err)
	}
	if _, err := os.Stat(at + "/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still mounted: %v", err)
	}
}
