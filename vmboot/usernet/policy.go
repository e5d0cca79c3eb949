package usernet

import (
	"fmt"
	"net"
	"net/netip"
)

// Policy is what a guest may reach.
type Policy string

const (
	// Public is the Internet, but neither the host nor any network that is not public.
	Public Policy = "public"
	// All is everything the host reaches, and the host's own loopback under the gateway's address.
	All Policy = "all"
	// None is nothing. Published ports work.
	None Policy = "none"
)

// ParsePolicy takes what a user writes.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case Public, All, None:
		return p, nil
	}
	return "", fmt.Errorf("network %q: must be none, public or all", s)
}

// allows says whether a guest may reach addr; own are the host's addresses.
func (p Policy) allows(addr netip.Addr, own func() ([]net.Addr, error)) error {
	switch {
	case p == All:
		return nil
	case p != Public:
		return fmt.Errorf("%s: the sandbox has no network", addr)
	case !isPublic(addr):
		return fmt.Errorf("%s: not a public address", addr)
	}
	// The host answers on its public addresses as it does on its loopback. Not knowing them is no reason to let pass.
	addrs, err := own()
	if err != nil {
		return fmt.Errorf("%s: the host's own addresses are not known: %w", addr, err)
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == addr {
			return fmt.Errorf("%s: an address of the host", addr)
		}
	}
	return nil
}

// isPublic follows IANA's special-purpose address registry (RFC 6890) for IPv4; guests have no other.
func isPublic(addr netip.Addr) bool {
	if !addr.Is4() || !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	b := addr.As4()
	switch {
	case b[0] == 0, b[0] >= 240: // "this network"; reserved and broadcast
		return false
	case b[0] == 100 && b[1]&0xc0 == 64: // shared address space, RFC 6598
		return false
	case b[0] == 192 && b[1] == 0 && b[2] == 0: // protocol assignments
		return false
	case b[0] == 192 && b[1] == 0 && b[2] == 2, b[0] == 198 && b[1] == 51 && b[2] == 100, b[0] == 203 && b[1] == 0 && b[2] == 113: // documentation
		return false
	case b[0] == 192 && b[1] == 88 && b[2] == 99: // 6to4 relays
		return false
	case b[0] == 198 && b[1]&0xfe == 18: // benchmarking
		return false
	}
	return true
}
