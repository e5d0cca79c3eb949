// Package agentproto is what the host and the guest agent say to each other over one virtio-serial port.
//
// The agent speaks first: a Hello frame. The host answers with a Setup frame. From then on the port carries a
// yamux session in which only the host opens streams; each stream begins with a Header that says what it is for:
//
//   - Control: one process. The host writes Request frames, the agent Reply frames, the last of which is an Exit.
//   - Stdin, Stdout, Stderr: the bytes of the process with the same number, nothing else. Closing the sender's
//     half is end of file. The agent closes Stdout and Stderr before it writes the Exit.
//   - Power: the host writes one Shutdown frame; the agent ends every process, syncs and answers with a Reply.
//
// Frames are a 32-bit big-endian length and a Message. Either side may be wrong or hostile: lengths are bounded by the
// reader; fields that a newer peer of the same Version has added to a message's end are ignored.
package agentproto

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// Version changes when the peers could misunderstand each other.
	Version = 2
	// Port is the virtio-serial port's name in /sys/class/virtio-ports/*/name.
	Port = "msb.agent"
	// Modules is the directory of the initramfs with kernel modules, compressed where the name does not end in .ko, to be loaded in
	// the order of their names.
	Modules = "modules"
	// PortParameter on the kernel's command line names the device to use instead, of a VMM that has no such ports.
	PortParameter = "msb.port"
	// RootTag is the virtiofs tag of the root filesystem.
	RootTag = "msbroot"
	// Magic begins every Hello.
	Magic = "msb-agent"
	// MaxRequest bounds frames from the host: arguments and environment, as execve(2) would (ARG_MAX, 2 MiB) and quoting.
	MaxRequest = 8 << 20
	// MaxReply bounds frames from the agent, which says little.
	MaxReply = 64 << 10
)

// Kind is what a stream is for.
type Kind uint8

// The kinds of streams.
const (
	Control Kind = 1 + iota
	Stdin
	Stdout
	Stderr
	Power
)

// Header is the first eight bytes of a stream.
type Header struct {
	Kind    Kind
	Process uint32 // number of the process the stream belongs to, chosen by the host, 0 for Power
}

// WriteTo writes h in its wire form.
func (h Header) WriteTo(w io.Writer) (int64, error) {
	b := [8]byte{byte(h.Kind), Version}
	binary.BigEndian.PutUint32(b[4:], h.Process)
	n, err := w.Write(b[:])
	return int64(n), err
}

// ReadHeader reads the Header a stream begins with.
func ReadHeader(r io.Reader) (Header, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Header{}, err
	}
	h := Header{Kind: Kind(b[0]), Process: binary.BigEndian.Uint32(b[4:])}
	if b[1] != Version {
		return Header{}, fmt.Errorf("stream of version %d, not %d", b[1], Version)
	}
	if h.Kind < Control || h.Kind > Power {
		return Header{}, fmt.Errorf("stream of unknown kind %d", h.Kind)
	}
	return h, nil
}
