package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// maxSocketPath leaves room for the longest socket name below a run directory in sockaddr_un's 108 bytes (unix(7)).
const maxSocketPath = 108 - len("/sb-0123456789abcdef/agent.sock") - 1

// Home is the directory that holds a user's cache, sandboxes and sockets.
type Home string

// FindHome returns dir, else $MSB_HOME, else ~/.microsandbox, as an absolute path. It creates nothing.
func FindHome(dir string) (Home, error) {
	if dir == "" {
		dir = os.Getenv("MSB_HOME")
	}
	if dir == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no home directory: %w; set MSB_HOME or --home", err)
		}
		dir = filepath.Join(user, ".microsandbox")
	}
	abs, err := filepath.Abs(dir)
	return Home(abs), err
}

// Config is the path of config.json.
func (h Home) Config() string { return filepath.Join(string(h), "config.json") }

// Logins is the file that credentials are kept in where there is no keyring.
func (h Home) Logins() string { return filepath.Join(string(h), "auth.json") }

// Cache is the directory of name's cached data.
func (h Home) Cache(name string) string { return filepath.Join(string(h), "cache", name) }

// DB is badger's directory.
func (h Home) DB() string { return filepath.Join(string(h), "db") }

// Sandbox is the directory of one sandbox's state.
func (h Home) Sandbox(name string) string { return filepath.Join(string(h), "sandboxes", name) }

// Sandboxes is the directory of all sandboxes' state.
func (h Home) Sandboxes() string { return filepath.Join(string(h), "sandboxes") }

// Log is the daemon's log file.
func (h Home) Log() string { return filepath.Join(string(h), "run", "daemon.log") }

// LastLog is the log of the daemon before this one.
func (h Home) LastLog() string { return filepath.Join(string(h), "run", "daemon.last.log") }

// Run is the directory of sockets and pid files, made if need be with mode 0700. It is below the home directory unless
// that is too long for a socket's address; then it is a directory of the user's own in the system's temporary directory.
func (h Home) Run() (string, error) {
	dir := filepath.Join(string(h), "run")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make run directory: %w", err)
	}
	if len(dir) <= maxSocketPath {
		return dir, nil
	}
	sum := sha256.Sum256([]byte(h))
	short := filepath.Join("/tmp", fmt.Sprintf("msb-%d-%s", os.Getuid(), hex.EncodeToString(sum[:8])))
	if err := os.Mkdir(short, 0o700); err != nil && !os.IsExist(err) {
		return "", fmt.Errorf("make run directory: %w", err)
	}
	// Somebody else may have made it first, to read what is said on the sockets.
	fi, err := os.Lstat(short)
	if err != nil {
		return "", fmt.Errorf("check run directory: %w", err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || int(st.Uid) != os.Getuid() || fi.Mode().Perm() != 0o700 {
		return "", fmt.Errorf("run directory %s is not this user's own: remove it or use a shorter --home", short)
	}
	return short, nil
}

// Socket is the daemon's socket.
func (h Home) Socket() (string, error) {
	run, err := h.Run()
	return filepath.Join(run, "daemon.sock"), err
}
