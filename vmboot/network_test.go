package vmboot

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/usernet"
)

// inside leads every connection to one server and remembers where they were to go.
type inside struct {
	server string
	mu     sync.Mutex
	dialed []string
}

func (d *inside) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.dialed = append(d.dialed, network+" "+address)
	d.mu.Unlock()
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, d.server)
}

func TestGuestNetwork(t *testing.T) {
	c := testConfig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			io.CopyN(w, forever{}, 20<<20)
			return
		}
		fmt.Fprintf(w, "hello from %s\n", r.Host)
	})}
	go server.Serve(ln)
	defer server.Close()
	world := &inside{server: ln.Addr().String()}
	network, err := usernet.New(usernet.Options{Policy: usernet.Public, Dialer: world,
		Ports: []usernet.Port{{Bind: netip.MustParseAddr("127.0.0.1"), Guest: 7000}}})
	if err != nil {
		t.Fatal(err)
	}
	published := network.Listening()[0].String()
	c.Network = network
	vm, agent := boot(t, c, Setup{Hostname: "net"})

	if r := sh(t, agent, "wget -q -O - http://93.184.216.34/"); r.out != "hello from 93.184.216.34\n" {
		t.Errorf("%q %q %d", r.out, r.err, r.Code)
	}
	started := time.Now()
	if r := sh(t, agent, "wget -q -O - http://93.184.216.34/big | wc -c"); r.out != fmt.Sprintln(20<<20) {
		t.Errorf("%q %q %d", r.out, r.err, r.Code)
	}
	t.Logf("download: %.1f MB/s", 20*1.048576/time.Since(started).Seconds())
	for _, address := range []string{"10.0.2.2", "127.0.0.1", "192.168.0.1", "169.254.169.254"} {
		if r := sh(t, agent, "wget -q -T 5 -O - http://"+address+"/"); r.Code == 0 {
			t.Errorf("the guest reaches %s: %q", address, r.out)
		}
	}
	world.mu.Lock()
	for _, to := range world.dialed {
		if to != "tcp 93.184.216.34:80" {
			t.Errorf("dialled %s", to)
		}
	}
	world.mu.Unlock()
	if r := sh(t, agent, "cat /etc/resolv.conf; grep net /etc/hosts"); r.out != "nameserver 10.0.2.2\n10.0.2.15\tnet\n" {
		t.Errorf("%q", r.out)
	}

	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan struct{})
	served := make(chan struct{})
	go func() {
		defer close(served)
		agent.Exec(ctx, Process{Args: []string{"sh", "-c", "while echo from the guest | nc -l -p 7000; do :; done"}, Started: func() { close(listening) }})
	}()
	<-listening
	said := ""
	for end := time.Now().Add(20 * time.Second); said == "" && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", published)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		text, _ := io.ReadAll(conn)
		conn.Close()
		said = string(text)
	}
	if strings.TrimSpace(said) != "from the guest" {
		t.Errorf("the published port says %q", said)
	}
	cancel()
	<-served
	vm.Kill()
	if conn, err := net.Dial("tcp", published); err == nil {
		conn.Close()
		t.Error("the port is still published after the machine has ended")
	}
}
