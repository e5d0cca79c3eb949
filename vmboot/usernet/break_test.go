package usernet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// raw is the guest's end of a network, frame by frame.
type raw struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func rawGuest(t *testing.T, o Options) *raw {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(n.File())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); n.Close() })
	return &raw{t, conn, bufio.NewReader(conn)}
}

func (g *raw) send(frame []byte) {
	g.t.Helper()
	if _, err := g.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		g.t.Fatal(err)
	}
}

// answered says whether what has been sent is answered by a packet of the given Ethernet type and IP protocol before the
// gateway answers a ping that is sent after it. ARP is answered for the guest.
func (g *raw) answered(from netip.Addr) bool {
	g.t.Helper()
	g.send(ping(netip.MustParseAddr(Gateway), 0x7777))
	g.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	found := false
	for {
		var size [4]byte
		if _, err := io.ReadFull(g.r, size[:]); err != nil {
			g.t.Fatal(err)
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(g.r, frame); err != nil {
			g.t.Fatal(err)
		}
		switch binary.BigEndian.Uint16(frame[12:]) {
		case 0x0806: // who has our address?
			reply := append([]byte{}, frame...)
			copy(reply[0:], frame[6:12])
			copy(reply[6:], "\x52\x54\x00\x6d\x73\x62")
			reply[21] = 2
			copy(reply[22:], "\x52\x54\x00\x6d\x73\x62")
			copy(reply[28:], frame[38:42])
			copy(reply[32:], frame[22:32])
			g.send(reply)
		case 0x0800:
			source := netip.AddrFrom4([4]byte(frame[26:30]))
			if source.String() == Gateway && frame[23] == 1 && binary.BigEndian.Uint16(frame[38:]) == 0x7777 {
				return found
			}
			found = found || source == from
		case 0x86dd:
			found = true
		}
	}
}

// ping is an ICMP echo request of the guest's.
func ping(to netip.Addr, id uint16) []byte {
	body := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	binary.BigEndian.PutUint16(body[2:], checksum(body))
	return ipv4Frame(1, to, body)
}

func ipv4Frame(protocol byte, to netip.Addr, body []byte) []byte {
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(body)))
	source := netip.MustParseAddr(Guest).As4()
	target := to.As4()
	ip = append(append(ip, source[:]...), target[:]...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(append([]byte("\x52\x54\x00\x6d\x73\x01\x52\x54\x00\x6d\x73\x62\x08\x00"), ip...), body...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// A ping is answered by the gateway and by nobody else: what answers for everybody must not let a guest think that the host's
// network is there.
func TestNobodyIsPinged(t *testing.T) {
	for _, policy := range []Policy{None, Public, All} {
		g := rawGuest(t, Options{Policy: policy, Dialer: &outside{server: "127.0.0.1:1"}})
		for _, to := range []string{"127.0.0.1", "192.168.1.1", "10.0.2.9", "169.254.169.254", "93.184.216.34", "255.255.255.255"} {
			g.send(ping(netip.MustParseAddr(to), 1))
			if g.answered(netip.MustParseAddr(to)) {
				t.Errorf("%s: %s answers a ping", policy, to)
			}
		}
	}
}

// There is no IPv6, so that no form of an IPv4 address in one leads anywhere.
func TestNoIPv6(t *testing.T) {
	o := &outside{server: "127.0.0.1:1"}
	g := rawGuest(t, Options{Policy: All, Dialer: o})
	for _, to := range []string{"::1", "::ffff:127.0.0.1", "::ffff:192.168.1.1", "64:ff9b::7f00:1", "fe80::1", "2001:4860:4860::8888"} {
		target := netip.MustParseAddr(to).As16()
		source := netip.MustParseAddr("fe80::2").As16()
		syn := []byte{0x99, 0x99, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}
		frame := []byte("\x52\x54\x00\x6d\x73\x01\x52\x54\x00\x6d\x73\x62\x86\xdd\x60\x00\x00\x00\x00\x14\x06\x40")
		g.send(append(append(append(frame, source[:]...), target[:]...), syn...))
	}
	if g.answered(netip.Addr{}) || len(o.dialed) > 0 {
		t.Errorf("IPv6 is answered; dialled %v", o.dialed)
	}
}

// A name may lead to a private address: that is what the connection is judged by.
func TestRebinding(t *testing.T) {
	server := echo(t) // whatever the name server says
	for _, address := range []string{"192.168.1.1", "10.0.2.2", "169.254.169.254", "100.64.0.1"} {
		o := &outside{server: server}
		_, g := connect(t, Options{Policy: Public, Dialer: o, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}})
		names, err := g.dialUDP(Gateway + ":53")
		if err != nil {
			t.Fatal(err)
		}
		names.Write([]byte(address))
		names.SetReadDeadline(time.Now().Add(20 * time.Second))
		answer := make([]byte, 99)
		n, err := names.Read(answer)
		names.Close()
		if err != nil {
			t.Fatal(err)
		}
		if conn, err := g.dial(string(answer[:n]) + ":80"); err == nil {
			conn.Close()
			t.Errorf("a name that leads to %s was followed", address)
		}
		if got := strings.Join(o.dialed, ","); got != "udp 127.0.0.53:53" {
			t.Errorf("dialled %s", got)
		}
	}
}

// Without a network there are no names, on no port of the gateway is anything, and published ports work all the same.
func TestNoneHasNoServices(t *testing.T) {
	for _, policy := range []Policy{None, Public} {
		o := &outside{server: "127.0.0.1:1"}
		_, g := connect(t, Options{Policy: policy, Dialer: o, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}})
		for _, port := range []string{"22", "80", "443", "6060", "8080"} {
			if conn, err := g.dial(Gateway + ":" + port); err == nil {
				conn.Close()
				t.Errorf("%s: the gateway serves port %s", policy, port)
			}
		}
		if policy != None {
			continue
		}
		if conn, err := g.dial(Gateway + ":53"); err == nil {
			conn.Close()
			t.Error("names are resolved without a network")
		}
		if conn, err := g.dialUDP(Gateway + ":53"); err == nil {
			conn.Write([]byte("query"))
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := conn.Read(make([]byte, 99)); err == nil {
				t.Errorf("names are resolved without a network: %d bytes", n)
			}
			conn.Close()
		}
		if len(o.dialed) > 0 {
			t.Errorf("dialled %v", o.dialed)
		}
	}
}

