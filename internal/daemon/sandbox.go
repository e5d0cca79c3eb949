package daemon

import (
	"context"
	"errors"
	"net/http"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// postSandbox serves a sandbox for as long as its caller listens. The image is resolved and opened while the VM boots.
func (d *daemon) postSandbox(w http.ResponseWriter, r *http.Request) error {
	var req api.SandboxRequest
	if err := read(r, &req); err != nil {
		return err
	}
	s, err := d.sandboxes.reserve(req)
	if err != nil {
		return err
	}
	out := newEvents(w)
	err = d.serveSandbox(r.Context(), s, req, out)
	if err != nil && r.Context().Err() == nil {
		d.Log.Info("sandbox failed", "id", s.id, "err", err)
		out.fail(err)
	}
	return nil
}

// serveSandbox serves s, which it forgets in the end, until its VM or ctx ends.
func (d *daemon) serveSandbox(ctx context.Context, s *sandbox, req api.SandboxRequest, out *events) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	image := d.openLater(ctx, fail, s, req, out)
	defer func() {
		fail(nil) // ends openLater, if it is still at it
		image.close()
		err = errors.Join(err, d.sandboxes.forget(s))
	}()
	err = s.serve(ctx,
		func() { out.send(api.Event{Name: api.EventSocket, Socket: s.socket}) },
		func() {
			s.kernelUp()
			out.send(api.Event{Name: api.EventKernelUp})
		},
		func(v any) { d.Log.Error("guest or file system misbehaves", "sandbox", s.id, "fault", v) },
		image.wait)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return err
}

// laterImage is an image that is being opened.
type laterImage struct {
	done  chan struct{} // closed when image and err are set
	image *openImage
	err   error
	close func() // waits for everything that openLater started, and lets go of the image
}

// wait returns the image when it is open.
func (l *laterImage) wait(ctx context.Context) (*openImage, error) {
	select {
	case <-l.done:
		return l.image, l.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// openLater opens the image of req and then watches its layers: fail is told when it cannot be opened or turns out to be
// corrupt. ctx ends both.
func (d *daemon) openLater(ctx context.Context, fail context.CancelCauseFunc, s *sandbox, req api.SandboxRequest, out *events) *laterImage {
	l := &laterImage{done: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.err = recovered(d.Log, func() (err error) {
			if req, err = s.request(ctx, req); err != nil {
				return err
			}
			l.image, err = d.openSandbox(ctx, s, req, out)
			return err
		})
		close(l.done)
		if l.err != nil {
			fail(l.err)
			return
		}
		if err := recovered(d.Log, func() error { return d.watch(ctx, s, l.image, req) }); err != nil {
			fail(err)
		}
		<-ctx.Done()
	}()
	l.close = func() {
		<-ended
		if l.image != nil {
			d.sandboxStarted(s)
			d.release(l.image)
		}
	}
	return l
}

// watch fetches what a start of s needs ahead of it, until ctx is done. It returns earlier when a layer of o turns out to be
// corrupt, with what is wrong with it.
func (d *daemon) watch(ctx context.Context, s *sandbox, o *openImage, req api.SandboxRequest) error {
	d.completer.streams(o)
	ctx, cancel := context.WithCancel(ctx)
	prefetched := d.prefetch(ctx, s, o, req)
	attended := make(chan struct{})
	go func() {
		defer close(attended)
		err := recovered(d.Log, func() error {
			d.attendSandbox(ctx, s, o)
			return nil
		})
		if err != nil {
			d.Log.Error("sandbox started", "sandbox", s.id, "err", err)
		}
	}()
	defer func() {
		cancel()
		<-prefetched
		<-attended
	}()
	if err := o.corrupt(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// prefetch brings what s's command will need while its VM boots. The channel is closed when that has ended.
func (d *daemon) prefetch(ctx context.Context, s *sandbox, o *openImage, req api.SandboxRequest) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := recovered(d.Log, func() error {
			st, err := newStart(o, req, profiles{d.images.pins.db})
			if err != nil {
				return err
			}
			s.begins(st)
			return st.prefetch(ctx)
		})
		if err != nil && ctx.Err() == nil {
			d.Log.Warn("prefetch", "sandbox", s.id, "err", err)
		}
	}()
	return done
}

// attendSandbox looks after s's start until that is over or ctx ends.
func (d *daemon) attendSandbox(ctx context.Context, s *sandbox, o *openImage) {
	select {
	case <-s.up: // until then nobody can have asked for anything
	case <-ctx.Done():
		return
	}
	d.attend(ctx, o, sandboxQuiet)
	if ctx.Err() == nil {
		d.sandboxStarted(s)
	}
}

// sandboxStarted is called, any number of times, when s's command is up: what has been read until then is remembered, and the rest of
// the image may come.
func (d *daemon) sandboxStarted(s *sandbox) {
	s.started.Do(func() {
		st, o := s.starting()
		if st != nil && d.images.exclusive(o) {
			if err := st.learn(); err != nil {
				d.Log.Warn("learn start-up profile", "sandbox", s.id, "err", err)
			}
		}
		if o != nil {
			d.rest(o)
		}
	})
}

func (d *daemon) openSandbox(ctx context.Context, s *sandbox, req api.SandboxRequest, out *events) (*openImage, error) {
	img, err := d.sandboxImage(ctx, req)
	if err != nil {
		return nil, err
	}
	desc := describeImage(img, nil)
	out.send(api.Event{Name: api.EventResolved, Image: &desc})
	asked := d.images.ahead(req.Access)
	if st, err := newStart(&openImage{Image: img}, req, profiles{}); err == nil {
		asked = d.images.aheadOf(st.key, req.Access)
	}
	o, base, err := d.images.acquireAhead(ctx, img, asked)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			s.opened(nil, 0)
			d.release(o)
		}
	}()
	d.images.use(o)
	s.opened(o, base)
	out.send(api.Event{Name: api.EventIndexed, Layers: o.describe()})
	if err := d.verified(ctx, o, req.Verify); err != nil {
		return nil, err
	}
	ok = true
	return o, nil
}

// sandboxImage is the pinned image where the sandbox has a pin, whatever its reference means by now.
func (d *daemon) sandboxImage(ctx context.Context, req api.SandboxRequest) (*remote.Image, error) {
	if req.Pinned == "" {
		return d.images.resolve(ctx, req.ImageRequest)
	}
	return d.images.resolvePinned(ctx, req.ImageRequest, req.Pinned)
}

// corrupt waits until every layer of o has been verified, or ctx is done, and returns what was wrong with one.
func (o *openImage) corrupt(ctx context.Context) error {
	for _, l := range o.layers {
		select {
		case <-l.Done():
			if err := l.Err(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// postSandboxComplete is told when a sandbox has started: now the rest of its image may come.
func (d *daemon) postSandboxComplete(w http.ResponseWriter, r *http.Request) error {
	s := d.sandboxes.get(r.PathValue("id"))
	if s == nil {
		return &api.Error{Code: api.CodeNotFound, Message: "no sandbox " + r.PathValue("id")}
	}
	d.sandboxStarted(s)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *daemon) getSandboxUsage(w http.ResponseWriter, r *http.Request) error {
	s := d.sandboxes.get(r.PathValue("id"))
	if s == nil {
		return &api.Error{Code: api.CodeNotFound, Message: "no sandbox " + r.PathValue("id")}
	}
	u, _ := s.usage()
	return write(w, u)
}
