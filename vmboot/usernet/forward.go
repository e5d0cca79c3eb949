package usernet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dialTimeout = 30 * time.Second
	// maxDialing bounds connections being made at the same time, maxSessions connections and datagram sessions.
	maxDialing  = 64
	maxSessions = 1024
	// udpIdle is how long a datagram session lasts without a datagram: two minutes at least, RFC 4787 REQ-5.
	udpIdle = 2 * time.Minute
	dnsPort = 53
)

// target says where a guest's connection to address goes on the host, or why nowhere.
func (n *Network) target(address tcpip.Address, port uint16) (netip.AddrPort, error) {
	if address.Len() != 4 {
		return netip.AddrPort{}, fmt.Errorf("not an IPv4 address")
	}
	to := netip.AddrPortFrom(netip.AddrFrom4(address.As4()), port)
	n.mu.Lock()
	policy := n.policy
	n.mu.Unlock()
	if to.Addr() == netip.MustParseAddr(Gateway) {
		if port == dnsPort && policy != None {
			if resolvers := n.resolvers(); len(resolvers) > 0 {
				return resolvers[0], nil
			}
		}
		if policy == All {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), nil
		}
		return to, fmt.Errorf("%s: the gateway has no such service", to)
	}
	if netip.MustParsePrefix(Subnet).Contains(to.Addr()) {
		return to, fmt.Errorf("%s: nobody is there", to)
	}
	return to, policy.allows(to.Addr(), net.InterfaceAddrs)
}

// begin adds to what Close waits for, unless it already does: the stack starts goroutines without asking.
func (n *Network) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.wg.Add(1)
	return true
}

// enter takes a token of limit, or says that there are too many sessions.
func (n *Network) enter() bool {
	select {
	case n.limit <- struct{}{}:
		return true
	default:
		return false
	}
}

func (n *Network) leave() { <-n.limit }

// forwardTCP connects a guest's connection with one of the host's. The guest's handshake ends when the host's has,
// so that a refusal is one for the guest too. The stack calls it in a goroutine of its own.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest) {
	if !n.begin() {
		r.Complete(true)
		return
	}
	defer n.wg.Done()
	to, err := n.target(r.ID().LocalAddress, r.ID().LocalPort)
	if err != nil {
		n.refuse(err)
		r.Complete(true)
		return
	}
	if !n.enter() {
		r.Complete(true)
		return
	}
	defer n.leave()
	outside, err := n.options.Dialer.DialContext(n.ctx, "tcp", to.String())
	if err != nil {
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	endpoint, failure := r.CreateEndpoint(&queue)
	r.Complete(failure != nil)
	if failure != nil {
		outside.Close()
		return
	}
	n.splice(gonet.NewTCPConn(&queue, endpoint), outside)
}

// splice copies both ways until both directions have ended, each half-closed by itself, or the network is closed.
func (n *Network) splice(a, b net.Conn) {
	defer context.AfterFunc(n.ctx, func() { hangUp(a); hangUp(b) })()
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(onlyWriter{to}, onlyReader{from})
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
			return
		}
		hangUp(to)
		hangUp(from)
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
	a.Close()
	b.Close()
}

// hangUp closes a connection under whoever reads it. The stack's connections do not wake a reader by Close alone.
func hangUp(conn net.Conn) {
	conn.SetDeadline(time.Unix(1, 0))
	conn.Close()
}

type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// forwardUDP begins a session of datagrams between a guest's address and one outside.
func (n *Network) forwardUDP(r *udp.ForwarderRequest) {
	id := r.ID()
	to, err := n.target(id.LocalAddress, id.LocalPort)
	if err != nil {
		n.refuse(err)
		return
	}
	if !n.enter() {
		return
	}
	var queue waiter.Queue
	endpoint, failure := r.CreateEndpoint(&queue)
	if failure != nil {
		n.leave()
		return
	}
	inside := gonet.NewUDPConn(&queue, endpoint)
	n.wg.Go(func() {
		defer n.leave()
		outside, err := n.options.Dialer.DialContext(n.ctx, "udp", to.String())
		if err != nil {
			inside.Close()
			return
		}
		n.exchange(inside, outside)
	})
}

// exchange copies datagrams both ways until neither side has sent one for a while.
func (n *Network) exchange(a, b net.Conn) {
	defer context.AfterFunc(n.ctx, func() { hangUp(a); hangUp(b) })()
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			from.SetReadDeadline(time.Now().Add(udpIdle))
			size, err := from.Read(buf)
			if err != nil && isTransient(err) {
				continue // a port that is closed says so by ICMP; it may be opened
			}
			if err != nil {
				break
			}
			to.SetReadDeadline(time.Now().Add(udpIdle))
			to.Write(buf[:size])
		}
		hangUp(a)
		hangUp(b)
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

func isTransient(err error) bool { return strings.Contains(err.Error(), "connection refused") }

// resolvers returns the name servers to ask. The host's are looked for each time: it may be in another network than when the guest
// was booted.
func (n *Network) resolvers() []netip.AddrPort {
	if n.options.Resolvers != nil {
		return n.options.Resolvers
	}
	return hostResolvers("/etc/resolv.conf")
}

// hostResolvers returns the name servers of a resolv.conf(5), in its order; where it has none that is this machine.
func hostResolvers(file string) []netip.AddrPort {
	text, err := os.ReadFile(file)
	if err != nil {
		text = nil
	}
	var found []netip.AddrPort
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "nameserver" {
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				found = append(found, netip.AddrPortFrom(addr, dnsPort))
			}
		}
	}
	if len(found) == 0 {
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}
	}
	return found
}

// refuse tells what the policy has refused, but not at the pace a guest would choose.
func (n *Network) refuse(err error) {
	if n.options.Refused != nil && n.refusals.pass(time.Now()) {
		n.options.Refused(err)
	}
}

// throttle lets one event pass per second.
type throttle struct {
	mu   sync.Mutex
	last time.Time
}

func (t *throttle) pass(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.last) < time.Second {
		return false
	}
	t.last = now
	return true
}
