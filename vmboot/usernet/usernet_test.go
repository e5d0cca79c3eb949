package usernet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// guest is a TCP/IP stack at the other end of a Network's link, as a guest's kernel would be.
type guest struct{ stack *stack.Stack }

func connect(t *testing.T, o Options) (*Network, *guest) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := net.FileConn(n.File())
	if err != nil {
		t.Fatal(err)
	}
	link := channel.New(1024, 1514, tcpip.LinkAddress("\x52\x54\x00\x6d\x73\x62"))
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if e := s.CreateNIC(1, ethernet.New(link)); e != nil {
		t.Fatal(e)
	}
	own := tcpip.AddrFrom4(netip.MustParseAddr(Guest).As4())
	s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: own, PrefixLen: 24}}, stack.AddressProperties{})
	everywhere, _ := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{}), tcpip.MaskFromBytes(make([]byte, 4)))
	s.SetRouteTable([]tcpip.Route{{Destination: everywhere, Gateway: tcpip.AddrFrom4(netip.MustParseAddr(Gateway).As4()), NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := link.ReadContext(ctx); p != nil; p = link.ReadContext(ctx) {
			frame := binary.BigEndian.AppendUint32(nil, uint32(p.Size()))
			frame = append(frame, p.ToView().AsSlice()...)
			p.DecRef()
			fd.Write(frame)
		}
	})
	wg.Go(func() {
		r := bufio.NewReader(fd)
		for {
			var size [4]byte
			if _, err := io.ReadFull(r, size[:]); err != nil {
				return
			}
			frame := make([]byte, binary.BigEndian.Uint32(size[:]))
			if _, err := io.ReadFull(r, frame); err != nil {
				return
			}
			link.InjectInbound(0, stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)}))
		}
	})
	t.Cleanup(func() {
		n.Close()
		cancel()
		fd.Close()
		wg.Wait()
		s.Destroy()
		goleak.VerifyNone(t, before)
	})
	return n, &guest{s}
}

func (g *guest) dial(to string) (net.Conn, error) {
	a := netip.MustParseAddrPort(to)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}, ipv4.ProtocolNumber)
}

func (g *guest) dialUDP(to string) (net.Conn, error) {
	a := netip.MustParseAddrPort(to)
	return gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}, ipv4.ProtocolNumber)
}

// outside records what is dialled and leads every connection to one server.
type outside struct {
	mu     sync.Mutex
	server string
	dialed []string
}

func (o *outside) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	o.mu.Lock()
	o.dialed = append(o.dialed, network+" "+address)
	o.mu.Unlock()
	var d net.Dialer
	return d.DialContext(ctx, network, o.server)
}

// echo serves TCP and UDP on one loopback port, and gives back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		packets.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func TestPolicies(t *testing.T) {
	server := echo(t)
	host := ""
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); p.Addr().Is4() && !p.Addr().IsLoopback() {
			host = p.Addr().String()
		}
	}
	for _, c := range []struct {
		to          string
		public, all bool
	}{
		{"93.184.216.34:443", true, true},
		{"8.8.8.8:53", true, true},
		{"10.0.2.2:22", false, true}, // the host's loopback
		{"10.0.2.9:80", false, false},
		{"10.1.2.3:80", false, true},
		{"172.16.0.1:80", false, true},
		{"172.31.255.255:80", false, true},
		{"192.168.1.1:80", false, true},
		{"169.254.169.254:80", false, true}, // the metadata service of clouds
		{"100.64.0.1:80", false, true},
		{"198.18.0.1:80", false, true},
		{"192.0.0.8:80", false, true},
		{"0.0.0.1:80", false, true},
		{"240.0.0.1:80", false, true},
	} {
		for policy, want := range map[Policy]bool{Public: c.public, All: c.all, None: false} {
			t.Run(fmt.Sprint(policy, " ", c.to), func(t *testing.T) {
				o := &outside{server: server}
				_, g := connect(t, Options{Policy: policy, Dialer: o, Resolvers: []netip.AddrPort{}})
				conn, err := g.dial(c.to)
				if (err == nil) != want {
					t.Errorf("%v; reached: %v", err, o.dialed)
				}
				if err == nil {
					conn.Close()
				}
				if len(o.dialed) > 0 != want {
					t.Errorf("dialled %v", o.dialed)
				}
			})
		}
	}
	t.Run("the host's own address", func(t *testing.T) {
		if host == "" {
			t.Skip("this host has no IPv4 address but loopback")
		}
		o := &outside{server: server}
		_, g := connect(t, Options{Policy: Public, Dialer: o})
		if _, err := g.dial(host + ":80"); err == nil {
			t.Errorf("reached %v", o.dialed)
		}
		own := func() ([]net.Addr, error) {
			return []net.Addr{&net.IPNet{IP: net.IPv4(93, 184, 216, 34), Mask: net.CIDRMask(24, 32)}}, nil
		}
		if Public.allows(netip.MustParseAddr("93.184.216.34"), own) == nil {
			t.Error("a public address of the host is let pass")
		}
		if err := Public.allows(netip.MustParseAddr("93.184.216.35"), own); err != nil {
			t.Error(err)
		}
	})
	t.Run("datagrams", func(t *testing.T) {
		o := &outside{server: server}
		_, g := connect(t, Options{Policy: Public, Dialer: o})
		private, err := g.dialUDP("192.168.1.1:99")
		if err != nil {
			t.Fatal(err)
		}
		defer private.Close()
		private.Write([]byte("x"))
		public, err := g.dialUDP("93.184.216.34:99")
		if err != nil {
			t.Fatal(err)
		}
		defer public.Close()
		public.Write([]byte("hello"))
		public.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 99)
		if n, err := public.Read(buf); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if got := strings.Join(o.dialed, ","); got != "udp 93.184.216.34:99" {
			t.Errorf("dialled %s", got)
		}
	})
}

