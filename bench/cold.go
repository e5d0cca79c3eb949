package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// limitPerRun is how long a cold start may take, its completion included.
const limitPerRun = 10 * time.Minute

// task is a cold start to be measured.
type task struct {
	image    *image
	link     link
	system   system
	complete bool // wait until the whole image is local
	bin      string
	trace    string // see trial
}

func (k task) cell() cell { return cell{k.image.name, k.image.form.key, k.link.key, k.system.key} }

// measure starts the image from nothing: a registry, a link and a directory of its own.
func (k task) measure(ctx context.Context) (r Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, limitPerRun)
	defer cancel()
	path := k.link.open()
	srv, ref, err := k.image.serve(path)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	t, err := k.newTrial(ref)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, k.wipe(t)) }()
	r = Record{
		Time: time.Now().UTC(), System: k.system.key, SystemVersion: k.system.version(k.bin),
		Image: k.image.name, Form: k.image.form.key, Link: k.link.key, ImageBytes: k.image.size, Load: load(),
	}
	if k.system.prepare != nil {
		if err := k.system.prepare(ctx, t); err != nil {
			return r, fmt.Errorf("prepare: %w", err)
		}
	}
	before := path.Stats()
	srv.ResetLog()
	m := startMeter()
	t.start = time.Now()
	t.atReady = func() {
		now := path.Stats()
		r.Bytes, r.Requests = now.Down-before.Down, srv.Stats().Requests
		r.Idle = max(0, time.Since(t.start).Seconds()-(now.Busy-before.Busy).Seconds())
		r.CPU = m.cpu().Seconds()
	}
	err = k.system.start(ctx, t)
	if err == nil && k.image.form.lazy && k.system.lazy != nil {
		if why := k.system.lazy(ctx, t); why != nil {
			err = fmt.Errorf("this was no lazy start: %w", why)
		}
	}
	r.Resolved, r.Mounted, r.VM = t.at(markResolved), t.at(markMounted), t.at(markVM)
	r.Output, r.Ready = t.at(markOutput), t.at(markReady)
	switch {
	case k.system.complete == nil && k.system.lazy == nil:
		r.Complete = r.Mounted
	case err == nil && k.complete && k.system.complete != nil:
		err = k.system.complete(ctx, t)
		r.Complete = time.Since(t.start).Seconds()
	}
	r.CPUAll = m.cpu().Seconds()
	r.RSS, r.RSSTotal = m.stop()
	return r, err
}

// newTrial makes an empty directory for a start.
func (k task) newTrial(ref string) (*trial, error) {
	// Short: it is the beginning of sockets' paths.
	dir, err := os.MkdirTemp("", "mb-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	return &trial{dir: dir, ref: ref, img: k.image, bin: k.bin, trace: k.trace, ready: make(chan struct{}), marks: map[string]float64{}, atReady: func() {}}, nil
}

// wipe ends and removes everything a trial has left.
func (k task) wipe(t *trial) error {
	var err error
	if k.system.wipe != nil {
		err = k.system.wipe(t)
	}
	err = errors.Join(err, endAll())
	for _, fn := range t.after {
		fn()
	}
	// A directory that something is still mounted in must not be removed.
	if err := errors.Join(err, unmountIn(t.dir)); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	return os.RemoveAll(t.dir)
}
