package usernet

import (
	"bufio"
	"encoding/binary"
	"io"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
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
		packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		n.link.InjectInbound(0, packet)
		packet.DecRef()
	}
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
