package daemon

import (
	"context"
	"fmt"
	"net/http"

	"github.com/microsandbox/msb-fs/internal/api"
)

// postSandboxImage gives a sandbox that was reserved for later its image, once. From then on it goes by the id of this request.
func (d *daemon) postSandboxImage(w http.ResponseWriter, r *http.Request) error {
	var req api.SandboxRequest
	if err := read(r, &req); err != nil {
		return err
	}
	if err := absolute("upper directory", req.Upper); err != nil {
		return err
	}
	if err := d.sandboxes.assign(r.PathValue("id"), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// assign hands req to the sandbox that was reserved as id.
func (ss *sandboxes) assign(id string, req api.SandboxRequest) error {
	if !sandboxID.MatchString(req.ID) {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("sandbox id %q is not 1-16 letters and digits", req.ID)}
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	if s == nil {
		return &api.Error{Code: api.CodeNotFound, Message: "no sandbox " + id}
	}
	if ss.byID[req.ID] != nil {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("sandbox %s is served already", req.ID)}
	}
	if s.later == nil || s.given {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("sandbox %s has its image", id)}
	}
	delete(ss.byID, id)
	ss.byID[req.ID] = s
	s.given = true
	s.later <- req
	return nil
}

// request returns what is asked of s, which may still be to come: req itself, unless that is for later.
func (s *sandbox) request(ctx context.Context, req api.SandboxRequest) (api.SandboxRequest, error) {
	if s.later == nil {
		return req, nil
	}
	select {
	case req = <-s.later:
		s.upper, s.limit = req.Upper, req.Limit
		return req, nil
	case <-ctx.Done():
		return req, context.Cause(ctx)
	}
}
