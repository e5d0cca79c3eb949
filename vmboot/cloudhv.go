package vmboot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// cloudHypervisor runs machines by cloud-hypervisor (its docs/api.md, docs/fs.md). It has KVM only, and no network that needs no
// privilege.
type cloudHypervisor struct {
	program string
}

func findCloudHypervisor() (cloudHypervisor, error) {
	program, err := exec.LookPath("cloud-hypervisor")
	return cloudHypervisor{program}, err
}

func (cloudHypervisor) lacks(c *Config) error {
	switch {
	case c.Accel != AccelKVM:
		return fmt.Errorf("cloud-hypervisor has no %s", c.Accel)
	case c.Network != nil:
		return errors.New("cloud-hypervisor has no network without privileges")
	case len(c.Disks) > 0:
		return errors.New("cloud-hypervisor is given no disks")
	case c.RunDir == "":
		return errors.New("cloud-hypervisor needs a directory for its socket")
	}
	return nil
}

// args renders c as cloud-hypervisor's command line. The initramfs is descriptor 3. The serial console is standard output; the
// agent's line is the virtio console, a terminal that the API names.
func (cloudHypervisor) args(c *Config, api string) []string {
	a := []string{
		"--api-socket", "path=" + api,
		"--kernel", c.Kernel.Path, "--initramfs", "/proc/self/fd/3",
		"--cmdline", kernelParameters + " " + agentproto.PortParameter + "=hvc0",
		"--cpus", "boot=" + strconv.Itoa(c.CPUs),
		"--memory", fmt.Sprintf("size=%dM,shared=on", c.MemoryMiB),
		"--serial", "tty", "--console", "pty", "--seccomp", "true",
		"--fs", cloudFS("root", c.FSSocket, agentproto.RootTag, c.FSQueues),
	}
	for i, m := range c.Mounts { // of several file systems it wants all behind one option
		a = append(a, cloudFS("mount"+strconv.Itoa(i), m.Socket, mountTag(i), 1))
	}
	return a
}

func cloudFS(id, socket, tag string, queues int) string {
	return fmt.Sprintf("id=%s,tag=%s,socket=%s,num_queues=%d,queue_size=1024", id, tag, socket, queues)
}

func (ch cloudHypervisor) launch(c *Config) (*launch, error) {
	l := &launch{program: ch.program}
	ramfs, err := initramfs(c)
	if err != nil {
		return nil, err
	}
	l.add(ramfs)
	// Its end of the line is a file of ours: what joins it with the terminal begins when the API says where that is.
	near, far, err := socketPair("agent")
	if err != nil {
		l.abandon()
		return nil, err
	}
	l.agent = near
	line, err := net.FileConn(far)
	far.Close()
	if err != nil {
		l.abandon()
		return nil, err
	}
	api := newCloudAPI(filepath.Join(c.RunDir, "ch.sock"))
	l.args, l.monitor = ch.args(c, api.socket), api
	api.joined.Go(func() {
		defer line.Close()
		if terminal, err := api.console(); err == nil {
			join(line, terminal)
		}
	})
	return l, nil
}

// cloudAPI is cloud-hypervisor's HTTP API.
type cloudAPI struct {
	socket string
	ctx    context.Context // ended by close
	end    context.CancelFunc
	joined sync.WaitGroup
}

func newCloudAPI(socket string) *cloudAPI {
	a := &cloudAPI{socket: socket}
	a.ctx, a.end = context.WithCancel(context.Background())
	return a
}

const (
	// maxInfo bounds the body of an answer, bytes.
	maxInfo = 1 << 20
	// apiPatience bounds a call.
	apiPatience = 5 * time.Second
)

// call makes one call of the API, on a connection of its own; out may be nil. The answers that there are come with a length or
// without a body, which is all of HTTP that this wants.
func (a *cloudAPI) call(method, name string, out any) error {
	var d net.Dialer
	conn, err := d.DialContext(a.ctx, "unix", a.socket)
	if err != nil {
		return fmt.Errorf("cloud-hypervisor: %s: %w", name, err)
	}
	defer conn.Close()
	defer context.AfterFunc(a.ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(apiPatience))
	fmt.Fprintf(conn, "%s /api/v1/%s HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", method, name)
	r := textproto.NewReader(bufio.NewReader(io.LimitReader(conn, maxInfo)))
	status, err := r.ReadLine()
	if err != nil {
		return fmt.Errorf("cloud-hypervisor: %s: %w", name, err)
	}
	if _, code, _ := strings.Cut(status, " "); !strings.HasPrefix(code, "2") {
		return fmt.Errorf("cloud-hypervisor: %s: %s", name, status)
	}
	head, err := r.ReadMIMEHeader()
	if err != nil || out == nil {
		return err
	}
	length, err := strconv.ParseInt(head.Get("Content-Length"), 10, 32)
	if err != nil {
		return fmt.Errorf("cloud-hypervisor: %s: an answer without a length", name)
	}
	return json.NewDecoder(io.LimitReader(r.R, length)).Decode(out)
}

const (
	// apiPoll is how often the API is asked for the terminal, until the machine has one.
	apiPoll = 5 * time.Millisecond
	// terminals are where the kernel keeps its pseudo-terminals. No other file is opened on the VMM's word.
	terminals = "/dev/pts/"
)

// isTerminal says whether path is the kernel's name of a pseudo-terminal, and nothing that leads elsewhere.
func isTerminal(path string) bool {
	number, ok := strings.CutPrefix(path, terminals)
	_, err := strconv.ParseUint(number, 10, 31)
	return ok && err == nil
}

// console opens the terminal that is the machine's virtio console, once there is one.
func (a *cloudAPI) console() (*os.File, error) {
	tick := time.NewTicker(apiPoll)
	defer tick.Stop()
	for {
		var info struct {
			Config struct {
				Console struct{ File string }
			}
		}
		if a.call("GET", "vm.info", &info) == nil && isTerminal(info.Config.Console.File) {
			return openRaw(info.Config.Console.File)
		}
		select {
		case <-tick.C:
		case <-a.ctx.Done():
			return nil, a.ctx.Err()
		}
	}
}

// openRaw opens a terminal that passes every byte on as it is.
func openRaw(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// join copies both ways until one end closes, and closes both.
func join(a, b io.ReadWriteCloser) {
	var both sync.WaitGroup
	one := func(to, from io.ReadWriteCloser) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

// quit ends the VMM; the guest is not told.
func (a *cloudAPI) quit() { a.call("PUT", "vmm.shutdown", nil) }

// close is called when the VMM has ended, and with it its end of the terminal.
func (a *cloudAPI) close() {
	a.end()
	a.joined.Wait()
	os.Remove(a.socket)
}
