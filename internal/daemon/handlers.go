package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/remote"
)

// maxRequest bounds a request's body, bytes: certificates are its largest part.
const maxRequest = 4 << 20

func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, fn func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { d.answer(w, r, fn) })
	}
	handle("GET /v1/status", d.getStatus)
	handle("POST /v1/stop", d.postStop)
	handle("GET /v1/stats", d.getStats)
	handle("GET /v1/waiting", d.getWaiting)
	handle("POST /v1/pull", d.postPull)
	handle("GET /v1/images", d.getImages)
	handle("DELETE /v1/images", d.deleteImage)
	handle("POST /v1/prune", d.postPrune)
	handle("GET /v1/usage", d.getUsage)
	handle("POST /v1/verify", d.postVerify)
	handle("POST /v1/diff", d.postDiff)
	handle("POST /v1/commit", d.postCommit)
	handle("POST /v1/load", d.postLoad)
	handle("POST /v1/save", d.postSave)
	handle("POST /v1/index/push", d.postIndexPush)
	handle("POST /v1/index/pull", d.postIndexPull)
	handle("POST /v1/inspect", d.postInspect)
	handle("GET /v1/configs/{digest}", d.getConfig)
	handle("GET /v1/profiles/{digest}", d.getProfiles)
	handle("PUT /v1/profiles/{digest}", d.putProfiles)
	handle("POST /v1/mounts", d.postMount)
	handle("GET /v1/mounts", d.getMounts)
	handle("DELETE /v1/mounts", d.deleteMount)
	handle("GET /v1/trace", d.getTrace)
	handle("DELETE /v1/trace", d.deleteTrace)
	handle("POST /v1/mounts/paths", d.postPaths)
	handle("POST /v1/mounts/pages", d.postPages)
	handle("POST /v1/files/list", d.postList)
	handle("POST /v1/files/stat", d.postStat)
	handle("POST /v1/files/cat", d.postCat)
	handle("POST /v1/sandboxes", d.postSandbox)
	handle("GET /v1/sandboxes/{id}/usage", d.getSandboxUsage)
	handle("POST /v1/sandboxes/{id}/image", d.postSandboxImage)
	handle("POST /v1/sandboxes/{id}/complete", d.postSandboxComplete)
	return mux
}

// answer is an answer that knows whether it has begun.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// answer runs one handler: its error becomes the answer where none has begun, its panic an error.
func (d *daemon) answer(w http.ResponseWriter, r *http.Request, fn func(http.ResponseWriter, *http.Request) error) {
	d.requests.Add(1)
	defer func() {
		d.lastUse.Store(time.Now().UnixNano())
		d.requests.Add(-1)
	}()
	a := &answer{ResponseWriter: w}
	err := recovered(d.Log, func() error { return fn(a, r) })
	if err == nil {
		return
	}
	e := toError(err)
	d.Log.Info("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	if a.begun {
		panic(http.ErrAbortHandler) // hangs up: whatever followed would pass for the rest of the answer
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status(e))
	json.NewEncoder(w).Encode(e)
}

// recovered runs fn and returns its panic as an error: one request's bug is not the others' end.
func recovered(log *slog.Logger, fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("panic", "value", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("bug in the msb-fs daemon: %v: please report its log", v)
		}
	}()
	return fn()
}

func read(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("read request: %v", err)}
	}
	return nil
}

// absolute refuses a path that would mean something else here than where the caller is.
func absolute(what, path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%s %q is not an absolute path", what, path)}
}

