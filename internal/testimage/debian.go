package testimage

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

//go:embed build-layers
var buildLayers []byte

// Stack is a real image made of Debian packages: the minimal base system, a layer per group of packages, and an
// application on top.
type Stack struct {
	Name     string   // of the image, as in file names
	Scratch  bool     // there is no base system and are no Packages below
	Packages []string // a layer each, "name=package,package"
	// Files are layers between the packages and the application; nil is none.
	Files  func() ([][]Entry, error)
	App    func() []Entry
	Config Config
}

// CacheDir is where built images are kept between runs: $XDG_CACHE_HOME/msb-fs/images, else ~/.cache/msb-fs/images.
func CacheDir() (string, error) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for images: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(d, "msb-fs", "images"), nil
}

// Layout is the stack's OCI layout in a form. It is built when dir does not have it yet, which takes mmdebstrap and a
// minute or two; what happens is said on progress.
func (s Stack) Layout(ctx context.Context, dir string, form Form, progress io.Writer) (string, error) {
	tars, err := s.tars(ctx, dir, progress)
	if err != nil {
		return "", err
	}
	files, err := s.files()
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", s.Name, err)
	}
	key := sha256.New()
	fmt.Fprintf(key, "%q %+v", tars, s.Config)
	for _, entries := range files {
		if err := WriteTar(key, entries...); err != nil {
			return "", fmt.Errorf("build image %s: %w", s.Name, err)
		}
	}
	out := filepath.Join(dir, fmt.Sprintf("%s-%s-%s", s.Name, form, short(key.Sum(nil))))
	if _, err := os.Stat(filepath.Join(out, "index.json")); err == nil {
		return out, nil
	}
	fmt.Fprintf(progress, "writing image %s as %s\n", s.Name, form)
	work, err := os.MkdirTemp(dir, ".layout-")
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", s.Name, err)
	}
	defer os.RemoveAll(work)
	var layers []*Layer
	for _, t := range tars {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		l, err := FileLayer(form, t, work)
		if err != nil {
			return "", fmt.Errorf("build image %s: %w", s.Name, err)
		}
		layers = append(layers, l)
	}
	// Once more: their contents have been read.
	if files, err = s.files(); err != nil {
		return "", fmt.Errorf("build image %s: %w", s.Name, err)
	}
	for _, entries := range files {
		l, err := NewLayer(form, entries...)
		if err != nil {
			return "", fmt.Errorf("build image %s: %w", s.Name, err)
		}
		layers = append(layers, l)
	}
	img, err := Image(s.Config, layers...)
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", s.Name, err)
	}
	if err := WriteLayout(out, "latest", img); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("build image %s: %w", s.Name, err)
	}
	return out, nil
}

// files are the layers above the packages.
func (s Stack) files() ([][]Entry, error) {
	var files [][]Entry
	if s.Files != nil {
		var err error
		if files, err = s.Files(); err != nil {
			return nil, err
		}
	}
	if s.App != nil {
		files = append(files, s.App())
	}
	return files, nil
}

// tars are the stack's Debian layers, bottom first. Stacks of the same packages share them.
func (s Stack) tars(ctx context.Context, dir string, progress io.Writer) ([]string, error) {
	if s.Scratch {
		return nil, os.MkdirAll(dir, 0o755)
	}
	key := sha256.New()
	fmt.Fprintf(key, "%s %q", buildLayers, s.Packages)
	out := filepath.Join(dir, "layers-"+short(key.Sum(nil)))
	if _, err := os.Stat(out); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("build layers: %w", err)
		}
		if err := runBuild(ctx, out, s.Packages, progress); err != nil {
			return nil, err
		}
	}
	tars, err := filepath.Glob(filepath.Join(out, "*.tar"))
	if err != nil || len(tars) != len(s.Packages)+1 {
		return nil, fmt.Errorf("build layers: %d of %d in %s; remove it and try again", len(tars), len(s.Packages)+1, out)
	}
	sort.Strings(tars)
	return tars, nil
}

// runBuild runs build-layers.
func runBuild(ctx context.Context, out string, packages []string, progress io.Writer) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return errors.New("build layers: mmdebstrap is not installed; apt-get install mmdebstrap")
	}
	fmt.Fprintf(progress, "building layers from Debian packages: base %s\n", strings.Join(packages, " "))
	script, err := os.CreateTemp("", "build-layers-")
	if err != nil {
		return fmt.Errorf("build layers: %w", err)
	}
	defer os.Remove(script.Name())
	_, err = script.Write(buildLayers)
	if err = errors.Join(err, script.Chmod(0o755), script.Close()); err != nil {
		return fmt.Errorf("build layers: %w", err)
	}
	cmd := exec.CommandContext(ctx, script.Name(), append([]string{out}, packages...)...)
	said, err := cmd.CombinedOutput()
	if err != nil {
		tail := said[max(0, len(said)-2000):]
		return fmt.Errorf("build layers: %w\n%s", err, tail)
	}
	return nil
}

func short(sum []byte) string { return hex.EncodeToString(sum[:6]) }
