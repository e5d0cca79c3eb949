package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// lazyForms are those that this project is lazy with on the first start.
func lazyForms() []string { return []string{"estargz", "zstd-chunked", "gzip+index", "gzip+soci"} }

func mountSystem() system {
	return system{
		key: "mount", name: "msb-fs mount + runc", needs: []string{"msb-fs", "runc"}, version: ourVersion, forms: allForms(), reads: lazyForms(),
		prepare: prepareOurs, start: startMount, complete: completeOurs, lazy: lazyOurs, again: true, wipe: wipeOurs,
	}
}

func vmSystem() system {
	return system{
		key: "vm", name: "msb-launch (microVM)", needs: []string{"msb-fs", "msb-launch", "qemu-system-x86_64"}, version: ourVersion, forms: allForms(), reads: lazyForms(),
		prepare: prepareOurs, start: startVM, complete: completeOurs, lazy: lazyOurs, again: true, wipe: wipeOurs,
	}
}

func allForms() []string {
	var keys []string
	for _, f := range forms() {
		keys = append(keys, f.key)
	}
	return keys
}

func ourVersion(string) string { return codeVersion() }

// msb is a call of one of this project's programs in the trial's own home.
func msb(ctx context.Context, t *trial, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(t.bin, program), args...)
	cmd.Env = append(os.Environ(), "MSB_HOME="+filepath.Join(t.dir, "home"))
	return cmd
}

// prepareOurs starts the daemon, as containerd runs before anybody asks it.
func prepareOurs(ctx context.Context, t *trial) error {
	if err := os.Mkdir(filepath.Join(t.dir, "home"), 0o755); err != nil {
		return err
	}
	if err := do(msb(ctx, t, "msb-fs", "stats"), nil); err != nil {
		return err
	}
	if t.img.named() {
		return os.Mkdir(t.own("root"), 0o755)
	}
	return writeBundle(t.own("bundle"), t.own("root"), t.img)
}

func startMount(ctx context.Context, t *trial) error {
	if err := os.MkdirAll(t.own("root"), 0o755); err != nil {
		return err
	}
	var said bytes.Buffer
	mount := msb(ctx, t, "msb-fs", "mount", "--timing", "--insecure", "--upper", t.own("upper"), t.ref, t.own("root"))
	mount.Stderr = &said
	if err := mount.Run(); err != nil {
		return fmt.Errorf("msb-fs mount: %w: %s", err, strings.TrimSpace(said.String()))
	}
	t.mark(markMounted)
	if t.n > 0 || t.img.named() {
		if err := writeBundle(t.own("bundle"), t.own("root"), t.img); err != nil {
			return err
		}
	}
	for lines := bufio.NewScanner(&said); lines.Scan(); {
		var ms float64
		if _, name, ok := strings.Cut(lines.Text(), " ms "); ok && strings.TrimSpace(name) == "resolved" {
			fmt.Sscan(lines.Text(), &ms)
			t.markAt(markResolved, ms/1000)
		}
	}
	runc := []string{"runc", "--root", filepath.Join(t.dir, "runc"), "run", "--bundle", t.own("bundle"), t.name()}
	if t.trace == "" {
		return t.program(ctx, exec.Command(runc[0], runc[1:]...))
	}
	args := append([]string{"trace", "--output", t.trace, "--mount", t.own("root"), "--"}, runc...)
	return t.program(ctx, msb(context.Background(), t, "msb-fs", args...)) // program ends it
}

func startVM(ctx context.Context, t *trial) error {
	file := t.own("timing.json")
	args := []string{"run", "--timing-json", file, "--insecure", "--memory", "1G"}
	argv := t.img.argv()
	args = append(args, "--entrypoint", argv[0], t.ref)
	args = append(args, argv[1:]...)
	cmd := msb(context.Background(), t, "msb-launch", args...) // program ends it
	if err := t.program(ctx, cmd); err != nil {
		return err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the timeline: %w", err)
	}
	var timing struct {
		Events []struct {
			Name string  `json:"name"`
			MS   float64 `json:"ms"`
		} `json:"events"`
	}
	if err := decode(raw, &timing); err != nil {
		return err
	}
	names := map[string]string{"resolved": markResolved, "layers indexed": markMounted, "agent up": markVM}
	for _, e := range timing.Events {
		if name, ok := names[e.Name]; ok {
			t.markAt(name, e.MS/1000)
		}
	}
	return nil
}

// askOurs runs an msb-fs command that prints JSON.
func askOurs(ctx context.Context, t *trial, into any, args ...string) error {
	var out bytes.Buffer
	if err := do(msb(ctx, t, "msb-fs", append(args, "--format", "json")...), &out); err != nil {
		return err
	}
	return decode(out.Bytes(), into)
}

// lazyOurs fails when a layer was streamed or pulled whole though it need not have been.
func lazyOurs(ctx context.Context, t *trial) error {
	var i struct {
		Layers []struct {
			Mode   string `json:"mode"`
			Reason string `json:"reason"`
			Size   int64  `json:"size"`
		} `json:"layers"`
	}
	if err := askOurs(ctx, t, &i, "inspect", t.ref); err != nil {
		return err
	}
	for n, l := range i.Layers {
		// A small layer is sooner streamed than its index asked for, and one that was wanted whole may be whole by now.
		if l.Mode != "lazy-toc" && l.Mode != "lazy-index" && l.Mode != "full" && l.Size > 1<<20 {
			return fmt.Errorf("layer %d was %s: %s", n, l.Mode, l.Reason)
		}
	}
	return nil
}

// completeOurs waits until the daemon has nothing more to fetch.
func completeOurs(ctx context.Context, t *trial) error {
	for {
		var st struct {
			Fetching []string `json:"fetching"`
		}
		if err := askOurs(ctx, t, &st, "status"); err != nil || len(st.Fetching) == 0 {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%v is not local yet: %w", st.Fetching, ctx.Err())
		}
	}
}

func wipeOurs(t *trial) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	for _, m := range mountsIn(t.dir) {
		if strings.HasPrefix(m.dir, filepath.Join(t.dir, "root")) && strings.HasPrefix(m.kind, "fuse") {
			errs = append(errs, do(msb(ctx, t, "msb-fs", "umount", m.dir), nil))
		}
	}
	return errors.Join(append(errs, do(msb(ctx, t, "msb-fs", "stop"), nil))...)
}
