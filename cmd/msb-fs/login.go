package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/remote"
)

func (a *app) loginCmd() *cobra.Command {
	var access remote.Access
	var fromStdin, insecure bool
	var caCerts string
	cmd := &cobra.Command{
		Use:   "login HOST -u USER --password-stdin",
		Short: "Check a user name and password with a registry and keep them",
		Long: "Check a user name and password with a registry and keep them: in the desktop's keyring, or where there is none in\n" +
			"auth.json of the home directory, which only its owner can read.",
		Example: "  msb-fs login ghcr.io -u me --password-stdin < token",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if access.Username == "" || !fromStdin {
				return cli.Usagef("login needs --username and --password-stdin")
			}
			if cmd.Flags().Changed("insecure") {
				access.Insecure = &insecure
			}
			var err error
			if caCerts != "" {
				if access.CACerts, err = os.ReadFile(caCerts); err != nil {
					return fmt.Errorf("read --ca-certs: %w", err)
				}
			}
			if access.Password, err = cli.ReadLine(cmd.InOrStdin()); err != nil {
				return fmt.Errorf("read password from standard input: %w", err)
			}
			return a.login(cmd, args[0], access)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&access.Username, "username", "u", "", "user name")
	f.BoolVar(&fromStdin, "password-stdin", false, "read the password's line from standard input")
	f.BoolVar(&insecure, "insecure", false, "speak plain HTTP to the registry")
	f.StringVar(&caCerts, "ca-certs", "", "trust the certificates in this PEM file too")
	return cmd
}

func (a *app) login(cmd *cobra.Command, host string, access remote.Access) error {
	home, err := a.Home()
	if err != nil {
		return err
	}
	config, err := remote.LoadConfig(home.Config())
	if err != nil {
		return err
	}
	client := remote.NewClient(remote.Options{Config: config})
	defer client.Close()
	if err := client.Login(cmd.Context(), host, access); err != nil {
		return err
	}
	if err := os.MkdirAll(string(home), 0o700); err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	where, err := logins(home).Put(cmd.Context(), host, remote.Credential{Username: access.Username, Password: access.Password})
	if err != nil {
		return err
	}
	a.Notef(cmd, "logged in to %s; kept in %s", host, where)
	return nil
}

// logins is where home's credentials are kept.
func logins(home api.Home) *remote.Logins {
	return &remote.Logins{Keyring: remote.DefaultKeyring, File: home.Logins()}
}

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "logout HOST",
		Short:   "Forget the credentials that login has kept",
		Example: "  msb-fs logout ghcr.io",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			known, err := logins(home).Erase(cmd.Context(), args[0])
			if err == nil && !known {
				err = fmt.Errorf("not logged in to %s", args[0])
			}
			return err
		},
	}
}

// knownRegistry is a registry that there are credentials or settings for.
type knownRegistry struct {
	Host     string   `json:"host"`
	Username string   `json:"username,omitempty"`
	Source   string   `json:"source"` // login or config.json
	Insecure bool     `json:"insecure,omitempty"`
	Mirrors  []string `json:"mirrors,omitempty"`
}

func (a *app) registriesCmd() *cobra.Command {
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "registries",
		Short:   "List registries that config.json or login knows; shows no secrets",
		Example: "  msb-fs registries --json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := a.Home()
			if err != nil {
				return err
			}
			config, err := remote.LoadConfig(home.Config())
			if err != nil {
				return err
			}
			users, err := logins(home).List(cmd.Context())
			if err != nil {
				return err
			}
			known := []knownRegistry{}
			for _, host := range slices.Sorted(maps.Keys(config.Hosts)) {
				h := config.Hosts[host]
				r := knownRegistry{Host: host, Source: "config.json", Insecure: h.Insecure, Mirrors: h.Mirrors}
				if h.Auth != nil {
					r.Username = h.Auth.Username
				}
				known = append(known, r)
			}
			for _, host := range slices.Sorted(maps.Keys(users)) {
				known = append(known, knownRegistry{Host: host, Username: users[host], Source: "login"})
			}
			return out.Print(cmd.OutOrStdout(), known, func(w io.Writer) error {
				t := cli.NewTable(w, "HOST", "USER", "FROM", "MIRRORS")
				for _, r := range known {
					t.Row(r.Host, cli.Dash(r.Username), r.Source, fmt.Sprint(len(r.Mirrors)))
				}
				return t.Flush()
			})
		},
	}
	out.Register(cmd.Flags())
	return cmd
}
