package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
	"github.com/microsandbox/msb-fs/vmboot"
)

// guestCommand sets a sandbox's root beside the same tree on a disk of the same machine.
func guestCommand() *cobra.Command {
	var g guestRun
	var bin, only, out string
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "Time commands in a microVM over a sandbox's root, beside the same tree as ext4 on a virtio disk of that machine",
		Long: "Time commands in a microVM, in turns over its root, which is an image that is all on the host, through virtiofs, and over the same tree\n" +
			"as ext4 on a virtio disk. \"cold\" is with the guest's caches dropped before each run and the host's full. The table is of all that\n" +
			"the results have, from earlier calls too. As root; it wants mkfs.ext4.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if bin, err = filepath.Abs(bin); err != nil {
				return err
			}
			if g.cases, err = regexp.Compile(only); err != nil {
				return cli.Usagef("--cases: %v", err)
			}
			if g.results, err = openResults(out); err != nil {
				return err
			}
			if err := g.run(cmd.Context(), bin); err != nil {
				return err
			}
			return guestPair().table(g.results, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "the directory of msb-fs")
	f.IntVar(&g.runs, "runs", 5, "alternating runs of each command")
	f.StringVar(&only, "cases", "", "only those whose name, as the table has it, this regular expression matches")
	f.StringVar(&out, "out", defaultResults(), "the directory of results")
	return cmd
}

// guestRun is what to measure.
type guestRun struct {
	runs    int
	cases   *regexp.Regexp
	results *results
}

// guestPair is what the samples compare.
func guestPair() pair { return pair{set: "guest", ours: "virtiofs", base: "virtio-blk ext4"} }

const (
	guestMemory  = 1024    // MiB: both trees fit into its page cache
	guestDisk    = 1 << 30 // bytes; only what is written takes place
	guestTimeout = 10 * time.Minute
)

// run makes the disk, boots the machine and measures in it.
func (g guestRun) run(ctx context.Context, bin string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	work, err := os.MkdirTemp("", "mb-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	cache, err := testimage.CacheDir()
	if err != nil {
		return err
	}
	layout, err := testimage.Python().Layout(ctx, cache, testimage.Gzip, os.Stderr)
	if err != nil {
		return err
	}
	srv, err := registry.Start(registry.Options{})
	if err != nil {
		return err
	}
	defer srv.Close()
	if _, err := srv.AddLayout("bench/guest", layout); err != nil {
		return err
	}
	t := &trial{dir: work, bin: bin, ref: srv.Host() + "/bench/guest"}
	defer func() { err = errors.Join(err, wipeOurs(t)) }()
	disk, err := makeDisk(ctx, t)
	if err != nil {
		return err
	}
	kernel, err := kernelWithDisks(ctx, work)
	if err != nil {
		return err
	}
	socket, hangUp, err := serveGuest(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hangUp()) }()
	vm, err := vmboot.Start(ctx, vmboot.Config{Kernel: kernel, MemoryMiB: guestMemory, FSSocket: socket, Disks: []string{disk}, RunDir: filepath.Dir(socket)})
	if err != nil {
		return err
	}
	defer vm.Kill()
	agent, err := vm.Agent(ctx, vmboot.Setup{Hostname: "guest", Tmpfs: []vmboot.Tmpfs{{Target: "/mnt"}}})
	if err != nil {
		return err
	}
	return g.measure(ctx, agent)
}

