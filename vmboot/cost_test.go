package vmboot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hello is an ELF program of 170 bytes that says hello and ends: what is measured is what starts it.
func hello() []byte {
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov $1 (write), %eax
		0xbf, 1, 0, 0, 0, // mov $1, %edi
		0x48, 0x8d, 0x35, 0x10, 0, 0, 0, // lea 16(%rip), %rsi
		0xba, 6, 0, 0, 0, // mov $6, %edx
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov $60 (exit), %eax
		0x31, 0xff, // xor %edi, %edi
		0x0f, 0x05, // syscall
	}
	code = append(code, "hello\n"...)
	const base, head = 0x400000, 64 + 56
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	le := binary.LittleEndian
	b = le.AppendUint16(le.AppendUint16(b, 2), 62) // an executable for x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, base+head), 64), 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(le.AppendUint32(b, 1), 5) // one segment, to be read and executed
	size := uint64(head + len(code))
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

// plainArgs are those of c's machine without what was chosen to make it boot faster: the processor and the kernel as they come.
func plainArgs(c *Config) []string {
	args := machineArgs(c)
	for i, a := range args {
		switch a {
		case "max,erms=off":
			args[i] = "max"
		case kernelParameters:
			args[i] = "console=ttyS0 quiet panic=-1"
		}
	}
	return args
}

// helloAlone boots c's machine, as args have it, with hello as its only program and returns how long that took.
func helloAlone(b *testing.B, c Config, args []string) time.Duration {
	b.Helper()
	begun := time.Now()
	l, err := qemu{}.launchBare(&c, args)
	if err != nil {
		b.Fatal(err)
	}
	fd, err := unix.MemfdCreate("hello", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	l.files[initramfsFD-qmpFD].Close()
	l.files[initramfsFD-qmpFD] = os.NewFile(uintptr(fd), "hello")
	if _, err := l.files[initramfsFD-qmpFD].Write(cpio(hello())); err != nil {
		b.Fatal(err)
	}
	vm, err := start(b.Context(), c, l)
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Kill()
	for !strings.Contains(vm.Console(), "hello\r\n") && !strings.Contains(vm.Console(), "hello\n") {
		if time.Since(begun) > time.Minute {
			b.Fatalf("no hello: %s", vm.Explain())
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(begun)
}

// helloImage writes a docker archive of an image that is hello.
func helloImage(b *testing.B, name string) string {
	b.Helper()
	archive := func(files map[string][]byte) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for name, content := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
				b.Fatal(err)
			}
			w.Write(content)
		}
		w.Close()
		return out.Bytes()
	}
	digest := func(p []byte) string {
		sum := sha256.Sum256(p)
		return hex.EncodeToString(sum[:])
	}
	encode := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	layer := archive(map[string][]byte{"hello": hello(), "etc/passwd": []byte("root:x:0:0:root:/:/hello\n")})
	config := encode(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/hello"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}}})
	manifest := encode([]map[string]any{{"Config": digest(config) + ".json", "RepoTags": []string{name}, "Layers": []string{digest(layer) + "/layer.tar"}}})
	path := filepath.Join(b.TempDir(), "hello.tar")
	whole := archive(map[string][]byte{digest(config) + ".json": config, digest(layer) + "/layer.tar": layer, "manifest.json": manifest})
	if err := os.WriteFile(path, whole, 0o644); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkBoot is the cost of a sandbox beside that of its machine: in turns, hello from an initramfs, in a machine as it comes
// and in a sandbox's, `msb-launch run` of it from a cached image until its output, and the same with a pool. It wants the programs of `make build`, in MSB_BIN or ../bin.
func BenchmarkBoot(b *testing.B) {
	bin := os.Getenv("MSB_BIN")
	if bin == "" {
		bin = "../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		b.Fatal(err)
	}
	launch := filepath.Join(bin, "msb-launch")
	if _, err := os.Stat(launch); err != nil {
		b.Skip("no msb-launch to measure: make build")
	}
	kernel, err := FindKernel("")
	if err != nil {
		b.Skip(err)
	}
	home, err := os.MkdirTemp("", "msb-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(home)
	b.Setenv("MSB_HOME", home)
	const image = "local/hello:1"
	if out, err := exec.Command(filepath.Join(bin, "msb-fs"), "load", "-i", helloImage(b, image)).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	defer exec.Command(filepath.Join(bin, "msb-fs"), "stop").Run()
	accel, err := Accelerator(b.Context(), AccelAuto, kernel)
	if err != nil {
		b.Fatal(err)
	}
	const pooledMemory = "513M" // which only those ask for that are to find the pool
	pool := exec.Command(launch, "pool", "--size", "1", "--memory", pooledMemory)
	states, err := pool.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := pool.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		pool.Process.Signal(os.Interrupt)
		io.Copy(io.Discard, states)
		pool.Wait()
	}()
	lines := bufio.NewScanner(states)
	sandbox := func(memory string) time.Duration {
		begun := time.Now()
		cmd := exec.Command(launch, "run", "--memory", memory, image)
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		first := make([]byte, 1)
		_, err = io.ReadFull(out, first)
		took := time.Since(begun)
		io.Copy(io.Discard, out)
		if werr := cmd.Wait(); err != nil || werr != nil {
			b.Fatalf("%v, %v", err, werr)
		}
		return took
	}
	machine := Config{Kernel: kernel, Accel: accel, CPUs: 1, MemoryMiB: DefaultMemoryMiB}
	var plain, alone, own, pooled []time.Duration
	for b.Loop() {
		for lines.Scan() && lines.Text() != "pool: 1 of 1 ready" {
		}
		plain = append(plain, helloAlone(b, machine, plainArgs(&machine)))
		alone = append(alone, helloAlone(b, machine, machineArgs(&machine)))
		own = append(own, sandbox("512M"))
		pooled = append(pooled, sandbox(pooledMemory))
	}
	for _, s := range []struct {
		name  string
		times []time.Duration
	}{{"plain", plain}, {"hello", alone}, {"run", own}, {"pooled", pooled}} {
		slices.Sort(s.times)
		b.ReportMetric(s.times[len(s.times)/2].Seconds(), s.name+"-s")
		b.Logf("%s: %v", s.name, s.times)
	}
	b.ReportMetric(own[len(own)/2].Seconds()/alone[len(alone)/2].Seconds(), "run/hello")
	b.ReportMetric(own[len(own)/2].Seconds()/plain[len(plain)/2].Seconds(), "run/plain")
	b.ReportMetric(pooled[len(pooled)/2].Seconds()/own[len(own)/2].Seconds(), "pooled/run")
}
