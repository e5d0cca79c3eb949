package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// Port is a port of the guest published on the host.
type Port struct {
	Bind  netip.Addr // on the host
	Host  uint16     // 0 lets the host choose
	Guest uint16
	UDP   bool
}

// ParsePort takes [BIND:]HOST:GUEST[/tcp|/udp]. Without BIND it is the host's loopback: who wants the world to
// reach a sandbox says so.
func ParsePort(s string) (Port, error) {
	bad := func(why string) (Port, error) {
		return Port{}, fmt.Errorf("published port %q: %s: must be [BIND:]HOST:GUEST[/udp]", s, why)
	}
	ports, protocol, _ := strings.Cut(s, "/")
	p := Port{Bind: netip.AddrFrom4([4]byte{127, 0, 0, 1}), UDP: protocol == "udp"}
	if protocol != "" && protocol != "tcp" && protocol != "udp" {
		return bad("unknown protocol")
	}
	at := strings.LastIndexByte(ports, ':')
	if at < 0 {
		return bad("no guest port")
	}
	host, guest := ports[:at], ports[at+1:]
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		bind, err := netip.ParseAddr(strings.Trim(host[:i], "[]"))
		if err != nil {
			return bad("BIND is no IP address")
		}
		p.Bind, host = bind, host[i+1:]
	}
	h, err := strconv.ParseUint(host, 10, 16)
	if err != nil {
		return bad("bad host port")
	}
	g, err := strconv.ParseUint(guest, 10, 16)
	if err != nil || g == 0 {
		return bad("bad guest port")
	}
	p.Host, p.Guest = uint16(h), uint16(g)
	return p, nil
}

func (p Port) String() string {
	s := fmt.Sprintf("%s:%d", netip.AddrPortFrom(p.Bind, p.Host), p.Guest)
	if p.UDP {
		s += "/udp"
	}
	return s
}

// publish listens on the host for p.
func (n *Network) publish(p Port) error {
	address := netip.AddrPortFrom(p.Bind, p.Host).String()
	if p.UDP {
		return n.publishUDP(p, address)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return publishError(p, address, err)
	}
	n.listeners = append(n.listeners, ln.Addr())
	context.AfterFunc(n.ctx, func() { ln.Close() })
	n.wg.Go(func() {
		for {
			outside, err := ln.Accept()
			if err != nil {
				if n.ctx.Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // no descriptors left: what has been accepted goes on
				continue
			}
			if !n.enter() {
				outside.Close()
				continue
			}
			n.wg.Go(func() {
				defer n.leave()
				ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
				inside, err := gonet.DialContextTCP(ctx, n.stack, guestAddress(p.Guest), ipv4.ProtocolNumber)
				cancel()
				if err != nil {
					outside.Close()
					return
				}
				n.splice(inside, outside)
			})
		}
	})
	return nil
}

func publishError(p Port, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("publish port %d on %s: %w: choose another port of the host, or end what listens there", p.Guest, address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("publish port %d on %s: %w: it is not an address of this host", p.Guest, address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("publish port %d on %s: %w: ports below 1024 are for root, choose a higher one", p.Guest, address, err)
	}
	return fmt.Errorf("publish port %d on %s: %w", p.Guest, address, err)
}

func guestAddress(port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(netip.MustParseAddr(Guest).As4()), Port: port}
}

// publishUDP gives every peer of the published port a session of its own, so that answers find their way.
func (n *Network) publishUDP(p Port, address string) error {
	bound, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
	if err != nil {
		return publishError(p, address+"/udp", err)
	}
	n.listeners = append(n.listeners, socket.LocalAddr())
	context.AfterFunc(n.ctx, func() { socket.Close() })
	n.wg.Go(func() {
		var mu sync.Mutex
		sessions := make(map[netip.AddrPort]net.Conn)
		buf := make([]byte, 64<<10)
		for {
			size, peer, err := socket.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			inside := sessions[peer]
			mu.Unlock()
			if inside == nil {
				if !n.enter() {
					continue
				}
				to := guestAddress(p.Guest)
				conn, err := gonet.DialUDP(n.stack, nil, &to, ipv4.ProtocolNumber)
				if err != nil {
					n.leave()
					continue
				}
				inside = conn
				mu.Lock()
				sessions[peer] = inside
				mu.Unlock()
				n.wg.Go(func() {
					defer n.leave()
					n.answer(socket, peer, conn)
					mu.Lock()
					delete(sessions, peer)
					mu.Unlock()
				})
			}
			inside.SetReadDeadline(time.Now().Add(udpIdle))
			inside.Write(buf[:size])
		}
	})
	return nil
}

// answer sends the guest's datagrams of one session back to its peer until there have been none for a while.
func (n *Network) answer(socket *net.UDPConn, peer netip.AddrPort, inside net.Conn) {
	defer inside.Close()
	defer context.AfterFunc(n.ctx, func() { hangUp(inside) })()
	buf := make([]byte, 64<<10)
	for {
		size, err := inside.Read(buf)
		if err != nil && isTransient(err) {
			continue
		}
		if err != nil {
			return
		}
		socket.WriteToUDPAddrPort(buf[:size], peer)
	}
}
