package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// helperTimeout is how long a credential helper may take. One that waits for a desktop nobody sits at would take for ever.
const helperTimeout = 10 * time.Second

// helper is a program docker-credential-<name>. Secrets travel by its stdin and stdout, never as arguments.
// https://docs.docker.com/reference/cli/docker/login/#credential-helper-protocol
type helper struct{ name string }

// errNoHelper says that the program is not there.
var errNoHelper = errors.New("no such program")

// program makes the function by which the protocol's client runs the program.
func (h *helper) program(ctx context.Context) (client.ProgramFunc, error) {
	if h.name == "" || strings.ContainsAny(h.name, "/\\\x00") {
		return nil, fmt.Errorf("%q is not the name of a credential helper", oneLine(h.name))
	}
	path, err := exec.LookPath("docker-credential-" + h.name)
	if err != nil {
		return nil, fmt.Errorf("docker-credential-%s: %w", h.name, errNoHelper)
	}
	return func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.WaitDelay = time.Second
		return &helperProgram{cmd: cmd}
	}, nil
}

// helperProgram is one run of a helper. What it writes to stderr is nobody's business.
type helperProgram struct{ cmd *exec.Cmd }

var _ client.Program = (*helperProgram)(nil)

func (p *helperProgram) Input(in io.Reader) { p.cmd.Stdin = in }

func (p *helperProgram) Output() ([]byte, error) {
	out := &limitedBuffer{left: 1 << 20}
	p.cmd.Stdout = out
	err := p.cmd.Run()
	return out.Bytes(), err
}

// limitedBuffer fails when more is written than it is meant to hold.
type limitedBuffer struct {
	bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("too much output")
	}
	return b.Buffer.Write(p)
}

// helperKey is what helpers call a host.
func helperKey(host string) string {
	if canonicalHost(host) == hubHost {
		return hubKey
	}
	return host
}

func (h *helper) get(ctx context.Context, host string) (Credential, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program, err := h.program(ctx)
	if err != nil {
		return Credential{}, false, err
	}
	got, err := client.Get(program, helperKey(host))
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return Credential{}, false, nil
	case err != nil:
		return Credential{}, false, h.error(ctx, err)
	case got.Username == "<token>":
		return Credential{IdentityToken: got.Secret}, true, nil
	}
	return Credential{Username: got.Username, Password: got.Secret}, got.Username != "" || got.Secret != "", nil
}

func (h *helper) store(ctx context.Context, host string, c Credential) error {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program, err := h.program(ctx)
	if err != nil {
		return err
	}
	entry := &credentials.Credentials{ServerURL: helperKey(host), Username: c.Username, Secret: c.Password}
	if c.IdentityToken != "" {
		entry.Username, entry.Secret = "<token>", c.IdentityToken
	}
	if err := client.Store(program, entry); err != nil {
		return h.error(ctx, err)
	}
	return nil
}

func (h *helper) erase(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program, err := h.program(ctx)
	if err != nil {
		return err
	}
	if err := client.Erase(program, helperKey(host)); err != nil && !credentials.IsErrCredentialsNotFound(err) {
		return h.error(ctx, err)
	}
	return nil
}

func (h *helper) list(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program, err := h.program(ctx)
	if err != nil {
		return nil, err
	}
	users, err := client.List(program)
	if err != nil {
		return nil, h.error(ctx, err)
	}
	return users, nil
}

// error leaves out what the program wrote: nothing says that it holds no secret.
func (h *helper) error(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("docker-credential-%s: %w", h.name, ctx.Err())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("docker-credential-%s failed: %w", h.name, exit)
	}
	return fmt.Errorf("docker-credential-%s failed", h.name)
}