func write(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

func (d *daemon) getStatus(w http.ResponseWriter, r *http.Request) error {
	s := api.Status{PID: os.Getpid(), Version: d.Version, Home: string(d.home), Uptime: time.Since(d.started).Seconds(),
		Mounts: len(d.mounts.list()), Sandboxes: len(d.sandboxes.list()), Notes: d.notes}
	for _, name := range d.tasks.list() {
		if name != "" {
			s.Fetching = append(s.Fetching, name)
		}
	}
	return write(w, s)
}

func (d *daemon) postStop(w http.ResponseWriter, r *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	d.stop()
	return nil
}

// openImage resolves and opens what req names; the caller releases it.
func (d *daemon) openImage(ctx context.Context, req api.ImageRequest) (*openImage, error) {
	img, err := d.images.resolve(ctx, req)
	if err != nil {
		return nil, err
	}
	o, _, err := d.images.acquire(ctx, img, req.Access)
	return o, err
}

func (d *daemon) release(o *openImage) {
	if err := d.images.release(o); err != nil {
		d.Log.Error("close image", "image", o.Reference, "err", err)
	}
}

func (d *daemon) postMount(w http.ResponseWriter, r *http.Request) error {
	var req api.MountRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if err := absolute("mount point", req.Dir); err != nil {
		return err
	}
	if filepath.Clean(req.Dir) == "/" {
		return &api.Error{Code: api.CodeInvalid, Message: "mount point / is everybody's root directory: use another"}
	}
	if req.Upper != "" {
		if err := absolute("upper directory", req.Upper); err != nil {
			return err
		}
	}
	out := newEvents(w)
	asked := d.images.aheadOf(nil, req.Access)
	img, err := d.images.resolveEarly(r.Context(), req.ImageRequest, func(img *remote.Image) { asked.begin(r.Context(), img) })
	if err != nil {
		return errors.Join(err, asked.close())
	}
	desc := describeImage(img, nil)
	out.send(api.Event{Name: api.EventResolved, Image: &desc})
	if err := d.mount(r.Context(), img, req, asked, out); err != nil {
		out.fail(err)
		return nil
	}
	out.send(api.Event{Name: api.EventMounted})
	return nil
}

// mount opens img, of which something has been asked for already, and mounts it as req says. The mount lasts until somebody unmounts it.
func (d *daemon) mount(ctx context.Context, img *remote.Image, req api.MountRequest, asked *ahead, out *events) error {
	o, base, err := d.images.acquireAhead(ctx, img, asked)
	if err != nil {
		return err
	}
	mounted := false
	defer func() {
		if !mounted {
			d.release(o)
		}
	}()
	out.send(api.Event{Name: api.EventIndexed, Layers: o.describe()})
	if err := d.verified(ctx, o, req.Verify); err != nil {
		return err
	}
	m, err := d.mounts.add(ctx, o, base, req)
	if err != nil {
		return err
	}
	mounted = true
	stop := d.attendMount(m)
	d.tasks.run("", func(context.Context) {
		m.fuse.Wait()
		stop()
		if err := d.mounts.reap(m); err != nil {
			d.Log.Error("unmounted", "dir", m.Dir, "err", err)
		}
	})
	return nil
}

// verified returns at once for verification "lazy", and for "strict" when every layer's bytes have been checked.
func (d *daemon) verified(ctx context.Context, o *openImage, how string) error {
	switch how {
	case "", "lazy":
		return nil
	case "strict":
		return firstError(d.completer.pull(ctx, o))
	default:
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("unknown verification %q: use lazy or strict", how)}
	}
}

func (d *daemon) getMounts(w http.ResponseWriter, r *http.Request) error {
	out := []api.Mount{}
	for _, m := range d.mounts.list() {
		out = append(out, m.describe())
	}
	return write(w, out)
}

func (d *daemon) deleteMount(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := d.mounts.remove(r.Context(), q.Get("dir"), q.Get("lazy") == "true"); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// withFile opens the image of a FileRequest for fn. What streams goes on after fn has returned.
func (d *daemon) withFile(r *http.Request, fn func(*openImage, api.FileRequest) error) error {
	var req api.FileRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if len(req.Raw) > 0 {
		req.Path = string(req.Raw)
	}
	o, err := d.openImage(r.Context(), req.ImageRequest)
	if err != nil {
		return err
	}
	defer d.release(o)
	d.completer.streams(o)
	return fn(o, req)
}

func (d *daemon) postStat(w http.ResponseWriter, r *http.Request) error {
	return d.withFile(r, func(o *openImage, req api.FileRequest) error {
		f, err := stat(r.Context(), o.tree, req.Path)
		if err != nil {
			return err
		}
		return write(w, f)
	})
}

func (d *daemon) postList(w http.ResponseWriter, r *http.Request) error {
	return d.withFile(r, func(o *openImage, req api.FileRequest) error {
		out := &body{w: w}
		lines := json.NewEncoder(out)
		return out.end(list(r.Context(), o.tree, req.Path, req.Recursive, func(f api.File) error { return lines.Encode(f) }))
	})
}

func (d *daemon) postCat(w http.ResponseWriter, r *http.Request) error {
	return d.withFile(r, func(o *openImage, req api.FileRequest) error {
		out := &body{w: w}
		return out.end(cat(r.Context(), o.tree, req.Path, out))
	})
}

// body is an answer that may fail after it has begun.
type body struct {
	w     http.ResponseWriter
	begun bool
}

func (b *body) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.w.Header().Set("Trailer", api.ErrorTrailer)
	}
	return b.w.Write(p)
}

// end returns err for the handler to answer with, or sends it behind what has been written.
func (b *body) end(err error) error {
	if err == nil || !b.begun {
		return err
	}
	b.w.Header().Set(api.ErrorTrailer, err.Error())
	return nil
}
