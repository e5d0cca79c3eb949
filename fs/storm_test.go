package fs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForgetStorm has readers at work while the kernel is made to forget everything, again and again: names, attributes and
// pages are asked for anew, and the answers stay the same.
func TestForgetStorm(t *testing.T) {
	needMount(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to drop the kernel's caches")
	}
	var items []item
	want := map[string][32]byte{}
	for i := range 300 {
		name, body := fmt.Sprintf("d%d/e%d/f%d", i%7, i%3, i), strings.Repeat(fmt.Sprintln(i), 2000)
		items = append(items, file(name, body), symlink(fmt.Sprintf("d%d/s%d", i%7, i), fmt.Sprintf("e%d/f%d", i%3, i)))
		want[name] = sha256.Sum256([]byte(body))
	}
	at := mountTree(t, sealedTree(t, Options{}, newLayer(items...)))
	var ended atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !ended.Load() {
				for name, sum := range want {
					b, err := os.ReadFile(filepath.Join(at, name))
					if err != nil || sha256.Sum256(b) != sum {
						t.Errorf("%s: %d bytes, %v", name, len(b), err)
						return
					}
				}
				if es, err := os.ReadDir(at + "/d3"); err != nil || len(es) < 40 {
					t.Errorf("d3 lists %d, %v", len(es), err)
				}
			}
		})
	}
	for range 10 {
		unix.Sync()
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			t.Error(err)
		}
	}
	ended.Store(true)
	readers.Wait()
}

// TestFio has fio check every block of a file through a mount: in order, at random and mapped.
func TestFio(t *testing.T) {
	needMount(t)
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed")
	}
	dir := t.TempDir()
	fio := func(at string, args ...string) {
		t.Helper()
		cmd := exec.Command("fio", append([]string{"--name=v", "--filename=" + at + "/data", "--size=8M", "--bs=16k", "--verify=crc32c", "--verify_fatal=1",
			"--verify_state_save=0", "--fallocate=none", "--minimal"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("fio %v: %v\n%s", args, err, out)
		}
	}
	fio(dir, "--rw=write", "--do_verify=0")
	b, err := os.ReadFile(dir + "/data")
	if err != nil {
		t.Fatal(err)
	}
	l := newLayer(file("data", string(b)))
	l.chunk = 1 << 20
	at := mountTree(t, sealedTree(t, Options{}, l))
	for _, args := range [][]string{
		{"--rw=read", "--readonly"},
		{"--rw=randread", "--readonly", "--invalidate=1"},
		{"--rw=randread", "--readonly", "--ioengine=mmap"},
	} {
		fio(at, args...)
	}
	b[5<<20] ^= 1 // what the test is worth: a wrong byte is found
	wrong := newLayer(file("data", string(b)))
	wrong.chunk = 1 << 20
	at = mountTree(t, sealedTree(t, Options{}, wrong))
	cmd := exec.Command("fio", "--name=v", "--filename="+at+"/data", "--size=8M", "--bs=16k", "--verify=crc32c", "--rw=read", "--readonly", "--verify_state_save=0", "--minimal")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil && !bytes.Contains(out, []byte("verify")) {
		t.Errorf("fio finds nothing wrong: %s", out)
	}
}
