package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	msb "github.com/microsandbox/msb-fs"
	"github.com/microsandbox/msb-fs/internal/cli"
	"github.com/microsandbox/msb-fs/vmboot"
)

// specFlags are the options that a sandbox is made with.
type specFlags struct {
	registry   cli.Registry
	spec       msb.Spec
	memory     string
	env        []string
	envFiles   []string
	entrypoint string
	tmpfs      []string
	volumes    []string
	upperSize  string
	inter      bool
}

// runFlags are the options of run.
type runFlags struct {
	specFlags
	detach     bool
	remove     bool
	verify     string
	timing     bool
	timingJSON string
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [ARG...]",
		Short: "Run a command in a new sandbox",
		Long: "Run a command in a new sandbox. Standard input, output, error and the exit status are the command's. ARG... replaces the\n" +
			"image's CMD and keeps its ENTRYPOINT. The sandbox is removed when the command ends, unless it has a --name or runs detached.",
		Example: "  msb-launch run python -- python3 -c 'print(1)'\n  msb-launch run -it --name dev debian bash\n  echo hello | msb-launch run -i alpine cat",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.run(cmd, &f, args) },
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the sandbox's name")
	fl.BoolVar(&f.remove, "rm", false, "remove the sandbox when the command ends, even with a --name")
	fl.StringVar(&f.verify, "verify", "lazy", "lazy: check bytes as they come; strict: check whole layers before the command sees any")
	fl.BoolVar(&f.timing, "timing", false, "print on standard error when each step was reached and what had been fetched")
	fl.StringVar(&f.timingJSON, "timing-json", "", "write the timing to this file")
	return cmd
}

func (f *specFlags) register(cmd *cobra.Command) {
	f.registry.Register(cmd, "pull")
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows IMAGE is the command's
	fl.StringVar(&f.spec.Name, "name", "", "keep the sandbox under this name")
	fl.BoolVarP(&f.inter, "interactive", "i", false, "accepted as Docker's: standard input is passed on in any case")
	fl.BoolVarP(&f.spec.Command.TTY, "tty", "t", false, "give the command a terminal")
	fl.IntVarP(&f.spec.CPUs, "cpus", "c", 1, "virtual CPUs")
	fl.StringVarP(&f.memory, "memory", "m", "512M", "memory, as 512M or 2G")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set K=V, or take K from this environment")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "set the K=V lines of this file")
	fl.StringVarP(&f.spec.Command.Dir, "workdir", "w", "", "working directory")
	fl.StringVarP(&f.spec.Command.User, "user", "u", "", "user[:group], names or numbers")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's ENTRYPOINT, and drop its CMD")
	fl.StringVar(&f.spec.Hostname, "hostname", "", "host name (default the sandbox's name)")
	fl.DurationVar(&f.spec.Timeout, "timeout", 0, "kill the command after so long")
	fl.StringVar(&f.spec.Net, "net", "public", "none, public (the Internet, but neither this host nor private networks) or all")
	fl.StringArrayVarP(&f.spec.Ports, "publish", "p", nil, "[BIND:]HOST:GUEST[/udp]: a port of this host that leads to one of the sandbox")
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil, "SRC:DST[:ro]: show this directory or file of the host")
	fl.StringArrayVar(&f.tmpfs, "tmpfs", nil, "PATH[:SIZE]: keep this directory in memory")
	fl.StringVar(&f.upperSize, "upper-size", "", "what the sandbox may write in all, as 512M or 2G (default as much as the disk has room for)")
	fl.StringVar(&f.spec.Accel, "accel", "auto", "auto, kvm or tcg")
	fl.StringVar(&f.spec.Kernel, "kernel", "", "guest kernel (default the one that setup got)")
}

func (a *app) run(cmd *cobra.Command, f *runFlags, args []string) error {
	host, err := a.host()
	if err != nil {
		return err
	}
	registry, pull, err := f.complete(a, cmd, args)
	if err != nil {
		return err
	}
	f.spec.Ephemeral = f.remove || f.spec.Name == "" && !f.detach
	if f.detach {
		return a.runDetached(cmd, host, f, registry, pull)
	}
	terminal, err := openTerminal(f.spec.Command.TTY)
	if err != nil {
		return err
	}
	signals, stop := forwarded()
	defer stop()
	status, timing, err := host.Run(cmd.Context(), &f.spec, msb.RunOptions{Registry: registry, Pull: pull, Verify: f.verify,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals, Resize: terminal.resize})
	terminal.restore()
	if rerr := f.report(cmd, timing); rerr != nil && err == nil {
		err = rerr
	}
	return exit(cmd, status, err)
}

