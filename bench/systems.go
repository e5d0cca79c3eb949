package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
)

// system is one way to start an image.
type system struct {
	key     string
	name    string                              // as reports have it
	needs   []string                            // programs
	version func(bin string) string             // of the system
	lacks   func() string                       // what else is missing, "" is nothing; may be nil
	forms   []string                            // that it is measured with; nil is every form that is not for others
	reads   []string                            // the lazy forms that it is lazy with
	prepare func(context.Context, *trial) error // before the clock starts: daemons that run on a host anyway; may be nil
	start   func(context.Context, *trial) error // from nothing until the program has ended
	// complete waits until the whole image is local; nil where it is before the program starts.
	complete func(context.Context, *trial) error
	// lazy says why a start was not lazy, or nil; nil where nothing is lazy.
	lazy  func(context.Context, *trial) error
	again bool               // start can be called again for a further sandbox of the same image, of which everything is here
	wipe  func(*trial) error // ends daemons and unmounts; may be nil. The trial's directory is removed after it.
}

// systems are all there are, this project's first.
func systems() []system {
	return []system{mountSystem(), vmSystem(), containerdSystem(), podmanSystem(), umociSystem(), stargzSystem(), sociSystem(), nydusSystem()}
}

// takes says whether the system is measured with a form.
func (s system) takes(f form) bool {
	if s.forms != nil {
		return slices.Contains(s.forms, f.key)
	}
	return f.beside == ""
}

// chooseSystems finds the systems called keys ("" is all), and says which are passed over because something is missing.
func chooseSystems(keys, bin string, said io.Writer) ([]system, error) {
	all := systems()
	if keys != "" {
		var err error
		if all, err = choose("system", keys, all, func(s system) string { return s.key }); err != nil {
			return nil, err
		}
	}
	var out []system
	for _, s := range all {
		if missing := s.missing(bin); missing != "" {
			fmt.Fprintf(said, "%s is not measured: there is no %s\n", s.name, missing)
			continue
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("none of the systems is here; bench setup installs what it can")
	}
	return out, nil
}

// missing is the first program that the system needs and that is not there.
func (s system) missing(bin string) string {
	for _, n := range s.needs {
		if _, err := exec.LookPath(filepath.Join(bin, n)); err == nil {
			continue
		}
		if _, err := exec.LookPath(n); err != nil {
			return n
		}
	}
	if s.lacks != nil {
		return s.lacks()
	}
	return ""
}