// A network that was made before it was known whose it is gets its policy and ports later.
func TestPermit(t *testing.T) {
	o := &outside{server: echo(t)}
	n, g := connect(t, Options{Dialer: o})
	const to = "93.184.216.34:443"
	if conn, err := g.dial(to); err == nil {
		conn.Close()
		t.Error("reached without a policy")
	}
	if err := n.Permit(Public, []Port{{Bind: netip.MustParseAddr("127.0.0.1"), Guest: 80}}); err != nil {
		t.Fatal(err)
	}
	conn, err := g.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if len(n.Listening()) != 1 {
		t.Errorf("listening on %v", n.Listening())
	}
	if conn, err := g.dial("192.168.1.1:80"); err == nil {
		conn.Close()
		t.Error("a private address was reached")
	}
}

func TestPublishSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		port Port
		want error
		says string
	}{
		{Port{Bind: netip.MustParseAddr("127.0.0.1"), Host: port, Guest: 80}, syscall.EADDRINUSE, "choose another port"},
		{Port{Bind: netip.MustParseAddr("203.0.113.1"), Guest: 80}, syscall.EADDRNOTAVAIL, "not an address of this host"},
		{Port{Bind: netip.MustParseAddr("203.0.113.1"), Guest: 80, UDP: true}, syscall.EADDRNOTAVAIL, "not an address of this host"},
	} {
		n, err := New(Options{Ports: []Port{c.port}})
		if err == nil {
			n.Close()
		}
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.port, err)
		}
	}
}
