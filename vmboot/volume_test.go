package vmboot

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/microsandbox/msb-fs/vmboot/hostdir"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// serveVolume shows src of the host on a socket until the test is over.
func serveVolume(t *testing.T, src, target string, readOnly bool) Mount {
	t.Helper()
	f, err := hostdir.Open(src, hostdir.Options{ReadOnly: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	m := Mount{Socket: filepath.Join(t.TempDir(), "v.sock"), Target: target}
	if f.IsFile() {
		m.File = hostdir.FileName
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		virtiofs.Serve(ctx, ln, func(context.Context) (fuse.RawFileSystem, error) { return f, nil }, virtiofs.Options{
			Queues: 1, FUSE: hostdir.ServerOptions(), OnFault: func(err error) { t.Errorf("virtiofs: %v", err) },
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-served
		ln.Close()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestVolumes(t *testing.T) {
	c := testConfig(t)
	top := t.TempDir()
	for name, text := range map[string]string{"secret": "secret", "rw/in": "in\n", "ro/in": "in\n", "nested/deep": "deep\n", "conf": "conf\n"} {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../secret", top+"/rw/escape"); err != nil {
		t.Fatal(err)
	}
	c.Mounts = []Mount{
		serveVolume(t, top+"/nested", "/rw/x/nested", false), // before what it lies in, and to be mounted after it
		serveVolume(t, top+"/rw", "/rw", false),
		serveVolume(t, top+"/ro", "/made/for/it", true), // the guest is not even told
		serveVolume(t, top+"/conf", "/etc/app/conf", false),
	}
	_, agent := boot(t, c, Setup{})

	for _, test := range []struct{ name, script, out string }{
		{"read", "cat /rw/in /made/for/it/in /rw/x/nested/deep /etc/app/conf", "in\nin\ndeep\nconf\n"},
		{"write", "mkdir /rw/d && echo out >/rw/d/f && mv /rw/d /rw/e && cat /rw/e/f", "out\n"},
		{"hard link", "cd /rw && echo l >l1 && ln l1 l2 && rm l1 && cat l2 && stat -c %h l2", "l\n1\n"},
		{"append", "echo a >/rw/log; echo b >>/rw/log; cat /rw/log", "a\nb\n"},
		{"program", "cp /bin/busybox /rw/busybox && /rw/busybox echo run", "run\n"},
		{"read-only", "echo x >/made/for/it/new; echo x >>/made/for/it/in; rm /made/for/it/in; cat /made/for/it/in", "in\n"},
		{"remounted", "mount -o remount,rw /made/for/it; echo x >/made/for/it/in; cat /made/for/it/in", "in\n"},
		{"symbolic link", "cat /rw/escape || cat /rw/../../secret || echo none", "none\n"},
		{"link out", "ln -s ../secret /rw/own; cat /rw/own || echo none", "none\n"},
		{"device", "mknod /rw/dev c 1 3 || echo refused", "refused\n"},
		{"set-uid", "cp /bin/busybox /rw/su; chmod 6755 /rw/su; stat -c %a /rw/su", "755\n"},
		{"file", "echo more >>/etc/app/conf; cat /etc/app/conf", "conf\nmore\n"},
		{"owner", "touch /rw/owned && chown 1234:99 /rw/owned && stat -c %u:%g /rw/owned", map[bool]string{true: "1234:99\n", false: ""}[os.Geteuid() == 0]},
		{"big", "dd if=/dev/zero of=/rw/big bs=1M count=20 2>/dev/null; cmp /rw/big /dev/zero 2>&1 | grep -c EOF; stat -c %s /rw/big", "1\n20971520\n"},
	} {
		if r := sh(t, agent, test.script); r.out != test.out {
			t.Errorf("%s: %q, %q, %v; want %q", test.name, r.out, r.err, r.failure, test.out)
		}
	}
	for name, want := range map[string]string{"rw/e/f": "out\n", "rw/log": "a\nb\n", "ro/in": "in\n", "conf": "conf\nmore\n", "secret": "secret"} {
		if b, err := os.ReadFile(filepath.Join(top, name)); err != nil || string(b) != want {
			t.Errorf("on the host %s is %q, %v; want %q", name, b, err, want)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(top+"/rw/su", &st); err != nil || st.Mode&0o7000 != 0 {
		t.Errorf("the guest's set-uid program has mode %o on the host, %v", st.Mode, err)
	}
	// What the host does meanwhile.
	if err := os.WriteFile(top+"/rw/in", []byte("changed on the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := sh(t, agent, "cat /rw/in; ls /rw/x/nested"); r.out != "changed on the host\ndeep\n" {
		t.Errorf("after a change on the host: %q, %q", r.out, r.err)
	}
}
