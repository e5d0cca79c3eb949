package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Requests of the front end, of docs/interop/vhost-user.rst, "Front-end message types".
const (
	msgGetFeatures         = 1
	msgSetFeatures         = 2
	msgSetOwner            = 3
	msgResetOwner          = 4
	msgSetMemTable         = 5
	msgSetVringNum         = 8
	msgSetVringAddr        = 9
	msgSetVringBase        = 10
	msgGetVringBase        = 11
	msgSetVringKick        = 12
	msgSetVringCall        = 13
	msgSetVringErr         = 14
	msgGetProtocolFeatures = 15
	msgSetProtocolFeatures = 16
	msgGetQueueNum         = 17
	msgSetVringEnable      = 18
	msgResetDevice         = 34
	msgGetMaxMemSlots      = 36
	msgAddMemReg           = 37
	msgRemMemReg           = 38
)

const (
	headerSize = 12
	maxPayload = 1024 // the largest message we know has 8 + 8*32 bytes
	maxFiles   = 8    // descriptors that one message carries at most

	flagVersion     = 0x1
	flagVersionMask = 0x3
	flagReply       = 0x4
	flagNeedReply   = 0x8
)

// A message is one request of the front end. It owns the descriptors that came with it until somebody takes them.
type message struct {
	kind    uint32
	flags   uint32
	payload []byte
	files   []int

	reply []byte // what a request that asks for something is answered
	acked bool   // REPLY_ACK has been negotiated, so flagNeedReply means something
}

// name is the message's type for error messages.
func (m *message) name() string {
	names := map[uint32]string{
		msgGetFeatures: "GET_FEATURES", msgSetFeatures: "SET_FEATURES", msgSetOwner: "SET_OWNER", msgResetOwner: "RESET_OWNER",
		msgSetMemTable: "SET_MEM_TABLE", msgSetVringNum: "SET_VRING_NUM", msgSetVringAddr: "SET_VRING_ADDR",
		msgSetVringBase: "SET_VRING_BASE", msgGetVringBase: "GET_VRING_BASE", msgSetVringKick: "SET_VRING_KICK",
		msgSetVringCall: "SET_VRING_CALL", msgSetVringErr: "SET_VRING_ERR", msgGetProtocolFeatures: "GET_PROTOCOL_FEATURES",
		msgSetProtocolFeatures: "SET_PROTOCOL_FEATURES", msgGetQueueNum: "GET_QUEUE_NUM", msgSetVringEnable: "SET_VRING_ENABLE",
		msgResetDevice: "RESET_DEVICE", msgGetMaxMemSlots: "GET_MAX_MEM_SLOTS", msgAddMemReg: "ADD_MEM_REG", msgRemMemReg: "REM_MEM_REG",
	}
	if n, ok := names[m.kind]; ok {
		return n
	}
	return fmt.Sprintf("request %d", m.kind)
}

// takeFile gives the caller the only descriptor of the message.
func (m *message) takeFile() (int, error) {
	if len(m.files) != 1 {
		return -1, fmt.Errorf("%d descriptors instead of one", len(m.files))
	}
	fd := m.files[0]
	m.files = nil
	return fd, nil
}

// closeFiles closes the descriptors that nobody took.
func (m *message) closeFiles() {
	for _, fd := range m.files {
		unix.Close(fd)
	}
	m.files = nil
}

// u64 is the payload of the messages that carry one number.
func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, m.badSize(8)
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// vringState is the payload of the messages that carry a queue's index and one number.
func (m *message) vringState() (index, num uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, m.badSize(8)
	}
	return binary.LittleEndian.Uint32(m.payload), binary.LittleEndian.Uint32(m.payload[4:]), nil
}

func (m *message) badSize(want int) error {
	return fmt.Errorf("payload of %d bytes instead of %d", len(m.payload), want)
}

// answerU64 makes v the reply.
func (m *message) answerU64(v uint64) {
	m.reply = binary.LittleEndian.AppendUint64(nil, v)
}

// A channel carries the messages of one connection. Its methods are called by one goroutine.
type channel struct {
	conn *net.UnixConn
	in   [headerSize + maxPayload]byte
	oob  [1024]byte
}

// receive waits for the next message. The message is valid until the next receive. io.EOF means that the front end has
// gone: an orderly close and a killed process look the same, and both may cut a message short.
func (c *channel) receive() (*message, error) {
	m := &message{}
	if err := c.fill(m, c.in[:headerSize]); err != nil {
		m.closeFiles()
		return nil, err
	}
	m.kind = binary.LittleEndian.Uint32(c.in[0:])
	m.flags = binary.LittleEndian.Uint32(c.in[4:])
	size := binary.LittleEndian.Uint32(c.in[8:])
	if m.flags&flagVersionMask != flagVersion || m.flags&flagReply != 0 || size > maxPayload {
		m.closeFiles()
		return nil, fmt.Errorf("malformed header: request %d, flags %#x, size %d", m.kind, m.flags, size)
	}
	m.payload = c.in[headerSize : headerSize+size]
	if err := c.fill(m, m.payload); err != nil {
		m.closeFiles()
		return nil, err
	}
	return m, nil
}

// fill reads len(p) bytes, and the descriptors that come with them.
func (c *channel) fill(m *message, p []byte) error {
	for len(p) > 0 {
		n, oobn, flags, _, err := c.conn.ReadMsgUnix(p, c.oob[:])
		if oobn > 0 {
			if ferr := m.addFiles(c.oob[:oobn]); ferr != nil {
				return ferr
			}
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("more descriptors in a message than there may be")
		}
		if err != nil {
			if errors.Is(err, unix.ECONNRESET) {
				return io.EOF
			}
			return err
		}
		if n == 0 {
			return io.EOF
		}
		p = p[n:]
	}
	return nil
}

// addFiles takes over the descriptors of a control message. They are close-on-exec: net asks for that.
func (m *message) addFiles(oob []byte) error {
	scms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("control message: %w", err)
	}
	for i := range scms {
		fds, err := unix.ParseUnixRights(&scms[i])
		if err != nil {
			continue // credentials and the like, which nobody asked for
		}
		m.files = append(m.files, fds...)
	}
	if len(m.files) > maxFiles {
		return fmt.Errorf("%d descriptors in a message, at most %d are allowed", len(m.files), maxFiles)
	}
	return nil
}

// answer sends the reply of m, or the acknowledgement that it asks for: 0 when it was carried out, 1 when err says not.
func (c *channel) answer(m *message, err error) error {
	reply := m.reply
	if reply == nil || err != nil {
		if m.flags&flagNeedReply == 0 || !m.acked {
			return nil
		}
		var status uint64
		if err != nil {
			status = 1
		}
		reply = binary.LittleEndian.AppendUint64(nil, status)
	}
	out := make([]byte, 0, headerSize+len(reply))
	out = binary.LittleEndian.AppendUint32(out, m.kind)
	out = binary.LittleEndian.AppendUint32(out, flagVersion|flagReply)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(reply)))
	_, werr := c.conn.Write(append(out, reply...))
	return werr
}
