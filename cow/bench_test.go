package cow

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// systems are what a workload is compared on; run with -count to let them alternate.
var systems = []struct {
	name  string
	mount func(b *testing.B, l *memLower) string
}{
	{"cow", func(b *testing.B, l *memLower) string { return serveProcess(b, "root", 0).dir }},
	{"fuse-overlayfs", fuseOverlayfs},
	{"overlayfs", func(b *testing.B, l *memLower) string { return overlay(b, l) }},
}

func fuseOverlayfs(b *testing.B, l *memLower) string {
	b.Helper()
	exe, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		b.Skip("no fuse-overlayfs to compare with")
	}
	dir := b.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		must(b, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	unpack(b, l, filepath.Join(dir, "lower"))
	merged := filepath.Join(dir, "merged")
	cmd := exec.Command(exe, "-f", "-o", fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir), merged)
	must(b, cmd.Start())
	b.Cleanup(func() {
		unix.Unmount(merged, unix.MNT_DETACH)
		cmd.Wait()
	})
	for {
		var st unix.Statfs_t
		must(b, unix.Statfs(merged, &st))
		if st.Type == unix.FUSE_SUPER_MAGIC {
			return merged
		}
	}
}

func benchmark(b *testing.B, run func(b *testing.B, dir string, i int)) {
	if os.Geteuid() != 0 {
		b.Skip("mounting needs root")
	}
	for _, s := range systems {
		b.Run(s.name, func(b *testing.B) {
			dir := s.mount(b, sampleLower())
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				run(b, dir, i)
			}
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	data := make([]byte, 700)
	benchmark(b, func(b *testing.B, dir string, i int) {
		sub := fmt.Sprintf("%s/tmp/d%d", dir, i)
		must(b, os.Mkdir(sub, 0o755))
		for j := 0; j < 1000; j++ {
			must(b, os.WriteFile(fmt.Sprintf("%s/f%d", sub, j), data, 0o644))
		}
	})
}

func BenchmarkUnlink(b *testing.B) {
	benchmark(b, func(b *testing.B, dir string, i int) {
		b.StopTimer()
		sub := fmt.Sprintf("%s/tmp/d%d", dir, i)
		must(b, os.Mkdir(sub, 0o755))
		for j := 0; j < 1000; j++ {
			must(b, os.WriteFile(fmt.Sprintf("%s/f%d", sub, j), nil, 0o644))
		}
		b.StartTimer()
		must(b, os.RemoveAll(sub))
	})
}

func BenchmarkWriteSequential(b *testing.B) {
	buf := make([]byte, 1<<20)
	b.SetBytes(64 << 20)
	benchmark(b, func(b *testing.B, dir string, i int) {
		f, err := os.Create(dir + "/tmp/seq")
		must(b, err)
		for j := 0; j < 64; j++ {
			if _, err := f.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		must(b, f.Close())
	})
}

func BenchmarkWriteRandom4K(b *testing.B) {
	buf := make([]byte, 4096)
	benchmark(b, func(b *testing.B, dir string, i int) {
		f, err := os.OpenFile(dir+"/big", os.O_RDWR, 0)
		must(b, err)
		r := rand.New(rand.NewSource(int64(i)))
		for j := 0; j < 1000; j++ {
			if _, err := f.WriteAt(buf, r.Int63n(200)*4096); err != nil {
				b.Fatal(err)
			}
		}
		must(b, f.Close())
	})
}
