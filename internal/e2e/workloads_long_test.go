//go:build long

package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// workload is a home with an image that is made of Debian packages.
func workload(t *testing.T, stack testimage.Stack) (h *home, ref string) {
	t.Helper()
	needVM(t)
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	dir, err := testimage.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	layout, err := stack.Layout(t.Context(), dir, testimage.Gzip, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, registry.Options{})
	if _, err := s.AddLayout("test/"+stack.Name, layout); err != nil {
		t.Fatal(err)
	}
	return newHome(t), s.Host() + "/test/" + stack.Name
}

// TestWorkloads runs what people run once, as root and as somebody else.
func TestWorkloads(t *testing.T) {
	services, servicesRef := workload(t, testimage.Services())
	toolchains, toolchainsRef := workload(t, testimage.Toolchains())
	for _, c := range []struct {
		name   string
		h      *home
		ref    string
		script string
		out    string
	}{
		{"python", services, servicesRef, `python3 -c 'import json, sqlite3, subprocess, threading
db = sqlite3.connect("/tmp/db"); db.execute("create table t (x)"); db.executemany("insert into t values (?)", [(i,) for i in range(1000)]); db.commit()
t = threading.Thread(target=lambda: print(subprocess.check_output(["echo", "child"], text=True).strip())); t.start(); t.join()
print(json.dumps(db.execute("select sum(x) from t").fetchone()))'`, "child\n[499500]\n"},
		{"node", toolchains, toolchainsRef, `node -e 'const http = require("http"), fs = require("fs");
const s = http.createServer((q, r) => r.end("served")).listen(3000, () => http.get("http://127.0.0.1:3000", r => r.on("data", d => {
  fs.writeFileSync("/tmp/f", d); console.log(fs.readFileSync("/tmp/f", "utf8")); s.close() })))'`, "served\n"},
		{"jvm", toolchains, toolchainsRef, `cd /tmp && printf 'import java.util.stream.*; public class Hello { public static void main(String[] a) { System.out.println(IntStream.range(0, 100000).parallel().asLongStream().sum()); } }' > Hello.java && javac Hello.java && java -Xmx256m Hello`, "4999950000\n"},
		{"Go build", toolchains, toolchainsRef, `mkdir -p /src && cd /src && printf 'module hello\n\ngo 1.19\n' > go.mod && printf 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("built") }\n' > main.go && go build -o hello . && ./hello && go vet ./...`, "built\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, user := range []string{"root", "nobody"} {
				prefix := "export HOME=/tmp/home GOFLAGS=-buildvcs=false; mkdir -p $HOME; "
				if user == "nobody" && c.name == "Go build" {
					continue // /src is root's
				}
				o := c.h.launch("run", "--insecure", "--net", "none", "-m", "1G", "-c", "2", "-u", user, c.ref, "sh", "-c", prefix+c.script)
				if o.code != 0 || o.stdout != c.out {
					t.Errorf("as %s: want %q; %v", user, c.out, o)
				}
			}
		})
	}
}

// TestRedis talks to a redis-server on a published port, and finds again what it has saved after a restart.
func TestRedis(t *testing.T) {
	h, ref := workload(t, testimage.Services())
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:" + strconv.Itoa(port)
	h.must("msb-launch", "run", "-d", "--name", "redis", "--insecure", "-p", address+":6379", ref,
		"redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes")
	defer h.launch("rm", "-f", "redis")
	big := strings.Repeat("0123456789abcdef", 1<<16)
	c := dialRedis(t, address)
	c.want("SET", "big", big)("OK")
	c.want("GET", "big")(big)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			c := dialRedis(t, address)
			defer c.Close()
			for range 50 {
				c.do("INCR", "n")
			}
			c.want("SET", fmt.Sprint("k", i), fmt.Sprint(i))("OK")
		})
	}
	all.Wait()
	c.want("GET", "n")("1000")
	c.Close()
	h.must("msb-launch", "restart", "redis")
	c = dialRedis(t, address)
	c.want("GET", "n")("1000")
	c.want("GET", "big")(big)
	c.Close()
	h.must("msb-launch", "stop", "redis")
	if o := h.launch("logs", "redis"); !strings.Contains(o.stdout, "bye bye") {
		t.Errorf("it was not let end by itself: %v", o)
	}
}

