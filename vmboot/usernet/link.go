package usernet

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
)

const (
	// queuedFrames is how many frames wait for the guest before further ones are lost, as on any network.
	queuedFrames = 1024
	// maxFrame is the longest frame taken from the guest: 64 KiB of IP and an Ethernet header.
	maxFrame = 64<<10 + 14
)

// receive hands the guest's frames to the stack until the link is closed. A guest that breaks the framing, which is
// made by the VMM and not by it, loses its network.
func (n *Network) receive() {
	r := bufio.NewReaderSize(n.conn, 128<<10)
	var size [4]byte
	for {
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(size[:])
		if length > maxFrame {
			n.conn.Close()
			return
		}
		frame := make([]byte, length)
		if _, err := io.ReadFull(r, frame); err != nil {
			return
		}
		if isPing(frame) {
			continue
		}
		packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		n.link.InjectInbound(0, packet)
		packet.DecRef()
	}
}

// isPing says that a frame is ICMP for anybody but the gateway. The stack, which stands for every address there is, would
// answer as if each were there; who is there can only be found out by asking, which takes a privilege.
func isPing(frame []byte) bool {
	const typeAt, protocolAt, destinationAt = 12, 14 + 9, 14 + 16
	return len(frame) >= destinationAt+4 && binary.BigEndian.Uint16(frame[typeAt:]) == uint16(ipv4.ProtocolNumber) &&
		frame[protocolAt] == uint8(icmp.ProtocolNumber4) && netip.AddrFrom4([4]byte(frame[destinationAt:])) != netip.MustParseAddr(Gateway)
}

// send writes the stack's frames to the guest until the link or the network is closed.
func (n *Network) send() {
	var frame []byte
	for {
		packet := n.link.ReadContext(n.ctx)
		if packet == nil {
			return
		}
		frame = binary.BigEndian.AppendUint32(frame[:0], uint32(packet.Size()))
		for _, part := range packet.AsSlices() {
			frame = append(frame, part...)
		}
		packet.DecRef()
		if _, err := n.conn.Write(frame); err != nil {
			return
		}
	}
}
