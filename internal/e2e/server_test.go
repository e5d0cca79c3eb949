package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// counterServer counts its visitors in a database, each in a thread.
const counterServer = `
import http.server, json, sqlite3, sys, threading
db = sqlite3.connect("/root/visits", check_same_thread=False)
db.execute("create table if not exists visits(path text)")
lock = threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock, db:
            db.execute("insert into visits values(?)", (self.path,))
            n = db.execute("select count(*) from visits").fetchone()[0]
        body = json.dumps({"visits": n}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
`

// TestServerInPython has a real program serve real clients by a published port, and keep what it knows over a restart.
func TestServerInPython(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{})
	ref, _ := pythonImage(t, s, testimage.Gzip)
	h := newHome(t)
	port, err := freePort()
	noError(t, err)
	h.must("msb-launch", "run", "-d", "--name", "server", "--insecure", "-p", fmt.Sprintf("127.0.0.1:%d:8000", port), ref, "python3", "-c", counterServer)
	defer h.must("msb-launch", "rm", "-f", "server")
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	ask := func() (visits int, err error) {
		resp, err := http.Get(url)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		var said struct{ Visits int }
		err = json.NewDecoder(resp.Body).Decode(&said)
		return said.Visits, err
	}
	wait := func(least int) {
		t.Helper()
		for until := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			got, err := ask() // a published port takes connections before there is a server behind it
			if err == nil && got >= least {
				return
			}
			if err == nil || time.Now().After(until) {
				t.Fatalf("%d visits, %v; want %d", got, err, least)
			}
		}
	}
	wait(1)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				if got, err := ask(); err != nil || got < 2 {
					t.Errorf("%d visits, %v", got, err)
				}
			}
		})
	}
	all.Wait()
	h.must("msb-launch", "restart", "server")
	wait(22)
}
