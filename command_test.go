package msb

import (
	"runtime"
	"slices"
	"syscall"
	"testing"
)

func ptr(s string) *string { return &s }

func TestCommandOverImageConfig(t *testing.T) {
	const config = `{"config":{"Entrypoint":["/entry"],"Cmd":["a","b"],"Env":["PATH=/bin","X=1"],"WorkingDir":"/srv","User":"app"}}`
	for _, c := range []struct {
		name    string
		config  string
		command Command
		args    []string
		env     []string
		dir     string
		user    string
		fails   bool
	}{
		{name: "image's own", config: config, args: []string{"/entry", "a", "b"}, env: []string{"PATH=/bin", "HOSTNAME=h", "X=1"}, dir: "/srv", user: "app"},
		{name: "args replace cmd", config: config, command: Command{Args: []string{"c"}}, args: []string{"/entry", "c"},
			env: []string{"PATH=/bin", "HOSTNAME=h", "X=1"}, dir: "/srv", user: "app"},
		{name: "entrypoint drops cmd", config: config, command: Command{Entrypoint: ptr("/other")}, args: []string{"/other"},
			env: []string{"PATH=/bin", "HOSTNAME=h", "X=1"}, dir: "/srv", user: "app"},
		{name: "empty entrypoint is none", config: config, command: Command{Entrypoint: ptr(""), Args: []string{"sh"}}, args: []string{"sh"},
			env: []string{"PATH=/bin", "HOSTNAME=h", "X=1"}, dir: "/srv", user: "app"},
		{name: "env, dir and user", config: config, command: Command{Env: []string{"X=2", "Y=3"}, Dir: "/w", User: "0"}, args: []string{"/entry", "a", "b"},
			env: []string{"PATH=/bin", "HOSTNAME=h", "X=2", "Y=3"}, dir: "/w", user: "0"},
		{name: "default path, terminal", config: `{}`, command: Command{Args: []string{"sh"}, TTY: true}, args: []string{"sh"},
			env: []string{defaultPath, "HOSTNAME=h", "TERM=xterm"}},
		{name: "nothing to run", config: `{}`, fails: true},
		{name: "not a config", config: `[`, command: Command{Args: []string{"sh"}}, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := c.command.process([]byte(c.config), "h")
			if (err != nil) != c.fails {
				t.Fatalf("error %v, want one: %v", err, c.fails)
			}
			if err != nil {
				return
			}
			if !slices.Equal(p.Args, c.args) || !slices.Equal(p.Env, c.env) || p.Dir != c.dir || p.User != c.user {
				t.Errorf("got %q %q %q %q, want %q %q %q %q", p.Args, p.Env, p.Dir, p.User, c.args, c.env, c.dir, c.user)
			}
		})
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "quit": syscall.SIGQUIT, "2": syscall.SIGINT, "SIGRTMIN+3": 37, "RTMIN": 34,
		"SIGNOPE": syscall.SIGTERM, "0": syscall.SIGTERM, "99": syscall.SIGTERM, "-1": syscall.SIGTERM, "SIGRTMIN+x": syscall.SIGTERM,
	} {
		if got := stopSignal([]byte(`{"config":{"StopSignal":"` + name + `"}}`)); got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
	for _, config := range []string{`[`, `{"config":null}`, `{}`} {
		if got := stopSignal([]byte(config)); got != syscall.SIGTERM {
			t.Errorf("%s: %d, want SIGTERM", config, got)
		}
	}
}

func TestImagesForOtherMachines(t *testing.T) {
	for config, fails := range map[string]bool{
		`{}`: false, `{"os":"linux"}`: false, `{"os":"linux","architecture":"` + runtime.GOARCH + `"}`: false,
		`{"os":"windows","architecture":"` + runtime.GOARCH + `"}`: true, `{"os":"linux","architecture":"s390x"}`: true, `[`: true,
	} {
		if err := runsHere([]byte(config)); (err != nil) != fails {
			t.Errorf("%s: %v, want an error: %v", config, err, fails)
		}
	}
}
