package msb

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// defaultPath is what Docker gives a process whose image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process is the main process of a sandbox: c over the image's config (OCI image-spec, config.md), as Docker combines them.
func (c Command) process(config []byte, hostname string) (vmboot.Process, error) {
	var image v1.ConfigFile
	if err := json.Unmarshal(config, &image); err != nil {
		return vmboot.Process{}, fmt.Errorf("read image config: %w", err)
	}
	p := vmboot.Process{Dir: image.Config.WorkingDir, User: image.Config.User, TTY: c.TTY, MakeDir: true}
	if p.Args = api.Argv(image.Config, c.Entrypoint, c.Args); len(p.Args) == 0 {
		return p, errors.New("the image names no command to run: give one after the image")
	}
	base := []string{defaultPath, "HOSTNAME=" + hostname}
	if c.TTY {
		base = append(base, "TERM=xterm")
	}
	p.Env = mergeEnv(base, image.Config.Env, c.Env)
	if c.Dir != "" {
		p.Dir = c.Dir
	}
	// What an image declares as volumes are directories of the sandbox's own, which images do not always have.
	p.Dirs = slices.Sorted(maps.Keys(image.Config.Volumes))
	if c.User != "" {
		p.User = c.User
	}
	return p, nil
}

// runsHere fails for an image whose config says that it is for machines of another kind. One that says nothing is taken.
func runsHere(config []byte) error {
	var image v1.ConfigFile
	if err := json.Unmarshal(config, &image); err != nil {
		return fmt.Errorf("read image config: %w", err)
	}
	here := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if own := (v1.Platform{OS: cmp.Or(image.OS, here.OS), Architecture: cmp.Or(image.Architecture, here.Architecture)}); !own.Equals(here) {
		return fmt.Errorf("the image is for %s, and a sandbox here runs %s: name an image for that", own, here)
	}
	return nil
}

// mergeEnv joins lists of K=V; later values replace earlier ones of the same name in place.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				out[i] = kv
				continue
			}
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

// stopSignal is the signal by which an image's main process wants to be asked to end: SIGTERM where its config says nothing that can
// be understood.
func stopSignal(config []byte) syscall.Signal {
	var image v1.ConfigFile
	if json.Unmarshal(config, &image) != nil {
		return syscall.SIGTERM
	}
	return parseSignal(image.Config.StopSignal)
}

// realtime is SIGRTMIN as programs know it: the C library keeps the kernel's first two for itself (signal(7)).
const realtime, realtimeMax = 34, 64

// parseSignal reads a signal as OCI images name it: TERM, SIGTERM, 15, SIGRTMIN+3.
func parseSignal(s string) syscall.Signal {
	name := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(s)), "SIG")
	n, err := strconv.Atoi(name)
	offset, isRealtime := strings.CutPrefix(name, "RTMIN")
	switch {
	case err == nil:
	case isRealtime:
		add, err := strconv.Atoi(offset)
		if err != nil && offset != "" {
			return syscall.SIGTERM
		}
		n = realtime + add
	default:
		n = int(unix.SignalNum("SIG" + name))
	}
	if n < 1 || n > realtimeMax {
		return syscall.SIGTERM
	}
	return syscall.Signal(n)
}