func (a *app) runDetached(cmd *cobra.Command, host *msb.Host, f *runFlags, registry msb.Registry, pull msb.PullPolicy) error {
	if f.timing || f.timingJSON != "" || f.verify != "lazy" {
		return cli.Usagef("--timing, --timing-json and --verify are for a run in the foreground")
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	sb, err := host.Create(ctx, f.spec, registry, pull)
	if err != nil {
		return err
	}
	if err := sb.Start(ctx); err != nil {
		return exit(cmd, msb.Status{}, err)
	}
	fmt.Fprintln(cmd.OutOrStdout(), sb.Name)
	return nil
}

// forwarded are the signals that a command in the foreground gets, until stop is called. Until then nobody's leaving a pipe ends this
// process: the command is to hear of it, and the sandbox to end in order.
func forwarded() (_ <-chan os.Signal, stop func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	return signals, func() {
		signal.Stop(signals)
		signal.Stop(pipes)
	}
}

// exit turns how a command ended into what the launcher ends with.
func exit(cmd *cobra.Command, s vmboot.Status, err error) error {
	var notStarted *vmboot.StartError
	if errors.As(err, &notStarted) {
		fmt.Fprintf(cmd.ErrOrStderr(), "msb-launch: %s\n", cli.Line(err))
		return cli.Status(notStarted.Code)
	}
	if errors.Is(err, msb.ErrTimeout) {
		fmt.Fprintf(cmd.ErrOrStderr(), "msb-launch: %s\n", cli.Line(err))
		return cli.Status(signalled + int(syscall.SIGKILL))
	}
	if err != nil {
		return err
	}
	if s.Code == 0 {
		return nil
	}
	return cli.Status(s.Code)
}

// signalled and a signal's number make the exit status of what it has ended, as shells have it.
const signalled = 128

// complete checks the flags and works them into the spec.
func (f *specFlags) complete(a *app, cmd *cobra.Command, args []string) (registry msb.Registry, pull msb.PullPolicy, err error) {
	s := &f.spec
	s.Image, s.Command.Args = args[0], afterDashes(args[1:])
	if cmd.Flags().Changed("entrypoint") {
		s.Command.Entrypoint = &f.entrypoint
	}
	if n := runtime.NumCPU(); s.CPUs < 1 || s.CPUs > n {
		return registry, pull, cli.Usagef("--cpus %d: this host has %d", s.CPUs, n)
	}
	switch s.Accel {
	case "auto", "kvm", "tcg":
	default:
		return registry, pull, cli.Usagef("unknown accelerator %q: use auto, kvm or tcg", s.Accel)
	}
	if s.Timeout < 0 {
		return registry, pull, cli.Usagef("--timeout %v: must not be negative", s.Timeout)
	}
	if s.MemoryMiB, err = cli.ParseMiB("--memory", f.memory, minMemoryMiB); err != nil {
		return registry, pull, err
	}
	if f.upperSize != "" {
		if s.UpperMiB, err = cli.ParseMiB("--upper-size", f.upperSize, 1); err != nil {
			return registry, pull, err
		}
	}
	if s.Tmpfs, err = parseTmpfs(f.tmpfs); err != nil {
		return registry, pull, err
	}
	for _, text := range f.volumes {
		v, err := msb.ParseVolume(text)
		if err != nil {
			return registry, pull, cli.Usagef("--volume: %v", err)
		}
		s.Volumes = append(s.Volumes, v)
	}
	if s.Command.Env, err = environment(f.envFiles, f.env); err != nil {
		return registry, pull, err
	}
	home, err := a.Home()
	if err != nil {
		return registry, pull, err
	}
	req, err := f.registry.Request(cmd, home, s.Image)
	if err != nil {
		return registry, pull, err
	}
	s.Platform = req.Access.Platform
	registry = msb.Registry{Insecure: req.Access.Insecure, CACerts: req.Access.CACerts, Username: req.Access.Username,
		Password: req.Access.Password, Env: req.Access.Env}
	return registry, msb.PullPolicy(req.Pull), nil
}

// afterDashes drops the separator of `run IMAGE -- CMD`, which is ours: pflag takes only one that stands before IMAGE.
func afterDashes(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

// environment joins files of K=V lines and single settings; a name without a value takes that of this environment.
func environment(files, settings []string) (out []string, err error) {
	add := func(kv string) error {
		name, _, set := strings.Cut(kv, "=")
		if name == "" {
			return cli.Usagef("environment %q has no name", kv)
		}
		if set {
			out = append(out, kv)
		} else if value, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+value)
		}
		return nil
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read --env-file: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			if err := add(line); err != nil {
				return nil, err
			}
		}
	}
	for _, kv := range settings {
		if err := add(kv); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// report writes the timing where the flags say.
func (f *runFlags) report(cmd *cobra.Command, t msb.Timing) error {
	if f.timing {
		t.Print(cmd.ErrOrStderr())
	}
	if f.timingJSON == "" {
		return nil
	}
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.timingJSON, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write --timing-json: %w", err)
	}
	return nil
}

// parseTmpfs reads PATH[:SIZE].
func parseTmpfs(flags []string) (out []msb.Tmpfs, err error) {
	for _, f := range flags {
		path, size, sized := strings.Cut(f, ":")
		t := msb.Tmpfs{Path: path}
		if !strings.HasPrefix(path, "/") {
			return nil, cli.Usagef("--tmpfs %q: the path is not absolute", f)
		}
		if sized {
			if t.SizeMiB, err = cli.ParseMiB("--tmpfs", size, 1); err != nil {
				return nil, err
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// minMemoryMiB is the least memory that a sandbox boots with.
const minMemoryMiB = 96
