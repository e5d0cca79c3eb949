// Package db opens the one badger database of a home directory, tuned for many small keys in little memory: payload
// belongs in files, the database only says where it is.
package db

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

// ErrLocked is answered by Open while somebody else has the database open: badger locks its directory for one owner.
var ErrLocked = errors.New("in use by another process")

// Open opens the database in dir, which it makes (0700) when it is not there. The caller closes it. A database that is
// open elsewhere, in this process or another, is ErrLocked.
//
// Writes are not synced one by one: they survive the death of the process (they are in the page cache by then), a loss
// of power takes the last of them.
func Open(dir string) (*badger.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open database %s: %w", dir, err)
	}
	err := sweep(dir)
	if err == nil {
		var db *badger.DB
		if db, err = badger.Open(tuned(dir)); err == nil {
			return db, nil
		}
		if locked(dir) { // by somebody who came in between
			err = ErrLocked
		}
	}
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("open database %s: %w%s; stop it or use another home directory", dir, ErrLocked, owner(dir))
	}
	return nil, fmt.Errorf("open database %s: %w; if it is damaged, move it away: it is rebuilt from the cache's files", dir, oneLine(err))
}

// SetAside moves the database in dir out of the way, for one that Open calls damaged, and says where it is now.
func SetAside(dir string, now time.Time) (string, error) {
	to := fmt.Sprintf("%s.damaged-%s", filepath.Clean(dir), now.UTC().Format("20060102T150405"))
	if err := os.Rename(dir, to); err != nil {
		return "", fmt.Errorf("set database aside: %w", err)
	}
	return to, nil
}

// tuned are the options under which a million small keys cost little memory: by default they cost 552 MB.
func tuned(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(nil).
		WithMetricsEnabled(false).
		WithCompression(options.None). // keys are digests: nothing to compress, and blocks are read from the map in place
		WithBlockCacheSize(0).
		WithIndexCacheSize(16 << 20).
		WithMemTableSize(8 << 20).
		WithNumMemtables(2).
		WithValueLogFileSize(64 << 20).
		WithDetectConflicts(false).
		WithNumCompactors(2).
		WithSyncWrites(false)
}

// sweep removes the empty log files that a process leaves when it is killed between making one and giving it its size,
// or between emptying one and removing it: badger 4 answers "Create a new file" to them and does not open. They hold
// nothing. It answers ErrLocked while somebody has the database open.
func sweep(dir string) error {
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, de := range names {
		if ext := filepath.Ext(de.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		fi, err := de.Info()
		if err != nil {
			return err
		}
		if fi.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, de.Name())); err != nil {
			return err
		}
	}
	return nil
}

// locked says whether somebody holds the lock that badger takes on dir.
func locked(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// owner names the process in badger's pid file, which is only advice.
func owner(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "LOCK"))
	if err != nil || len(b) > 32 {
		return ""
	}
	return " (pid " + strings.TrimSpace(string(b)) + ")"
}

// oneLine folds badger's errors, which may carry a stack, into their first line.
func oneLine(err error) error {
	line, _, more := strings.Cut(err.Error(), "\n")
	if !more {
		return err
	}
	return errors.New(line)
}
