package trace

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// stopPatience bounds the wait for what is left of a trace.
const stopPatience = 10 * time.Second

// Record traces while run runs and returns what was seen, also when run fails. run has mounts traced with the function it is
// given, before it uses them; they have to be mounted still when it returns.
func Record(ctx context.Context, d Daemon, run func(ctx context.Context, trace func(dir string) error) error) (_ *Recording, err error) {
	t, err := Start()
	if err != nil {
		return nil, err
	}
	stop, err := d.Record(context.WithoutCancel(ctx)) // who interrupts it wants to see what there was
	if err != nil {
		_, _, stopped := t.Stop(ctx)
		return nil, errors.Join(err, stopped)
	}
	r := &Recording{Mounts: map[uint32]string{}, Paths: map[uint64]string{}}
	ran := run(ctx, func(dir string) error {
		dev, err := t.Add(dir)
		if err == nil {
			r.Mounts[dev] = dir
		}
		return err
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	var stopped, spanned error
	r.Events, r.Lost, stopped = t.Stop(ctx)
	r.Spans, spanned = stop(ctx)
	return r, errors.Join(ran, stopped, spanned, r.name(ctx, d))
}

// name finds the paths of all nodes that were seen.
func (r *Recording) name(ctx context.Context, d Daemon) error {
	for _, s := range r.Spans {
		if s.Path != "" {
			r.Paths[s.File] = "/" + strings.TrimPrefix(s.Path, "/")
		}
	}
	nodes := map[uint32]map[uint64]bool{}
	for _, e := range r.Events {
		node := e.A
		switch e.Kind {
		case End:
			continue
		case Send, Sleep:
			node = e.B
		}
		if nodes[e.Dev] == nil {
			nodes[e.Dev] = map[uint64]bool{}
		}
		nodes[e.Dev][node] = true
	}
	var errs []error
	for dev, seen := range nodes {
		list := slices.Sorted(maps.Keys(seen))
		paths, err := d.Paths(ctx, r.Mounts[dev], list)
		errs = append(errs, err)
		for i, p := range paths {
			if r.Paths[list[i]] == "" && (p != "" || list[i] == 1) {
				r.Paths[list[i]] = "/" + strings.TrimPrefix(p, "/")
			}
		}
	}
	return errors.Join(errs...)
}
