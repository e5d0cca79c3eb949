package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
)

// Virtio feature bits (virtio 1.2, section 6) and the vhost-user bit beside them.
const (
	featIndirectDesc     = 1 << 28
	featEventIndex       = 1 << 29
	featProtocolFeatures = 1 << 30
	featVersion1         = 1 << 32

	ourFeatures = featIndirectDesc | featEventIndex | featProtocolFeatures | featVersion1
)

// vhost-user protocol features.
const (
	protoMQ                = 1 << 0
	protoReplyAck          = 1 << 3
	protoResetDevice       = 1 << 13
	protoConfigureMemSlots = 1 << 15

	ourProtocol = protoMQ | protoReplyAck | protoResetDevice | protoConfigureMemSlots
)

// noFile is the bit of a SET_VRING_KICK, CALL or ERR that says that no descriptor comes with it.
const noFile = 1 << 8

// A device is the state of one connection. Its methods are called by the goroutine that reads the messages.
type device struct {
	server   *server
	mem      *memory // nil before the first table; one reference is ours
	queues   []*queue
	features uint64
	protocol uint64
}

// newDevice makes the high-priority queue, number 0, and the request queues after it (virtio 1.2, section 5.11.2).
func newDevice(s *server) *device {
	d := &device{server: s}
	for i := range 1 + s.queues {
		d.queues = append(d.queues, newQueue(s, i))
	}
	return d
}

// close gives up what is in progress and releases everything.
func (d *device) close() {
	for _, q := range d.queues {
		q.halt()
	}
	for _, q := range d.queues {
		q.stop(0)
		q.close()
	}
	if d.mem != nil {
		d.mem.release()
		d.mem = nil
	}
}

// carryOut is handle, with a panic made an error. Rings are looked at when they are set up, and the host may have no
// page to put there: huge pages are only promised.
func (d *device) carryOut(m *message) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return d.handle(m)
}

// handle carries out one message. An error ends the connection: the front end has broken the protocol, or asks for what
// cannot be.
func (d *device) handle(m *message) error {
	m.acked = d.protocol&protoReplyAck != 0
	switch m.kind {
	case msgGetFeatures:
		m.answerU64(ourFeatures)
	case msgSetFeatures:
		return d.setFeatures(m)
	case msgGetProtocolFeatures:
		m.answerU64(ourProtocol)
	case msgSetProtocolFeatures:
		return d.setProtocolFeatures(m)
	case msgGetQueueNum:
		m.answerU64(uint64(len(d.queues)))
	case msgSetOwner:
	case msgResetOwner, msgResetDevice:
		d.reset()
	case msgGetMaxMemSlots:
		m.answerU64(maxRegions)
	case msgSetMemTable:
		return d.setMemTable(m)
	case msgAddMemReg:
		return d.addRegion(m)
	case msgRemMemReg:
		return d.removeRegion(m)
	case msgSetVringNum, msgSetVringAddr, msgSetVringBase, msgGetVringBase, msgSetVringEnable,
		msgSetVringKick, msgSetVringCall, msgSetVringErr:
		return d.handleVring(m)
	default:
		return errors.New("not supported")
	}
	return nil
}

