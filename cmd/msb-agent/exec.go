package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/yamux"
	"github.com/microsandbox/msb-fs/vmboot/agentproto"
)

// As shells and Docker have it.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// stdio are the streams of a process; in is nil for /dev/null, err is nil where a terminal carries both.
type stdio struct{ in, out, err *yamux.Stream }

func (s stdio) close() {
	for _, stream := range []*yamux.Stream{s.in, s.out, s.err} {
		if stream != nil {
			stream.Close()
		}
	}
}

type process struct {
	pid     int
	ended   <-chan syscall.WaitStatus
	tty     *os.File // nil without a terminal
	stdin   *inbound // nil when it reads /dev/null
	outputs []*outbound
	copies  sync.WaitGroup
}

// start starts what p says. Where that cannot be done the exit says why, with the status a shell would give.
func (s *server) start(p *agentproto.Process, streams stdio) (*process, *agentproto.Exit) {
	if len(p.Args) == 0 {
		return nil, &agentproto.Exit{Code: exitCannotRun, Error: "no command was given"}
	}
	<-s.ready
	if s.broken != nil {
		return nil, &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("the sandbox could not be set up: %v", s.broken)}
	}
	id, err := lookupUser(p.User, p.Groups)
	if err != nil {
		return nil, &agentproto.Exit{Code: exitCannotRun, Error: err.Error()}
	}
	for _, dir := range p.Dirs {
		if err := os.MkdirAll(filepath.Join("/", dir), 0o755); err != nil {
			return nil, &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("make a volume's directory: %v", err)}
		}
	}
	dir := filepath.Join("/", p.Dir)
	if p.MakeDir {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("make the working directory: %v", err)}
		}
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("working directory %s: no such directory in the image", dir)}
	}
	env := completeEnv(p, id)
	path, code, err := lookPath(p.Args[0], dir, env)
	if err != nil {
		return nil, &agentproto.Exit{Code: code, Error: err.Error()}
	}
	ends, err := openEnds(p)
	if err != nil {
		return nil, &agentproto.Exit{Code: exitCannotRun, Error: err.Error()}
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Files: ends.child(), Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: p.TTY, Ctty: 0,
		Credential: &syscall.Credential{Uid: id.uid, Gid: id.gid, Groups: id.groups},
	}}
	if p.TTY {
		os.Chown(ends.ttyName, int(id.uid), 5)
	}
	proc := &process{tty: ends.tty}
	proc.pid, proc.ended, err = s.reaper.start(func() (int, error) { return forkWith(p, path, attr) })
	ends.closeChild()
	if err != nil {
		ends.closeParent()
		return nil, startFailure(p.Args[0], err)
	}
	proc.connect(ends, streams)
	return proc, nil
}

// How many files a process may open: the kernel's own limit to begin with, since some programs close every number below it,
// and as many as in a container for those that ask.
const (
	softFiles = 1024
	maxFiles  = 1 << 20
)

// forkWith forks with p's umask and limits, which a child takes over from the process it comes from. The reaper's
// lock keeps other children from being forked meanwhile.
func forkWith(p *agentproto.Process, path string, attr *syscall.ProcAttr) (int, error) {
	if p.Umask != nil {
		defer syscall.Umask(syscall.Umask(int(*p.Umask & 0o777)))
	}
	for _, l := range append([]agentproto.Rlimit{{Resource: syscall.RLIMIT_NOFILE, Soft: softFiles, Hard: maxFiles}}, p.Rlimits...) {
		var old syscall.Rlimit
		if err := syscall.Getrlimit(l.Resource, &old); err != nil {
			return 0, fmt.Errorf("resource limit %d: %w", l.Resource, err)
		}
		// syscall.Setrlimit also keeps the runtime from giving the child the limit on files it found at its own start.
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return 0, fmt.Errorf("resource limit %d to %d:%d: %w", l.Resource, l.Soft, l.Hard, err)
		}
		defer syscall.Setrlimit(l.Resource, &old)
	}
	return syscall.ForkExec(path, p.Args, attr)
}

func startFailure(name string, err error) *agentproto.Exit {
	switch {
	case errors.Is(err, syscall.ENOENT):
		// The file is there: it is its interpreter or its loader that is not.
		return &agentproto.Exit{Code: exitNotFound, Error: fmt.Sprintf("%s: its interpreter or loader is not in the image", name)}
	case errors.Is(err, syscall.ENOEXEC):
		return &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("%s: not a program this machine can run (wrong platform, or a script without #!)", name)}
	}
	return &agentproto.Exit{Code: exitCannotRun, Error: fmt.Sprintf("%s: %v", name, err)}
}

// completeEnv adds what Docker adds where the image and the caller say nothing.
func completeEnv(p *agentproto.Process, id identity) []string {
	env := slices.Clone(p.Env)
	add := func(key, value string) {
		if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, key+"=") }) {
			env = append(env, key+"="+value)
		}
	}
	add("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	add("HOME", id.home)
	if name, err := os.Hostname(); err == nil {
		add("HOSTNAME", name)
	}
	if p.TTY {
		add("TERM", "xterm")
	}
	return env
}

// lookPath finds the program as execvp(3) would, with the process's own PATH and directory.
func lookPath(name, dir string, env []string) (path string, code int, err error) {
	absolute := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	if strings.Contains(name, "/") {
		path := absolute(name)
		switch st, err := os.Stat(path); {
		case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR):
			return "", exitNotFound, fmt.Errorf("%s: no such file in the image", name)
		case err != nil:
			return "", exitCannotRun, err
		case st.IsDir():
			return "", exitCannotRun, fmt.Errorf("%s: is a directory", name)
		}
		return path, 0, nil
	}
	search := ""
	for _, kv := range env { // the last one wins, as in execve's reader
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = value
		}
	}
	denied := false
	for _, d := range filepath.SplitList(search) {
		path := absolute(filepath.Join(d, name))
		st, err := os.Stat(path)
		if err != nil || st.IsDir() {
			continue
		}
		if st.Mode()&0o111 != 0 {
			return path, 0, nil
		}
		denied = true
	}
	if denied {
		return "", exitCannotRun, fmt.Errorf("%s: not executable", name)
	}
	return "", exitNotFound, fmt.Errorf("%s: no such command in the image's PATH (%s)", name, search)
}

// wait returns how the process ended, once all it has written has been handed to the host.
func (p *process) wait() agentproto.Exit {
	status := <-p.ended
	for _, o := range p.outputs {
		o.finish()
	}
	if p.stdin != nil {
		p.stdin.finish()
	}
	p.copies.Wait()
	if p.tty != nil {
		p.tty.Close()
	}
	if status.Signaled() {
		return agentproto.Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	return agentproto.Exit{Code: status.ExitStatus()}
}

func (p *process) resize(size agentproto.Size) {
	if p.tty != nil && size.Rows > 0 && size.Cols > 0 {
		setSize(p.tty, size)
	}
}
