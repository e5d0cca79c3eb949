package daemon

import (
	"net/http"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
)

// postPages learns the start-up profile of a mount from the pages that the kernel has seen used on it. What the mount's own reads
// say, among them those of the kernel's read-ahead, is not learned then.
func (d *daemon) postPages(w http.ResponseWriter, r *http.Request) error {
	var req api.PagesRequest
	if err := read(r, &req); err != nil {
		return err
	}
	for _, m := range d.mounts.list() {
		if m.Dir != req.Dir {
			continue
		}
		st, err := newMountStart(m.image, profiles{d.images.pins.db})
		if err != nil {
			return err
		}
		used := make([]fs.Pages, len(req.Files))
		for i, f := range req.Files {
			used[i] = fs.Pages{ID: f.Node, Pages: f.Pages}
		}
		run := m.image.tree.Pages(used)
		m.learning.Lock()
		defer m.learning.Unlock()
		m.paged = len(run) > 0
		if err := st.remember(run); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return &api.Error{Code: api.CodeNotFound, Message: "nothing of ours is mounted on " + req.Dir}
}

// learn remembers what the mount's first use has needed, unless the kernel has said it better.
func (m *mount) learn(st *start) error {
	m.learning.Lock()
	defer m.learning.Unlock()
	if m.paged {
		return nil
	}
	return st.learn()
}
