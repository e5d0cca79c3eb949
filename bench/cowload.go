package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// cowWorkload is something to do in a mount.
type cowWorkload struct {
	name  string
	plain bool // makes sense without the image below
	run   func(ctx context.Context, mnt string) error
}

const (
	cowCreates      = 10000
	cowFiles        = 20000
	cowTransactions = 10000
	cowWrites       = 20000
	cowSequential   = 512 << 20
)

func (b *cowBench) workloads() []cowWorkload {
	git := func(ctx context.Context, args ...string) error { return b.command(ctx, "git", args...) }
	return []cowWorkload{
		{"create 10,000 small files", true, createFiles},
		{"untar 20,000 files", true, func(ctx context.Context, mnt string) error {
			return b.command(ctx, "tar", "-xf", b.path("tree.tar"), "-C", mnt+"/tmp")
		}},
		{"git clone, checkout", true, func(ctx context.Context, mnt string) error {
			to := mnt + "/tmp/clone"
			return errors.Join(git(ctx, "clone", "-q", "--no-local", b.path("repo"), to), git(ctx, "-C", to, "checkout", "-q", "old"))
		}},
		{"dpkg -i, 5,000 files", false, func(ctx context.Context, mnt string) error {
			return b.command(ctx, "chroot", mnt, "dpkg", "-i", "/tmp/large.deb")
		}},
		{"SQLite, 10,000 transactions", true, func(ctx context.Context, mnt string) error {
			return b.command(ctx, "python3", "-c", sqliteProgram, mnt+"/tmp/db", fmt.Sprint(cowTransactions))
		}},
		{"first 4 KiB write into 256 MiB", false, func(_ context.Context, mnt string) error { return randomWrites(mnt+"/big", 1) }},
		{"20,000 random 4 KiB writes", false, func(_ context.Context, mnt string) error { return randomWrites(mnt+"/big", cowWrites) }},
		{"write 512 MiB in order", true, func(_ context.Context, mnt string) error { return writeInOrder(mnt+"/tmp/seq", false) }},
		{"write 512 MiB in order, fsync", true, func(_ context.Context, mnt string) error { return writeInOrder(mnt+"/tmp/synced", true) }},
	}
}

// sqliteProgram commits argv[2] transactions. What a disk takes to sync is not asked for: it is the same for everybody.
const sqliteProgram = `
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("pragma synchronous=off")
c.execute("create table t(a integer primary key, b text)")
for i in range(int(sys.argv[2])):
    c.execute("begin"); c.execute("insert into t(b) values(?)", ("x" * 100,)); c.execute("commit")
`

func createFiles(_ context.Context, mnt string) error {
	dir := mnt + "/tmp/created"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	data := make([]byte, 700)
	for i := range cowCreates {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func randomWrites(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(uint64(n), 0))
	data := make([]byte, 4096)
	for range n {
		if _, err := f.WriteAt(data, r.Int64N(cowBig/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}

func writeInOrder(path string, sync bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	data := make([]byte, 1<<20)
	for range cowSequential / len(data) {
		if _, err := f.Write(data); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// sources makes what the workloads read: an archive, a repository, and a package.
func (b *cowBench) sources(ctx context.Context) error {
	if err := b.archive(b.path("tree.tar")); err != nil {
		return err
	}
	repo := b.path("repo")
	for _, args := range [][]string{
		{"mkdir", repo}, {"tar", "-xf", b.path("tree.tar"), "-C", repo, "--wildcards", "tree/?", "tree/1?"},
		{"git", "-C", repo, "init", "-q", "-b", "main"},
		{"git", "-C", repo, "add", "."},
		{"git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all"},
		{"git", "-C", repo, "tag", "new"},
		{"git", "-C", repo, "rm", "-q", "-r", "tree/1"},
		{"git", "-C", repo, "mv", "tree/2", "tree/b"},
		{"git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "less"},
		{"git", "-C", repo, "tag", "old"},
		{"git", "-C", repo, "checkout", "-q", "new"},
		{"git", "-C", repo, "branch", "-f", "main", "new"},
	} {
		if err := b.command(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	root := b.path("package")
	for i := range 5000 {
		p := filepath.Join(root, "usr/share/large", fmt.Sprint(i%50), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(strings.Repeat(p, 1+i%400)), 0o644); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(root, "DEBIAN"), 0o755); err != nil {
		return err
	}
	control := "Package: large\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: many files\n"
	if err := os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		return err
	}
	return b.command(ctx, "dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", root, b.path("large.deb"))
}

// archive writes a tar of cowFiles files in 200 directories.
func (b *cowBench) archive(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := tar.NewWriter(f)
	for d := range 200 {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("tree/%d/", d), Mode: 0o755}); err != nil {
			return err
		}
		for i := range cowFiles / 200 {
			size := int64(i * 37)
			if err := t.WriteHeader(&tar.Header{Name: fmt.Sprintf("tree/%d/%d", d, i), Mode: 0o644, Size: size}); err != nil {
				return err
			}
			if _, err := io.WriteString(t, strings.Repeat(string(rune('a'+i%26)), int(size))); err != nil {
				return err
			}
		}
	}
	return t.Close()
}
