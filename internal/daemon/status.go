package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/microsandbox/msb-fs/internal/api"
)

// statusFiles is what is in the hidden directory of m: see fs.WithStatus.
func (m *mount) statusFiles() map[string][]byte {
	u := m.image.usage(m.base)
	stats, err := json.MarshalIndent(api.MountStats{Name: m.Dir, Reference: m.Reference, Usage: u}, "", "  ")
	if err != nil {
		stats = []byte(err.Error())
	}
	var have int64
	var layers bytes.Buffer
	table := tabwriter.NewWriter(&layers, 0, 0, 2, ' ', 0)
	for _, l := range u.Layers {
		have += l.Have
		fmt.Fprintf(table, "%s\t%s\t%d of %d\t%s%s\n", l.Digest, l.Mode, l.Have, l.Size, l.Reason, l.Error)
	}
	table.Flush()
	files := map[string][]byte{
		"image":      fmt.Appendf(nil, "%s\n%s\n", m.Reference, m.Digest),
		"progress":   fmt.Appendf(nil, "%d of %d\n", have, u.ImageBytes),
		"layers":     layers.Bytes(),
		"stats.json": append(stats, '\n'),
	}
	if err := m.image.tree.Err(); err != nil {
		files["error"] = fmt.Appendln(nil, err)
	}
	return files
}
