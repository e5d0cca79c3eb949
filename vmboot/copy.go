package vmboot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/microsandbox/msb-fs/vmboot/tarcopy"
)

// guestCopier is the agent's program, which also packs and unpacks.
const guestCopier = "/proc/1/exe"

// CopyIn copies the host's file or directory from to the guest's path to: into to where that is a directory, else in
// its place, as docker cp does.
func (a *Agent) CopyIn(ctx context.Context, from, to string) error {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := tarcopy.Pack(w, from)
		w.CloseWithError(err)
		packed <- err
	}()
	err := a.runCopier(ctx, Process{Args: []string{guestCopier, "unpack", to}, Stdin: r})
	r.Close() // Pack ends if it has not
	if perr := <-packed; perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		err = perr
	}
	if err != nil {
		return fmt.Errorf("copy %s into the sandbox: %w", from, err)
	}
	return nil
}

// CopyInTar unpacks the tar stream r into the guest's directory to.
func (a *Agent) CopyInTar(ctx context.Context, r io.Reader, to string) error {
	// With the slash it is nothing but a directory.
	if err := a.runCopier(ctx, Process{Args: []string{guestCopier, "unpack", to + "/"}, Stdin: r}); err != nil {
		return fmt.Errorf("copy a tar stream into the sandbox: %w", err)
	}
	return nil
}

// CopyOutTar writes the guest's file or directory from to w as a tar stream. All of it is the guest's word.
func (a *Agent) CopyOutTar(ctx context.Context, from string, w io.Writer) error {
	to := &failingWriter{to: w}
	err := a.runCopier(ctx, Process{Args: []string{guestCopier, "pack", from}, Stdout: to})
	if to.err != nil {
		err = to.err // why the guest's end was cut short
	}
	if err != nil {
		return fmt.Errorf("copy %s out of the sandbox: %w", from, err)
	}
	return nil
}

// CopyOut copies the guest's file or directory from to the host's path to, in the same way. The guest cannot write
// outside of that, nor make anything but files, directories and symbolic links.
func (a *Agent) CopyOut(ctx context.Context, from, to string) error {
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		as := tarcopy.First(from) // the guest may call it what it likes
		if as == "." {
			as = ""
		}
		err := tarcopy.Unpack(r, to, as)
		r.CloseWithError(err) // the guest's packer is told
		unpacked <- err
	}()
	err := a.runCopier(ctx, Process{Args: []string{guestCopier, "pack", from}, Stdout: w})
	w.CloseWithError(err)
	if uerr := <-unpacked; err == nil || (uerr != nil && !errors.Is(uerr, err)) {
		err = uerr
	}
	if err != nil {
		return fmt.Errorf("copy %s out of the sandbox: %w", from, err)
	}
	return nil
}

func (a *Agent) runCopier(ctx context.Context, p Process) error {
	var said bytes.Buffer
	p.Stderr = &boundedWriter{to: &said, left: 4 << 10}
	status, err := a.Exec(ctx, p)
	if err == nil && status.Code != 0 {
		reason := strings.TrimSpace(printable(said.String()))
		if reason == "" {
			reason = fmt.Sprintf("the guest's copier ended with status %d", status.Code)
		}
		err = errors.New(reason)
	}
	return err
}

// failingWriter keeps the first error of to.
type failingWriter struct {
	to  io.Writer
	err error
}

func (f *failingWriter) Write(p []byte) (int, error) {
	n, err := f.to.Write(p)
	f.err = cmp.Or(f.err, err)
	return n, err
}

// boundedWriter takes everything and keeps the beginning.
type boundedWriter struct {
	to   io.Writer
	left int
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	keep := p[:min(len(p), b.left)]
	b.left -= len(keep)
	b.to.Write(keep)
	return len(p), nil
}