func (d *device) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^ourFeatures != 0 {
		return fmt.Errorf("features %#x were not offered", v&^ourFeatures)
	}
	d.features = v
	for _, q := range d.queues {
		q.setEventIndex(v&featEventIndex != 0)
		if v&featProtocolFeatures == 0 {
			// Without protocol features there is no SET_VRING_ENABLE, and rings begin enabled.
			if err := q.enable(true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *device) setProtocolFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^ourProtocol != 0 {
		return fmt.Errorf("protocol features %#x were not offered", v&^ourProtocol)
	}
	d.protocol = v
	m.acked = v&protoReplyAck != 0
	return nil
}

// reset stops the device and forgets how its queues were set up; the connection and the memory table stay.
func (d *device) reset() {
	for _, q := range d.queues {
		q.halt()
	}
	for _, q := range d.queues {
		q.stop(0)
		q.reset()
	}
}

// handleVring carries out a message about one queue.
func (d *device) handleVring(m *message) error {
	switch m.kind {
	case msgSetVringAddr:
		return d.setVringAddr(m)
	case msgSetVringKick, msgSetVringCall, msgSetVringErr:
		return d.setVringFile(m)
	}
	i, v, err := m.vringState()
	if err != nil {
		return err
	}
	q, err := d.queue(uint64(i))
	if err != nil {
		return err
	}
	switch m.kind {
	case msgSetVringNum:
		return q.setSize(v)
	case msgSetVringBase:
		return q.setBase(v)
	case msgSetVringEnable:
		return q.enable(v != 0)
	default: // GET_VRING_BASE: the answer says that nothing of the ring will be touched any more
		base := q.stop(drainGrace)
		m.reply = binary.LittleEndian.AppendUint32(nil, i)
		m.reply = binary.LittleEndian.AppendUint32(m.reply, uint32(base))
		return nil
	}
}

func (d *device) setVringAddr(m *message) error {
	if len(m.payload) != 40 {
		return m.badSize(40)
	}
	q, err := d.queue(uint64(binary.LittleEndian.Uint32(m.payload)))
	if err != nil {
		return err
	}
	return q.setAddresses(ringAddresses{
		desc:  binary.LittleEndian.Uint64(m.payload[8:]),
		used:  binary.LittleEndian.Uint64(m.payload[16:]),
		avail: binary.LittleEndian.Uint64(m.payload[24:]),
	})
}

func (d *device) setVringFile(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	q, err := d.queue(v & 0xff)
	if err != nil {
		return err
	}
	fd := -1
	if v&noFile == 0 {
		if fd, err = m.takeFile(); err != nil {
			return err
		}
	}
	switch m.kind {
	case msgSetVringCall:
		q.setCall(fd)
		return nil
	case msgSetVringErr:
		q.setErr(fd)
		return nil
	default:
		return q.setKick(fd)
	}
}

func (d *device) queue(i uint64) (*queue, error) {
	if i >= uint64(len(d.queues)) {
		return nil, fmt.Errorf("queue %d of %d", i, len(d.queues))
	}
	return d.queues[i], nil
}

// setMemTable replaces the whole memory table. Requests in progress go on with the old one.
func (d *device) setMemTable(m *message) error {
	if len(m.payload) < 8 {
		return m.badSize(8)
	}
	n := int(binary.LittleEndian.Uint32(m.payload))
	if n > maxFiles || len(m.files) != n || len(m.payload) < 8+32*n {
		return fmt.Errorf("%d regions, %d descriptors, %d bytes", n, len(m.files), len(m.payload))
	}
	var regions []region
	for i, fd := range m.files {
		r, err := parseRegion(m.payload[8+32*i:], fd)
		if err != nil {
			releaseRegions(regions)
			return err
		}
		regions = append(regions, r)
	}
	defer releaseRegions(regions)
	return d.setMemory(regions)
}

// addRegion adds one region to the memory table.
func (d *device) addRegion(m *message) error {
	if len(m.payload) != 40 {
		return m.badSize(40)
	}
	if len(m.files) != 1 {
		return fmt.Errorf("%d descriptors instead of one", len(m.files))
	}
	if len(d.regions()) >= maxRegions {
		return fmt.Errorf("more than %d regions", maxRegions)
	}
	r, err := parseRegion(m.payload[8:], m.files[0])
	if err != nil {
		return err
	}
	defer r.m.release()
	return d.setMemory(append(d.regions(), r))
}

// removeRegion takes one region out of the memory table. A descriptor that comes with it is of no use.
func (d *device) removeRegion(m *message) error {
	if len(m.payload) != 40 {
		return m.badSize(40)
	}
	guest, size, user, _ := regionFields(m.payload[8:])
	var left []region
	for _, r := range d.regions() {
		if r.guest != guest || r.size != size || r.user != user {
			left = append(left, r)
		}
	}
	if len(left) == len(d.regions()) {
		return fmt.Errorf("no region %#x+%#x", guest, size)
	}
	return d.setMemory(left)
}

// regions is a copy of the present table.
func (d *device) regions() []region {
	if d.mem == nil {
		return nil
	}
	return append([]region(nil), d.mem.regions...)
}

// setMemory makes regions the memory table of the device and all its queues.
func (d *device) setMemory(regions []region) error {
	mem, err := newMemory(regions)
	if err != nil {
		return err
	}
	for _, q := range d.queues {
		q.setMemory(mem)
	}
	if d.mem != nil {
		d.mem.release()
	}
	d.mem = mem
	return nil
}

func regionFields(b []byte) (guest, size, user, offset uint64) {
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]),
		binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
}

func parseRegion(b []byte, fd int) (region, error) {
	guest, size, user, offset := regionFields(b)
	return mapRegion(guest, size, user, offset, fd)
}

func releaseRegions(regions []region) {
	for i := range regions {
		regions[i].m.release()
	}
}
