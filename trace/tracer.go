// Package trace shows where the time of a cold start goes: what the kernel sees of a mount (FUSE requests, page cache, who sleeps on
// what), by eBPF, set beside what the daemon says of how it answered.
//
// Tracing needs root and a kernel with BTF and some tracepoints of FUSE and the page cache, which only recent ones have;
// Probe tells. What has been traced is analysed by code that needs neither.
package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/trace/bpf"
)

// ErrUnavailable is that this kernel, or this user, cannot trace.
var ErrUnavailable = errors.New("tracing is not possible here")

func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, fmt.Errorf(format, args...))
}

// tracepoints are what a kernel has to have.
var tracepoints = []string{"fuse_request_send", "fuse_request_end", "mm_filemap_get_pages", "mm_filemap_map_pages", "mm_filemap_fault",
	"mm_filemap_add_to_page_cache", "sched_switch"}

// Probe tells whether tracing is possible, and why not in an error that is ErrUnavailable.
func Probe() error {
	if os.Geteuid() != 0 {
		return unavailable("it takes root: run it with sudo")
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return unavailable("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	for _, name := range tracepoints {
		var t *btf.Typedef
		if err := spec.TypeByName("btf_trace_"+name, &t); err != nil {
			return unavailable("the kernel has no tracepoint %s: a newer one has, or the fuse module is not loaded", name)
		}
	}
	t, err := open(1 << 12)
	if err != nil {
		return err
	}
	return t.close()
}

// Tracer records what happens on mounts from Start until Stop. It is safe for concurrent use.
type Tracer struct {
	programs bpf.ProgramsObjects
	links    []link.Link
	reader   *ringbuf.Reader

	done   chan struct{} // closed when read has returned
	events []Event       // read's until done is closed
	broken error         // read's until done is closed

	mu      sync.Mutex
	stopped bool // guarded by mu
}

// maxEvents bounds a trace: 100 bytes each.
const maxEvents = 4 << 20

// ringBytes is room for some 90,000 events that have not been read.
const ringBytes = 8 << 20

// Start traces no mount yet: Add does. The caller calls Stop.
func Start() (*Tracer, error) {
	if err := Probe(); err != nil {
		return nil, err
	}
	t, err := open(ringBytes)
	if err != nil {
		return nil, err
	}
	go t.read()
	return t, nil
}

// open loads the programs and attaches them.
func open(ring uint32) (*Tracer, error) {
	t := &Tracer{done: make(chan struct{})}
	spec, err := bpf.LoadPrograms()
	if err != nil {
		return nil, unavailable("%w", err)
	}
	spec.Maps["events"].MaxEntries = ring
	if err := spec.LoadAndAssign(&t.programs, nil); err != nil {
		return nil, unavailable("bpf() refuses the programs: %w", err)
	}
	p := &t.programs
	for _, prog := range []*ebpf.Program{p.FuseRequestSend, p.FuseRequestEnd, p.FilemapGetPages, p.FilemapMapPages, p.FilemapFault, p.FilemapAdd, p.SchedSwitch} {
		l, err := link.AttachTracing(link.TracingOptions{Program: prog})
		if err != nil {
			return nil, errors.Join(unavailable("attach %s: %w", prog, err), t.close())
		}
		t.links = append(t.links, l)
	}
	if t.reader, err = ringbuf.NewReader(p.Events); err != nil {
		return nil, errors.Join(unavailable("%w", err), t.close())
	}
	return t, nil
}

func (t *Tracer) close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	if t.reader != nil {
		errs = append(errs, t.reader.Close())
	}
	return errors.Join(append(errs, t.programs.Close())...)
}

// Device is the number of the file system that is mounted on dir, as events have it.
func Device(dir string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("trace %s: %w", dir, err)
	}
	return unix.Major(st.Dev)<<20 | unix.Minor(st.Dev), nil
}

// Add has the mount on dir traced from now on, and returns its device.
func (t *Tracer) Add(dir string) (uint32, error) {
	dev, err := Device(dir)
	if err != nil {
		return 0, err
	}
	if err := t.programs.Devices.Put(dev, uint8(1)); err != nil {
		return 0, fmt.Errorf("trace %s: %w", dir, err)
	}
	return dev, nil
}

// read collects events until the reader is flushed and empty.
func (t *Tracer) read() {
	defer close(t.done)
	var raw ringbuf.Record
	for {
		err := t.reader.ReadInto(&raw)
		if errors.Is(err, ringbuf.ErrFlushed) || errors.Is(err, ringbuf.ErrClosed) {
			return
		}
		if err == nil {
			var e Event
			if e, err = parse(raw.RawSample); err == nil && len(t.events) < maxEvents {
				t.events = append(t.events, e)
			}
		}
		if err != nil {
			t.broken = fmt.Errorf("read trace: %w", err)
			return
		}
	}
}

// Stop ends the trace and returns what has happened, and how many events were lost for want of room. ctx bounds the wait for the last events.
func (t *Tracer) Stop(ctx context.Context) (events []Event, lost uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return nil, 0, errors.New("trace: stopped twice")
	}
	t.stopped = true
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	t.links = nil
	errs = append(errs, t.reader.Flush())
	select {
	case <-t.done:
	case <-ctx.Done():
		errs = append(errs, ctx.Err(), t.reader.Close())
		<-t.done
	}
	var perCPU []uint64
	if err := t.programs.Lost.Lookup(uint32(0), &perCPU); err == nil {
		for _, n := range perCPU {
			lost += n
		}
	}
	return t.events, lost, errors.Join(append(errs, t.broken, t.close())...)
}
