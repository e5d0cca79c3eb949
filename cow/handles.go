package cow

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// maxHandles is how many descriptors of upper files and directories are kept open while nobody uses them.
const maxHandles = 512

// handles is a cache of descriptors of upper files, least recently used ones closed first. The zero value is empty.
type handles struct {
	mu   sync.Mutex
	idle list.List // of *handle that nobody uses, most recently used in front
}

// handle is an open file or directory of the upper.
type handle struct {
	fd     int // immutable
	n      *node
	pinned bool // immutable: lives as long as the upper

	// Guarded by handles.mu.
	refs int
	elem *list.Element // in idle, while refs is 0
	dead bool          // to be closed with the last ref
}

// pin makes h, which the caller owns, the descriptor of n for ever.
func (c *handles) pin(n *node, h *handle) {
	h.n, h.pinned = n, true
	n.handle = h
}

// get returns n's descriptor, or nil. The caller releases it.
func (c *handles) get(n *node) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := n.handle
	if h != nil {
		c.use(h)
	}
	return h
}

func (c *handles) use(h *handle) {
	if h.elem != nil {
		c.idle.Remove(h.elem)
		h.elem = nil
	}
	h.refs++
}

// put takes over fd as n's descriptor, unless it got one meanwhile. The caller releases what it gets.
func (c *handles) put(n *node, fd int) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := n.handle; h != nil {
		unix.Close(fd)
		c.use(h)
		return h
	}
	h := &handle{fd: fd, n: n, refs: 1}
	n.handle = h
	return h
}

func (c *handles) release(h *handle) {
	if h.pinned {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.refs--; h.refs > 0 {
		return
	}
	if h.dead {
		unix.Close(h.fd)
		return
	}
	h.elem = c.idle.PushFront(h)
	if c.idle.Len() > maxHandles {
		c.shut(c.idle.Back().Value.(*handle))
	}
}

// shut closes an idle handle.
func (c *handles) shut(h *handle) {
	c.idle.Remove(h.elem)
	h.elem, h.n.handle = nil, nil
	unix.Close(h.fd)
}

// drop closes n's descriptor, now or when its last user releases it.
func (c *handles) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := n.handle
	switch {
	case h == nil || h.pinned:
	case h.refs == 0:
		c.shut(h)
	default:
		h.dead, n.handle = true, nil
	}
}

// closeAll closes what nobody uses.
func (c *handles) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.idle.Len() > 0 {
		c.shut(c.idle.Back().Value.(*handle))
	}
}
