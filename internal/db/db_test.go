package db_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/microsandbox/msb-fs/internal/db"
)

func TestOpenKeepsWhatWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home", "db")
	d, err := db.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Update(func(txn *badger.Txn) error { return txn.Set([]byte("pin"), []byte("digest")) }); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = db.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte("pin")); return err }); err != nil {
		t.Fatalf("after reopening: %v", err)
	}
}

func TestOpenTwiceIsAClearError(t *testing.T) {
	dir := t.TempDir()
	d, err := db.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = db.Open(dir)
	if !errors.Is(err, db.ErrLocked) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second open: %v", err)
	}
}

func TestEmptyLogsOfAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	d, err := db.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Update(func(txn *badger.Txn) error { return txn.Set([]byte("pin"), []byte("digest")) }); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000099.vlog", "00099.mem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d, err = db.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte("pin")); return err }); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedDatabaseIsSetAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	d, err := db.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(dir); err == nil || errors.Is(err, db.ErrLocked) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("open of a damaged database: %v", err)
	}
	aside, err := db.SetAside(dir, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(aside, "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	if d, err = db.Open(dir); err != nil {
		t.Fatalf("after setting it aside: %v", err)
	}
	d.Close()
}