// redis is a connection that speaks RESP.
type redis struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

// dialRedis connects once the server answers: a published port takes connections before there is a server behind it.
func dialRedis(t *testing.T, address string) *redis {
	t.Helper()
	for until := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.SetDeadline(time.Now().Add(patience))
			c := &redis{t, conn, bufio.NewReader(conn)}
			if answer, err := c.try("PING"); err == nil && answer == "PONG" {
				return c
			}
			conn.Close()
		}
		if time.Now().After(until) {
			t.Fatal("redis-server does not answer")
		}
	}
}

func (c *redis) try(args ...string) (string, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	if line[0] != '$' {
		return line[1:], nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 {
		return "", fmt.Errorf("answer %q", line)
	}
	body := make([]byte, n+2)
	_, err = io.ReadFull(c.r, body)
	return string(body[:n]), err
}

func (c *redis) do(args ...string) string {
	answer, err := c.try(args...)
	if err != nil {
		c.t.Errorf("%s: %v", args[0], err)
	}
	return answer
}

func (c *redis) want(args ...string) func(string) {
	answer := c.do(args...)
	return func(want string) {
		c.t.Helper()
		if answer != want {
			c.t.Errorf("%s: %.50q, want %.50q", args[:min(len(args), 2)], answer, want)
		}
	}
}

// TestNginx fetches small and big files from nginx, many at a time, and stops it in its own way.
func TestNginx(t *testing.T) {
	h, ref := workload(t, testimage.Services())
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	www := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 5<<16)
	if err := os.WriteFile(filepath.Join(www, "big"), big, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(www, 0o755); err != nil {
		t.Fatal(err)
	}
	h.must("msb-launch", "run", "-d", "--name", "web", "--insecure", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "-v", www+":/var/www/html:ro", ref,
		"sh", "-c", "mkdir -p /var/log/nginx; exec nginx -g 'daemon off;'") // the image is built without logs
	defer h.launch("rm", "-f", "web")
	url := fmt.Sprintf("http://127.0.0.1:%d/big", port)
	for until := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(until) {
			t.Fatal("nginx does not answer")
		}
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 3 {
				resp, err := http.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || sha256.Sum256(b) != sha256.Sum256(big) {
					t.Errorf("%d bytes of %d, %v", len(b), len(big), err)
				}
			}
		})
	}
	all.Wait()
	if o := h.launch("exec", "web", "sh", "-c", "ls /proc/*/exe -l 2>/dev/null | grep -c nginx"); o.code != 0 || o.stdout < "2" {
		t.Errorf("master and workers: %v", o)
	}
	h.must("msb-launch", "stop", "web")
}

// TestAptGetInstall installs a package from a repository on the host, as a build in a sandbox does.
func TestAptGetInstall(t *testing.T) {
	h, ref := workload(t, testimage.Services())
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not installed")
	}
	repo := t.TempDir()
	pkg := filepath.Join(t.TempDir(), "hello")
	control := "Package: msb-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: says hello\n"
	for name, content := range map[string]string{"DEBIAN/control": control, "DEBIAN/postinst": "#!/bin/sh\necho configured > /var/lib/msb-hello\n", "usr/bin/msb-hello": "#!/bin/sh\necho hello from a package\n"} {
		path := filepath.Join(pkg, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(repo, "msb-hello_1.0_all.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", pkg, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(repo, "Packages.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	fmt.Fprintf(z, "%sFilename: ./msb-hello_1.0_all.deb\nSize: %d\nSHA256: %x\n\n", control, len(b), sha256.Sum256(b))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(repo))}
	go server.Serve(ln)
	defer server.Close()
	script := fmt.Sprintf(`rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] http://10.0.2.2:%d ./' > /etc/apt/sources.list
apt-get update -q && apt-get install -qy msb-hello && dpkg -s msb-hello | grep Status && msb-hello && cat /var/lib/msb-hello && apt-get purge -qy redis-server >/dev/null && ! test -e /usr/bin/redis-server`, ln.Addr().(*net.TCPAddr).Port)
	o := h.launch("run", "--insecure", "--net", "all", "-m", "1G", ref, "sh", "-c", script)
	if o.code != 0 || !strings.HasSuffix(o.stdout, "hello from a package\nconfigured\n") {
		t.Error(o)
	}
}
