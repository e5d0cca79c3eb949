package msb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
)

// dir is a sandbox's directory.
type dir string

func (d dir) upper() string { return filepath.Join(string(d), "upper") }
func (d dir) spec() string  { return filepath.Join(string(d), "config.json") }
func (d dir) state() string { return filepath.Join(string(d), "state.json") }
func (d dir) logs() string  { return filepath.Join(string(d), "logs") }
func (d dir) lock() string  { return filepath.Join(string(d), "lock") }

// newPrefix begins the names of directories that are being made. No sandbox can have such a name.
const newPrefix = ".new-"

// newGrace is how long a directory that is being made is left alone.
const newGrace = time.Minute

// create makes the directory of s and returns it locked: nobody sees it before it is whole. The caller closes the lock.
func create(home api.Home, s *Spec) (_ dir, lock *os.File, err error) {
	if err := os.MkdirAll(home.Sandboxes(), 0o700); err != nil {
		return "", nil, fmt.Errorf("create sandbox: %w", err)
	}
	tmp := dir(home.Sandbox(newPrefix + s.ID))
	defer func() {
		if err != nil {
			os.RemoveAll(string(tmp))
			if lock != nil {
				lock.Close()
			}
		}
	}()
	for _, path := range []string{string(tmp), tmp.upper(), tmp.logs()} {
		// An image's root is usually 0755; the directory above keeps others out.
		if err := os.Mkdir(path, 0o755); err != nil {
			return "", nil, fmt.Errorf("create sandbox: %w", err)
		}
	}
	if err := os.Chmod(string(tmp), 0o700); err != nil {
		return "", nil, fmt.Errorf("create sandbox: %w", err)
	}
	if lock, err = tmp.tryLock(); err != nil {
		return "", nil, err
	}
	if err := writeJSON(tmp.spec(), s); err != nil {
		return "", lock, err
	}
	d := dir(home.Sandbox(s.Name))
	err = os.Rename(string(tmp), string(d)) // onto a directory only if that is empty
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		err = fmt.Errorf("%w: %s: choose another --name, or msb-launch rm %s", ErrExists, s.Name, s.Name)
	}
	return d, lock, err
}

// tryLock takes d's lock, which a process holds for as long as it runs the sandbox or removes it.
func (d dir) tryLock() (*os.File, error) {
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNoSandbox
		}
		return nil, fmt.Errorf("lock sandbox %s: %w", filepath.Base(string(d)), err)
	}
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		// Those who only look whether it is locked (running) share it for a moment; they are no reason to fail.
		if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil {
			f.Close()
			return nil, fmt.Errorf("%w: %s", ErrRunning, filepath.Base(string(d)))
		}
		syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		time.Sleep(time.Millisecond)
	}
	// It may have been removed between the two calls, and even made anew.
	var locked, now syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &locked) != nil || syscall.Stat(d.lock(), &now) != nil || locked.Ino != now.Ino {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrNoSandbox, filepath.Base(string(d)))
	}
	return f, nil
}

// running tells whether a process has d's lock.
func (d dir) running() bool {
	f, err := os.Open(d.lock())
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// remove deletes d, whose lock the caller has. It first takes the name away, so that what is left of it after a crash is
// nobody's sandbox.
func (d dir) remove() error {
	gone, err := os.MkdirTemp(filepath.Dir(string(d)), newPrefix+"gone-")
	if err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	err = os.Rename(string(d), filepath.Join(gone, filepath.Base(string(d))))
	if err = errors.Join(err, os.RemoveAll(gone)); err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return nil
}

// list returns the directories of all sandboxes, sorted by name, and removes what crashes have left.
func list(home api.Home) ([]dir, error) {
	entries, err := os.ReadDir(home.Sandboxes())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var out []dir
	for _, e := range entries {
		d := dir(home.Sandbox(e.Name()))
		if !strings.HasPrefix(e.Name(), newPrefix) {
			out = append(out, d)
			continue
		}
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > newGrace && !d.running() {
			os.RemoveAll(string(d))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out, nil
}

// writeJSON writes v to path, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save sandbox: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("save sandbox: %w", err)
	}
	return os.Rename(f.Name(), path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	return err
}