func TestNamesAreAskedOfTheHostsServer(t *testing.T) {
	o := &outside{server: echo(t)}
	_, g := connect(t, Options{Policy: Public, Dialer: o, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}})
	conn, err := g.dialUDP(Gateway + ":53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("query"))
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 99)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "query" || o.dialed[0] != "udp 127.0.0.53:53" {
		t.Errorf("%q, %v, %v", buf[:n], err, o.dialed)
	}
	if c, err := g.dial(Gateway + ":80"); err == nil {
		c.Close()
		t.Error("the gateway has a port beside that of names")
	}
}

func TestBytesBothWaysAndHalfClose(t *testing.T) {
	_, g := connect(t, Options{Policy: Public, Dialer: &outside{server: echo(t)}})
	conn, err := g.dial("93.184.216.34:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	go func() {
		conn.Write(data)
		conn.(*gonet.TCPConn).CloseWrite()
	}()
	sum := sha256.New()
	if n, err := io.Copy(sum, conn); err != nil || n != int64(len(data)) {
		t.Fatalf("%d of %d bytes came back: %v", n, len(data), err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("other bytes came back")
	}
}

func TestPublishedPorts(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	n, g := connect(t, Options{Ports: []Port{{Bind: loopback, Guest: 80}, {Bind: loopback, Guest: 53, UDP: true}}})
	any := tcpip.AddrFrom4(netip.MustParseAddr(Guest).As4())
	ln, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Addr: any, Port: 80}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "from the guest")
			c.Close()
		}
	}()
	packets, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: 1, Addr: any, Port: 53}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	go func() {
		buf := make([]byte, 99)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	for range 3 {
		conn, err := net.Dial("tcp", n.Listening()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if said, err := io.ReadAll(conn); err != nil || string(said) != "from the guest" {
			t.Errorf("%q, %v", said, err)
		}
		conn.Close()
		peer, err := net.Dial("udp", n.Listening()[1].String())
		if err != nil {
			t.Fatal(err)
		}
		peer.Write([]byte("ask"))
		peer.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 99)
		if n, err := peer.Read(buf); err != nil || string(buf[:n]) != "re: ask" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		peer.Close()
	}
	if _, err := New(Options{Ports: []Port{{Bind: loopback, Host: uint16(n.Listening()[0].(*net.TCPAddr).Port), Guest: 1}}}); err == nil || !strings.Contains(err.Error(), "publish port 1 on 127.0.0.1:") {
		t.Errorf("a taken port: %v", err)
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "127.0.0.1:8080:80", "0.0.0.0:8080:80": "0.0.0.0:8080:80", "53:53/udp": "127.0.0.1:53:53/udp", "[::1]:1:2/tcp": "[::1]:1:2", "0:80": "127.0.0.1:0:80",
		"80": "", "a:80": "", "80:0": "", "1:70000": "", "1:2/sctp": "", "x:1:2": "", "": "",
	} {
		p, err := ParsePort(in)
		if (err != nil) != (want == "") || (err == nil && p.String() != want) {
			t.Errorf("ParsePort(%q) = %v, %v, want %q", in, p, err, want)
		}
	}
}

func TestHostResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for content, want := range map[string]string{
		"# none\nsearch x\nnameserver 127.0.0.53\nnameserver\nnameserver bad\n nameserver fe80::1%eth0 \n": "[127.0.0.53:53 [fe80::1%eth0]:53]",
		"nameserver\t2001:db8::1\r\noptions edns0":                                                         "[[2001:db8::1]:53]",
		"search example.com\n": "[127.0.0.1:53]",
		"":                     "[127.0.0.1:53]",
		"#nameserver 1.1.1.1\n;nameserver 1.1.1.1": "[127.0.0.1:53]",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(hostResolvers(file)); got != want {
			t.Errorf("%q: %s, want %s", content, got, want)
		}
	}
	if got := fmt.Sprint(hostResolvers(file + ".absent")); got != "[127.0.0.1:53]" {
		t.Error(got)
	}
}

// A guest sends what it likes: the network goes on, or is closed.
func TestHostileFrames(t *testing.T) {
	n, err := New(Options{Policy: Public, Dialer: &outside{server: "127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := net.FileConn(n.File())
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	go io.Copy(io.Discard, fd)
	for range 20000 {
		frame := make([]byte, random.IntN(200))
		for i := range frame {
			frame[i] = byte(random.Uint32())
		}
		if len(frame) > 34 && random.IntN(4) > 0 {
			copy(frame, "\x52\x54\x00\x6d\x73\x01\x52\x54\x00\x6d\x73\x62\x08\x00\x45") // to the gateway, IPv4
			frame[23] = []byte{1, 6, 17, 2}[random.IntN(4)]
		}
		if _, err := fd.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
			t.Fatal(err)
		}
	}
	fd.Write([]byte{0xff, 0xff, 0xff, 0xff})
	fd.SetReadDeadline(time.Now().Add(20 * time.Second))
	n.Close()
	fd.Close()
}
