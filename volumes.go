package msb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/microsandbox/msb-fs/vmboot"
	"github.com/microsandbox/msb-fs/vmboot/hostdir"
	"github.com/microsandbox/msb-fs/vmboot/virtiofs"
)

// Volume is a directory or a regular file of the host that a sandbox sees. Both sides see each other's changes.
type Volume struct {
	Source   string `json:"source"` // on the host
	Target   string `json:"target"` // in the sandbox; made where the image lacks it
	ReadOnly bool   `json:"read_only,omitempty"`
}

// ParseVolume takes SRC:DST[:ro]. A relative SRC is one of the working directory. Whether it is there is seen when a sandbox is made
// of it.
func ParseVolume(s string) (v Volume, err error) {
	rest := s
	for mode, readOnly := range map[string]bool{":ro": true, ":rw": false} {
		if cut, ok := strings.CutSuffix(s, mode); ok {
			rest, v.ReadOnly = cut, readOnly
		}
	}
	at := strings.LastIndex(rest, ":/")
	if at < 1 {
		return v, fmt.Errorf("volume %q: must be SRC:DST[:ro], with DST an absolute path", s)
	}
	v.Source, v.Target = rest[:at], rest[at+1:]
	return v, v.clean()
}

// clean makes v's paths absolute.
func (v *Volume) clean() (err error) {
	if v.Target = path.Clean(v.Target); !path.IsAbs(v.Target) || v.Target == "/" {
		return fmt.Errorf("volume %s: the path %q in the sandbox must be absolute, and not the root", v.Source, v.Target)
	}
	v.Source, err = filepath.Abs(v.Source)
	return err
}

// complete cleans v and checks that it can be served.
func (v *Volume) complete() (err error) {
	if err := v.clean(); err != nil {
		return err
	}
	switch st, err := os.Stat(v.Source); {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("volume %s: there is no such file or directory on this host: make it first", v.Source)
	case err != nil:
		return fmt.Errorf("volume %s: %w", v.Source, err)
	case !st.IsDir() && !st.Mode().IsRegular():
		return fmt.Errorf("volume %s: it is neither a directory nor a regular file", v.Source)
	}
	return nil
}

func (s *Spec) completeVolumes() error {
	seen := make(map[string]bool)
	for _, t := range s.Tmpfs {
		seen[path.Clean(t.Path)] = true
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if err := v.complete(); err != nil {
			return err
		}
		if seen[v.Target] {
			return fmt.Errorf("volume %s: %s is in use by another volume or tmpfs", v.Source, v.Target)
		}
		seen[v.Target] = true
	}
	return nil
}

// volumes are the file systems of a sandbox's volumes, and who serves them to its VM.
type volumes struct {
	specs   []Volume
	open    []*hostdir.FS
	cancel  context.CancelFunc
	serving sync.WaitGroup
}

// openVolumes opens what s's volumes show, so that a missing one is known before there is a VM.
func (s *Spec) openVolumes() (*volumes, error) {
	v := &volumes{specs: s.Volumes, cancel: func() {}}
	for _, spec := range s.Volumes {
		if err := spec.complete(); err != nil {
			return nil, errors.Join(err, v.close())
		}
		f, err := hostdir.Open(spec.Source, hostdir.Options{ReadOnly: spec.ReadOnly})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("volume %s: %w", spec.Source, err), v.close())
		}
		v.open = append(v.open, f)
	}
	return v, nil
}

// serve offers v's file systems on sockets in dir, each to one VM, until close.
func (v *volumes) serve(ctx context.Context, dir string) (mounts []vmboot.Mount, err error) {
	ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for i, f := range v.open {
		m := vmboot.Mount{Socket: filepath.Join(dir, "v"+strconv.Itoa(i)+".sock"), Target: v.specs[i].Target, ReadOnly: v.specs[i].ReadOnly}
		if f.IsFile() {
			m.File = hostdir.FileName
		}
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.Socket, Net: "unix"})
		if err != nil {
			return nil, fmt.Errorf("serve volume %s: %w", v.specs[i].Source, err)
		}
		v.serving.Go(func() {
			defer ln.Close()
			// How it ends is how the VM ends, which is known from the VM.
			virtiofs.Serve(ctx, ln, func(context.Context) (fuse.RawFileSystem, error) { return f, nil },
				virtiofs.Options{Queues: 1, FUSE: hostdir.ServerOptions()})
		})
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// close ends what serve has begun. The VM has ended, or will do without.
func (v *volumes) close() (err error) {
	v.cancel()
	v.serving.Wait()
	for _, f := range v.open {
		err = errors.Join(err, f.Close())
	}
	v.open = nil
	return err
}