// makeDisk pulls the image and writes its tree to a file as ext4, by which all of it is in the host's page cache.
func makeDisk(ctx context.Context, t *trial) (string, error) {
	at, disk := filepath.Join(t.dir, "root"), filepath.Join(t.dir, "disk")
	if err := errors.Join(os.Mkdir(at, 0o755), os.Mkdir(filepath.Join(t.dir, "home"), 0o755)); err != nil {
		return "", err
	}
	for _, args := range [][]string{{"pull", "--insecure", "-q", t.ref}, {"mount", "--insecure", t.ref, at}} {
		if err := do(msb(ctx, t, "msb-fs", args...), nil); err != nil {
			return "", err
		}
	}
	err := os.WriteFile(disk, nil, 0o644)
	if err == nil {
		err = os.Truncate(disk, guestDisk)
	}
	if err == nil {
		err = do(exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", at, disk), nil)
	}
	return disk, errors.Join(err, do(msb(ctx, t, "msb-fs", "umount", at), nil))
}

// serveGuest has the daemon serve the image as a sandbox's root, until hangUp is called or the machine ends.
func serveGuest(ctx context.Context, t *trial) (socket string, hangUp func() error, err error) {
	upper := filepath.Join(t.dir, "upper")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return "", nil, err
	}
	client, ok := api.Running(ctx, api.Home(filepath.Join(t.dir, "home")))
	if !ok {
		return "", nil, errors.New("no daemon answers")
	}
	ctx, cancel := context.WithCancel(ctx)
	sockets, ended := make(chan string, 1), make(chan error, 1)
	insecure := true
	req := api.SandboxRequest{ImageRequest: api.ImageRequest{Image: t.ref, Access: api.Access{Insecure: &insecure}}, ID: "guest", Upper: upper}
	go func() {
		ended <- client.Stream(ctx, "POST", "/v1/sandboxes", req, func(e api.Event) error {
			if e.Name == api.EventSocket {
				sockets <- e.Socket
			}
			return nil
		})
	}()
	hangUp = func() error {
		cancel()
		err := <-ended
		client.Close()
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	select {
	case socket = <-sockets:
		return socket, hangUp, nil
	case err := <-ended:
		cancel()
		client.Close()
		return "", nil, fmt.Errorf("serve a sandbox: %w", err)
	}
}

// guestCases are what is done with each tree, whose root it runs in.
func guestCases() []struct{ name, script string } {
	return []struct{ name, script string }{
		{"find -printf %s", `find / -printf %s`},
		{"tar c", `tar -C / -c . | cat`},
		{"python3 -c 'import ...'", `python3 -B -c 'import asyncio, email.mime.multipart, xml.dom.minidom, http.server, unittest, multiprocessing, sqlite3, concurrent.futures'`},
	}
}

// measure runs every case in the guest.
func (g guestRun) measure(ctx context.Context, agent *vmboot.Agent) error {
	if _, err := guestShell(ctx, agent, guestPrepare); err != nil {
		return err
	}
	for _, c := range guestCases() {
		for _, caches := range []string{"warm", "cold"} {
			if !g.cases.MatchString(c.name + ", " + caches) {
				continue
			}
			out, err := guestShell(ctx, agent, guestTurns, c.script, caches, strconv.Itoa(g.runs+1))
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, caches, err)
			}
			took, err := parseTurns(out, g.runs+1)
			if err == nil {
				// The first run of each is not counted: it fills the caches that are meant to be full.
				err = guestPair().add(g.results, c.name, caches, took["virtiofs"][1:], took["ext4"][1:])
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name, caches, err)
			}
		}
	}
	return nil
}

// guestPrepare puts both trees below /mnt, which is in memory, and there too the programs that measure: what is measured
// runs in one of the trees and has nothing of the other.
const guestPrepare = `set -e
cd /mnt
mkdir virtiofs ext4 dev proc
mount --bind / virtiofs
mount -t ext4 -o ro,noatime /dev/vda ext4
mount --bind /dev dev
mount -t proc proc proc
cp -L --parents /bin/sh /bin/date /usr/sbin/chroot /lib64/ld-linux-x86-64.so.2 /lib/*-linux-gnu/libc.so.6 .`

// guestTurns runs script $1 in each tree in turns, $3 times, with caches as $2 says, and prints who it was and nanoseconds.
const guestTurns = `exec chroot /mnt /bin/sh -ec '
i=0
while [ $i -lt $3 ]; do
	for tree in virtiofs ext4; do
		if [ $2 = cold ]; then echo 3 >/proc/sys/vm/drop_caches; fi
		begin=$(date +%s%N)
		chroot /$tree /bin/sh -ec "$1" >/dev/null
		end=$(date +%s%N)
		echo $tree $((end - begin))
	done
	i=$((i + 1))
done' sh "$@"`

// guestShell runs a script in the guest and returns its output.
func guestShell(ctx context.Context, agent *vmboot.Agent, script string, args ...string) (string, error) {
	var out, said bytes.Buffer
	status, err := agent.Exec(ctx, vmboot.Process{Args: append([]string{"/bin/sh", "-c", script, "sh"}, args...), Stdout: &out, Stderr: &said})
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("exit status %d", status.Code)
	}
	if err != nil {
		return "", fmt.Errorf("in the guest: %w: %.500s", err, said.Bytes())
	}
	return out.String(), nil
}

// parseTurns reads guestTurns' output: seconds of each tree, n of each.
func parseTurns(out string, n int) (map[string][]float64, error) {
	took := map[string][]float64{}
	for line := range strings.Lines(out) {
		var tree string
		var ns int64
		if _, err := fmt.Sscanf(line, "%s %d", &tree, &ns); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("what is %q? %w", line, err)
		}
		took[tree] = append(took[tree], time.Duration(ns).Seconds())
	}
	if len(took["virtiofs"]) != n || len(took["ext4"]) != n {
		return nil, fmt.Errorf("%d and %d runs of %d", len(took["virtiofs"]), len(took["ext4"]), n)
	}
	return took, nil
}
