package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

func isTerminal(fd int) bool { return term.IsTerminal(fd) }

// Registry are the flags of commands that name an image.
type Registry struct {
	insecure      bool
	caCerts       string
	username      string
	passwordStdin bool
	platform      string
	pull          string
}

// Register adds the flags to cmd; a command that always pulls by a policy of another name has no --pull.
func (r *Registry) Register(cmd *cobra.Command, pullFlag string) {
	f := cmd.Flags()
	Choice(f, &r.pull, pullFlag, "when to ask the registry: if-missing, always or never", api.PullIfMissing, api.PullAlways, api.PullNever)
	f.BoolVar(&r.insecure, "insecure", false, "speak plain HTTP to the registry")
	f.StringVar(&r.caCerts, "ca-certs", "", "trust the certificates in this PEM file too")
	f.StringVar(&r.username, "username", "", "log in to the registry as this user, with --password-stdin")
	f.BoolVar(&r.passwordStdin, "password-stdin", false, "read the password's line from standard input")
	f.StringVar(&r.platform, "platform", "", "os/arch[/variant] to choose (default the host's)")
}

// Alias adds a hidden flag that does what the one for the pull policy does.
func (r *Registry) Alias(cmd *cobra.Command, name string) {
	Choice(cmd.Flags(), &r.pull, name, "", api.PullIfMissing, api.PullAlways, api.PullNever)
	cmd.Flags().Lookup(name).Hidden = true
}

// Request is a request for image with the flags' settings.
func (r *Registry) Request(cmd *cobra.Command, home api.Home, image string) (api.ImageRequest, error) {
	req := api.ImageRequest{Image: image, Pull: r.pull}
	if (r.username != "") != r.passwordStdin {
		return req, Usagef("--username and --password-stdin go together")
	}
	req.Access.Username, req.Access.Platform = r.username, r.platform
	if cmd.Flags().Changed("insecure") {
		req.Access.Insecure = &r.insecure
	}
	var err error
	if r.caCerts != "" {
		if req.Access.CACerts, err = os.ReadFile(r.caCerts); err != nil {
			return req, fmt.Errorf("read --ca-certs: %w", err)
		}
	}
	if r.passwordStdin {
		if req.Access.Password, err = ReadLine(cmd.InOrStdin()); err != nil {
			return req, fmt.Errorf("read password from standard input: %w", err)
		}
	}
	req.Access.Env, err = passwordEnv(home)
	return req, err
}

// ReadLine returns r's first line, and reads no further where r can be read byte by byte.
func ReadLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(onebyte{r}, 16).ReadString('\n')
	if errors.Is(err, io.EOF) && line != "" {
		err = nil
	}
	return strings.TrimRight(line, "\r\n"), err
}

// onebyte keeps a buffered reader from taking what follows: it may be the sandbox's standard input.
type onebyte struct{ io.Reader }

func (o onebyte) Read(p []byte) (int, error) { return o.Reader.Read(p[:1]) }

// passwordEnv returns the caller's values of the variables that config.json takes passwords from.
func passwordEnv(home api.Home) (map[string]string, error) {
	config, err := remote.LoadConfig(home.Config())
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, name := range config.PasswordEnvs() {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	return env, nil
}
