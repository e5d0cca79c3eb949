package main

import (
	"fmt"
	"net/netip"
	"syscall"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
	"golang.org/x/sys/unix"
)

// configureNetwork brings lo up, and the interface n names with its address and default route.
func configureNetwork(n *agentproto.Network) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure the network: %w", err)
	}
	defer unix.Close(fd)
	if err := interfaceUp(fd, "lo"); err != nil {
		return err
	}
	if n == nil {
		return nil
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(n.Gateway)
	if err != nil {
		return err
	}
	mask := netip.AddrFrom4([4]byte(maskOf(prefix.Bits())))
	if err := setAddress(fd, n.Interface, unix.SIOCSIFADDR, prefix.Addr()); err != nil {
		return err
	}
	if err := setAddress(fd, n.Interface, unix.SIOCSIFNETMASK, mask); err != nil {
		return err
	}
	if n.MTU > 0 {
		r, err := unix.NewIfreq(n.Interface)
		if err != nil {
			return err
		}
		r.SetUint32(uint32(n.MTU))
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, r); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", n.Interface, err)
		}
	}
	if err := interfaceUp(fd, n.Interface); err != nil {
		return err
	}
	return addDefaultRoute(gateway)
}

func maskOf(bits int) []byte {
	mask := make([]byte, 4)
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

func interfaceUp(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

func setAddress(fd int, name string, request uint, address netip.Addr) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	raw := address.As4()
	if err := r.SetInet4Addr(raw[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, request, r); err != nil {
		return fmt.Errorf("set the address of %s: %w", name, err)
	}
	return nil
}

// addDefaultRoute asks rtnetlink(7) for a route to everywhere by gateway.
func addDefaultRoute(gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	raw := gateway.As4()
	// nlmsghdr (16), rtmsg (12), rtattr RTA_GATEWAY (8): rtnetlink(7).
	msg := make([]byte, 36)
	le := func(b []byte, v uint32, n int) {
		for i := range n {
			b[i] = byte(v >> (8 * i))
		}
	}
	le(msg[0:], 36, 4)
	le(msg[4:], unix.RTM_NEWROUTE, 2)
	le(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_ACK, 2)
	msg[16], msg[20], msg[21], msg[22], msg[23] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	le(msg[28:], 8, 2)
	le(msg[30:], unix.RTA_GATEWAY, 2)
	copy(msg[32:], raw[:])
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < 20 {
		return fmt.Errorf("add the default route: no answer from the kernel (%v)", err)
	}
	if errno := -int32(uint32(answer[16]) | uint32(answer[17])<<8 | uint32(answer[18])<<16 | uint32(answer[19])<<24); errno != 0 {
		return fmt.Errorf("add the default route by %s: %w", gateway, syscall.Errno(errno))
	}
	return nil
}
