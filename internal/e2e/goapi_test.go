package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestGoAPI does by the Go package what the other tests do by the programs: one sandbox from its creation to its end.
func TestGoAPI(t *testing.T) {
	needVM(t)
	s := serve(t, registry.Options{Auth: registry.Auth{Username: "me", Password: "secret"}})
	ref := smallImage(t, s, testimage.Gzip)
	h := newHome(t)
	t.Setenv("PATH", built.dir+":"+os.Getenv("PATH")) // where the package finds the programs
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	home, access := msb.WithHome(h.dir), msb.WithRegistry(msb.PlainHTTP(), msb.BasicAuth("me", "secret"))
	wantIs := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}

	_, err := msb.Create(ctx, "worker", home, msb.WithImage(ref), msb.WithPullPolicy(msb.PullNever))
	wantIs(err, msb.ErrNotCached)
	_, err = msb.Create(ctx, "worker", home, msb.WithImage(ref), msb.WithRegistry(msb.PlainHTTP(), msb.BasicAuth("me", "wrong")))
	wantIs(err, msb.ErrUnauthorized)
	_, err = msb.Create(ctx, "worker", home, msb.WithImage(s.Host()+"/none"), access)
	wantIs(err, msb.ErrImageNotFound)
	gone, goneAlready := context.WithCancel(ctx)
	goneAlready()
	_, err = msb.Create(gone, "worker", home, msb.WithImage(ref), access)
	wantIs(err, context.Canceled)
	_, err = msb.Get("worker", home)
	wantIs(err, msb.ErrNoSandbox) // nothing is left of those

	sb, err := msb.Create(ctx, "worker", home, msb.WithImage(ref), access, msb.WithEnv("K=v"), msb.WithCommand("sh", "-c", "echo begun; exec sleep 100000"))
	noError(t, err)
	_, err = msb.Create(ctx, "worker", home, msb.WithImage(ref), access)
	wantIs(err, msb.ErrExists)
	_, err = sb.Exec(ctx, msb.Process{Args: []string{"true"}})
	wantIs(err, msb.ErrNotRunning)
	wantIs(sb.Start(gone), context.Canceled)
	if sb.Running() {
		t.Error("it was started by somebody who had given up")
	}
	noError(t, sb.Start(ctx))
	wantIs(sb.Start(ctx), msb.ErrRunning)
	wantIs(sb.Remove(ctx, false), msb.ErrRunning)

	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			var out bytes.Buffer
			status, err := sb.Exec(ctx, msb.Process{Args: []string{"sh", "-c", fmt.Sprintf("echo $K; exit %d", i)}, Stdout: &out})
			if err != nil || status.Code != i || out.String() != "v\n" {
				t.Errorf("%+v, %v, %q", status, err, out.String())
			}
		})
	}
	all.Wait()
	var notStarted *msb.StartError
	if _, err := sb.Exec(ctx, msb.Process{Args: []string{"nosuch"}}); !errors.As(err, &notStarted) || notStarted.Code != 127 {
		t.Errorf("%v, want a StartError of 127", err)
	}
	short, end := context.WithCancel(ctx)
	_, err = sb.Exec(short, msb.Process{Args: []string{"sh", "-c", "echo; sleep 100000"}, Stdout: writer(func([]byte) { end() })})
	wantIs(err, context.Canceled)

	file := filepath.Join(t.TempDir(), "file")
	noError(t, os.WriteFile(file, []byte("copied"), 0o600))
	noError(t, sb.CopyIn(ctx, file, "/tmp/in"))
	noError(t, sb.CopyOut(ctx, "/tmp/in", file+"2"))
	if b, err := os.ReadFile(file + "2"); err != nil || string(b) != "copied" {
		t.Errorf("%q, %v", b, err)
	}
	if list, err := msb.List(home); err != nil || len(list) != 1 || !list[0].Running() {
		t.Errorf("%v, %v", list, err)
	}
	noError(t, sb.Stop(ctx, 0))
	noError(t, sb.Stop(ctx, 0))
	var log []string
	noError(t, sb.Logs(ctx, -1, false, func(l msb.LogLine) error {
		log = append(log, l.Stream+" "+string(l.Log))
		return nil
	}))
	if strings.Join(log, "") != "stdout begun\n" {
		t.Errorf("log: %q", log)
	}
	noError(t, sb.Remove(ctx, false))
	wantIs(sb.Remove(ctx, false), msb.ErrNoSandbox)

	bad, err := msb.Create(ctx, "", home, msb.WithImage(ref), msb.WithCommand("nosuch")) // it is cached by now
	noError(t, err)
	if err := bad.Start(ctx); !errors.As(err, &notStarted) || notStarted.Code != 127 {
		t.Errorf("%v, want a StartError of 127", err)
	}
	noError(t, bad.Remove(ctx, true))
}

// writer is told of every Write.
type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}
