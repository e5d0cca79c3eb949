// Package usernet gives a guest a network without any privilege on the host: its Ethernet frames end in gVisor's
// TCP/IP stack in this process, and every connection or datagram is made anew from here if the policy lets it.
//
// Everything that comes from the guest is hostile. Frames are bounded by the link, connections and datagram
// sessions in number; name resolution is the only service of the gateway.
package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// What every guest finds. Each is alone in its network, so they can all be the same.
const (
	Subnet  = "10.0.2.0/24"
	Guest   = "10.0.2.15"
	Gateway = "10.0.2.2" // also the name server
	MAC     = "52:54:00:6d:73:62"
	MTU     = 16000

	gatewayMAC = "\x52\x54\x00\x6d\x73\x01"
	nic        = 1
)

// Options are a network's settings. The zero value lets nothing out and publishes nothing.
type Options struct {
	Policy    Policy // "" is None
	Ports     []Port
	Resolvers []netip.AddrPort // name servers the gateway asks, the first of them; nil is the host's own, whichever it has by then
	Dialer    Dialer           // makes connections; nil is the host's
	Refused   func(error)      // told what the policy has refused, at most once a second; may be nil
}

// Dialer is what connections are made with.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Network is a guest's network. It lives until Close.
type Network struct {
	options Options
	file    *os.File // the VMM's end
	conn    net.Conn // ours: each frame follows its length, four bytes, big-endian
	stack   *stack.Stack
	link    *channel.Endpoint

	ctx       context.Context // of everything that goes on; cancelled by Close
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	listeners []net.Addr
	limit     chan struct{} // holds a token for each connection and session
	refusals  throttle
	closed    sync.Once
	mu        sync.Mutex // keeps begin and Close apart
	policy    Policy     // guarded by mu
}

// New returns a network whose published ports are already listening. The guest's end is File.
func New(o Options) (_ *Network, err error) {
	if o.Policy == "" {
		o.Policy = None
	}
	if o.Dialer == nil {
		o.Dialer = &net.Dialer{Timeout: dialTimeout}
	}
	n := &Network{options: o, policy: o.Policy, limit: make(chan struct{}, maxSessions)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if err := n.openLink(); err != nil {
		return nil, err
	}
	if err := n.openStack(); err != nil {
		return nil, err
	}
	for _, p := range o.Ports {
		if err := n.publish(p); err != nil {
			return nil, err
		}
	}
	n.wg.Go(n.receive)
	n.wg.Go(n.send)
	return n, nil
}

// File returns the VMM's end of the link: a stream socket on which each Ethernet frame follows its length in four
// bytes, as QEMU's -netdev stream has it. It stays the Network's.
func (n *Network) File() *os.File { return n.file }

// Listening returns the host's addresses of the published ports, in their order.
func (n *Network) Listening() []net.Addr { return n.listeners }

// Permit changes the policy and publishes further ports, for a guest that was booted before it was known whose it is.
// Connections that the guest has keep going. Where a port cannot be published the others may have been.
func (n *Network) Permit(p Policy, ports []Port) error {
	n.mu.Lock()
	n.policy = p
	n.mu.Unlock()
	for _, port := range ports {
		if err := n.publish(port); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every connection and returns when nothing of the network is left.
func (n *Network) Close() {
	n.closed.Do(func() {
		n.mu.Lock()
		n.cancel()
		n.mu.Unlock()
		if n.conn != nil {
			n.conn.Close()
			n.file.Close()
		}
		n.abort()
		if n.stack != nil {
			n.stack.Destroy()
			n.link.Close()
		}
	})
}

// abort waits for everything that Network has started. A handshake that the guest no longer answers would last many
// seconds, and one may have begun a moment ago, so the stack's connections are reset until nobody waits for one.
func (n *Network) abort() {
	over := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(over)
	}()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if n.stack != nil {
			for _, e := range n.stack.RegisteredEndpoints() {
				e.Abort()
			}
		}
		select {
		case <-over:
			return
		case <-again.C:
		}
	}
}

func (n *Network) openLink() error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make the network's socket pair: %w", err)
	}
	n.file = os.NewFile(uintptr(fds[1]), "network")
	ours := os.NewFile(uintptr(fds[0]), "network")
	defer ours.Close()
	if n.conn, err = net.FileConn(ours); err != nil {
		n.file.Close()
		return fmt.Errorf("open the network's socket: %w", err)
	}
	return nil
}

func (n *Network) openStack() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	n.link = channel.New(queuedFrames, MTU+14, tcpip.LinkAddress(gatewayMAC))
	if e := n.stack.CreateNIC(nic, ethernet.New(n.link)); e != nil {
		return fmt.Errorf("make the network's interface: %s", e)
	}
	gateway := netip.MustParseAddr(Gateway)
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(gateway.As4()), PrefixLen: netip.MustParsePrefix(Subnet).Bits()}}
	if e := n.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); e != nil {
		return fmt.Errorf("give the gateway its address: %s", e)
	}
	// The stack stands for every address there is: it takes packets for any, and answers as any.
	n.stack.SetPromiscuousMode(nic, true)
	n.stack.SetSpoofing(nic, true)
	n.stack.SetRouteTable([]tcpip.Route{{Destination: address.AddressWithPrefix.Subnet(), NIC: nic}})
	sack := tcpip.TCPSACKEnabled(true)
	n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, maxDialing, n.forwardTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.forwardUDP).HandlePacket)
	return nil
}
