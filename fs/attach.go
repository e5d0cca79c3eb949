package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const fuseDevice = "/dev/fuse"

// attach mounts a FUSE file system at dir and returns the file that the kernel's requests come from: root by mount(2),
// anybody else through the set-uid fusermount3. go-fuse could do it, but would have no words for what went wrong.
func attach(ctx context.Context, dir string, o *fuse.MountOptions, readOnly bool) (int, error) {
	st := unix.Stat_t{}
	if err := unix.Stat(dir, &st); errors.Is(err, unix.ENOTCONN) {
		return -1, fmt.Errorf("a mount whose server is gone is there: unmount that first: %w", err)
	} else if err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, unix.ENOTDIR
	}
	opts := append([]string{fmt.Sprintf("max_read=%d", o.MaxWrite)}, o.Options...)
	if o.AllowOther {
		opts = append(opts, "allow_other")
	}
	if os.Geteuid() == 0 {
		return attachRoot(dir, o, opts, st.Mode, readOnly)
	}
	return attachUser(ctx, dir, o, opts, readOnly)
}

func attachRoot(dir string, o *fuse.MountOptions, opts []string, mode uint32, readOnly bool) (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	opts = append(opts, fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, mode&unix.S_IFMT, os.Geteuid(), os.Getegid()))
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOATIME)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.FsName, dir, "fuse."+o.Name, flags, strings.Join(opts, ",")); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// attachUser has fusermount3 mount, which hands over the device through a socket (fusermount3(1), _FUSE_COMMFD).
func attachUser(ctx context.Context, dir string, o *fuse.MountOptions, opts []string, readOnly bool) (int, error) {
	if fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, deviceError(err)
	} else {
		_ = unix.Close(fd)
	}
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		return -1, errors.New("fusermount3 is not installed: install it (Debian: apt install fuse3), or mount as root")
	}
	// A comma in a value would start another option.
	opts = append(opts, "nodev", "nosuid", "noatime", "subtype="+o.Name, "fsname="+strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(o.FsName))
	if readOnly {
		opts = append(opts, "ro")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()
	var msg bytes.Buffer
	cmd := exec.CommandContext(ctx, bin, "-o", strings.Join(opts, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &msg
	err = cmd.Run()
	theirs.Close()
	if err != nil {
		if s := strings.TrimSpace(msg.String()); s != "" {
			return -1, errors.New(strings.ReplaceAll(s, "\n", "; "))
		}
		return -1, fmt.Errorf("fusermount3: %w", err)
	}
	return receiveFile(pair[0])
}

// receiveFile takes one open file from a unix socket.
func receiveFile(sock int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("take the mount from fusermount3: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("fusermount3 mounted and handed over nothing")
}

// deviceError says what to do where /dev/fuse cannot be opened.
func deviceError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("this system has no FUSE: load its module (modprobe fuse): %w", err)
	case errors.Is(err, os.ErrPermission):
		who := strconv.Itoa(os.Geteuid())
		if u, e := user.LookupId(who); e == nil {
			who = u.Username
		}
		return fmt.Errorf("user %s may not open /dev/fuse: let everybody (chmod 666 /dev/fuse, as udev does), or mount as root: %w", who, err)
	}
	return fmt.Errorf("open /dev/fuse: %w", err)
}

// settlePoll has the kernel ask once whether files of the mount at dir can be polled, which go-fuse denies for all of
// them. A Go program that serves the mount and opens a file of it would otherwise wait for itself: its runtime polls,
// without giving up its only thread.
//
// A process that is killed while it waits for an answer of its own would not die: a request that was read is waited for
// (fs/fuse/dev.c, request_wait_answer), the device is only closed when the last thread that has it is gone, and that
// one waits. So it is asked by a thread with a file table of its own, in which there is no device, and which ends with it.
func settlePoll(dir string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the first thread's files are what /proc/self/fd shows: another must do it
			defer runtime.UnlockOSThread()
			settlePoll(dir)
			return
		}
		// The thread is never unlocked: it ends with the goroutine.
		if unix.Unshare(unix.CLONE_FILES) != nil || closeDevices() != nil {
			return
		}
		fd, err := unix.Open(dir+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		_ = unix.Close(fd)
	}()
	<-done
}

// closeDevices closes the FUSE devices that this thread's file table has. What else is there stays: Go's runtime does its own
// work on this thread too, when it ends or collects garbage, and dies without a word where its descriptors are not there.
func closeDevices() error {
	const table = "/proc/thread-self/fd"
	dir, err := unix.Open(table, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var devices []int
	buf, link := make([]byte, 4<<10), make([]byte, len(fuseDevice)+1)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return err
		}
		if n <= 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if n, err := unix.Readlink(table+"/"+name, link); err != nil || string(link[:n]) != fuseDevice {
				continue
			}
			fd, err := strconv.Atoi(name)
			if err != nil {
				return err
			}
			devices = append(devices, fd)
		}
	}
	for _, fd := range devices {
		_ = unix.Close(fd)
	}
	return nil
}

// disconnected reports whether the kernel's side of a FUSE device is gone (fs/fuse/dev.c, fuse_dev_poll). go-fuse closes
// the device after the last request, so that during one fd is still what it was.
func disconnected(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}
