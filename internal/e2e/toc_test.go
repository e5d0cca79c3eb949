package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/microsandbox/msb-fs/internal/registry"
	"github.com/microsandbox/msb-fs/internal/testimage"
)

// TestTOCs mounts layers with tables of contents as their builders make them with all their options.
func TestTOCs(t *testing.T) {
	needRoot(t) // to unpack with owners
	src := oddTree(t)
	tarball := (&made{needs: "tar", script: `tar -C $SRC --format=posix --mtime=@1700000000 --xattrs --xattrs-include='*' --exclude='*latin1' -c .`}).make(t, src, "")
	first := estargz.WithPrioritizedFiles([]string{"dir/sub/with space", "small/hard", "dir/large"})
	tests := []struct {
		name string
		form testimage.Form
		mode string
		opts []estargz.Option
	}{
		{"eStargz, small files share members", testimage.EStargz, "lazy-toc", []estargz.Option{estargz.WithMinChunkSize(64 << 10), first}},
		{"eStargz, small chunks", testimage.EStargz, "lazy-toc", []estargz.Option{estargz.WithChunkSize(10_000), estargz.WithCompressionLevel(1)}},
		{"eStargz, small chunks share members", testimage.EStargz, "lazy-toc", []estargz.Option{estargz.WithChunkSize(5000), estargz.WithMinChunkSize(50_000)}},
		{"zstd:chunked, small files share frames", testimage.ZstdChunked, "lazy-toc", []estargz.Option{estargz.WithMinChunkSize(64 << 10), first}},
		{"zstd:chunked, small chunks", testimage.ZstdChunked, "lazy-toc", []estargz.Option{estargz.WithChunkSize(10_000)}},
		{"the TOC is elsewhere", testimage.EStargz, "streaming", []estargz.Option{estargz.WithCompression(externaltoc.NewGzipCompressionWithLevel(nil, 6))}},
	}
	s := serve(t, registry.Options{})
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "in.tar")
	if err := os.WriteFile(path, tarball, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			h := *h
			h.t = t
			l, err := testimage.FileLayer(c.form, path, t.TempDir(), c.opts...)
			if err != nil {
				t.Fatal(err)
			}
			rc, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			shown, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("tocs/i%d:1", i)
			h.asUnpacked(s, name, "", l, unpacked(t, shown, ""))
			if got := h.must("msb-fs", "inspect", s.Host()+"/"+name); (c.mode == "lazy-toc") != strings.Contains(got, "TOC vouched for") {
				t.Errorf("want %s: %s", c.mode, got)
			}
		})
	}
}

// toc is an entry of a TOC: docs/estargz.md of stargz-snapshotter.
type toc map[string]any

// with is e with other fields.
func (e toc) with(o toc) toc {
	out := maps.Clone(e)
	maps.Copy(out, o)
	return out
}

// tocLayer is a zstd:chunked layer with the data of one file, and any TOC.
func tocLayer(t *testing.T, data []byte, entries ...toc) *testimage.Layer {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	list, err := json.Marshal(map[string]any{"version": 1, "entries": entries})
	if err != nil {
		t.Fatal(err)
	}
	blob := z.EncodeAll(data, nil)
	packed := z.EncodeAll(list, nil)
	at := len(blob)
	blob = append(blob, packed...)
	l := testimage.RawLayer(blob, append(bytes.Clone(data), list...), types.OCILayerZStd)
	l.Annotations = map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": fmt.Sprintf("sha256:%x", sha256.Sum256(packed)),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(list)),
		"io.containers.zstd-chunked.manifest-checksum":        fmt.Sprintf("sha256:%x", sha256.Sum256(packed)),
		"io.containers.zstd-chunked.manifest-position":        fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(list)),
	}
	return l
}

// lie is a layer whose TOC has the digest that its manifest names.
type lie struct {
	name    string
	entries []toc
	refused bool   // when pulled
	files   string // that are read, after "f"; "!" where it must fail
}

// lies are layers with the bytes of one file, data.
func lies(data []byte) []lie {
	digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	f := toc{"type": "reg", "name": "f", "size": len(data), "mode": 0o644, "offset": 0, "digest": digest(data), "chunkDigest": digest(data)}
	half := f.with(toc{"chunkSize": 8000, "chunkDigest": digest(data[:8000])})
	link := func(name, to string) toc { return toc{"type": "hardlink", "name": name, "linkName": to} }
	return []lie{
		{"the truth", []toc{f}, false, "f"},
		{"another digest", []toc{f.with(toc{"chunkDigest": digest(nil), "digest": digest(nil)})}, true, "!f"},
		{"longer than it is", []toc{f.with(toc{"size": len(data) + 1})}, true, "!f"},
		{"shorter than it is", []toc{f.with(toc{"size": len(data) - 1})}, true, "!f"},
		{"from its middle", []toc{f.with(toc{"innerOffset": 16})}, true, "!f"},
		{"in no frame", []toc{f.with(toc{"offset": 7})}, true, "!f"},
		{"beyond the blob", []toc{f.with(toc{"offset": 1 << 40})}, true, ""},
		{"chunks overlap in the file", []toc{half, half.with(toc{"type": "chunk", "chunkOffset": 4000, "innerOffset": 8000})}, true, ""},
		{"chunks overlap in the blob", []toc{half, half.with(toc{"type": "chunk", "chunkOffset": 8000, "innerOffset": 4000})}, true, ""},
		{"the second half is false", []toc{half, f.with(toc{"type": "chunk", "chunkOffset": 8000, "innerOffset": 8000, "chunkSize": 8000})}, true, "!f"},
		{"huge", []toc{f.with(toc{"size": int64(1) << 60})}, true, ""},
		{"huge and nothing but zeros", []toc{f.with(toc{"size": int64(1) << 60, "chunkType": "zeros"})}, true, ""},
		{"hard links in a circle", []toc{f, link("a", "b"), link("b", "a"), link("c", "c")}, false, "f"},
		{"a chain of hard links", append([]toc{f}, slices.Collect(func(yield func(toc) bool) {
			for i := range 200 {
				if !yield(link(fmt.Sprintf("l%d", 200-i), fmt.Sprintf("l%d", 199-i))) {
					return
				}
			}
			yield(link("l0", "f"))
		})...), false, "f"},
		{"files under a file", []toc{f, f.with(toc{"name": "f/g/h", "size": 0})}, true, ""},
		{"twice", []toc{f.with(toc{"size": 0}), f}, false, "f"},
		{"a way out", []toc{f, {"type": "reg", "name": "../../x"}}, true, ""},
		{"a hundred thousand directories", slices.Collect(func(yield func(toc) bool) {
			for i := range 100_000 {
				if !yield(toc{"type": "dir", "name": fmt.Sprintf("d%d", i), "mode": 0o755}) {
					return
				}
			}
		}), false, ""},
	}
}

// TestLyingTOCs mounts layers whose TOC has the digest that the manifest names, and is false. What can be told from the
// TOC alone is refused, which leaves a layer that is no tar; what cannot is EIO, never another byte.
func TestLyingTOCs(t *testing.T) {
	needRoot(t)
	data := make([]byte, 16000)
	s := serve(t, registry.Options{})
	h := newHome(t)
	for i := range lies(data) {
		rand.NewChaCha8([32]byte{byte(i)}).Read(data) // what is in the cache under a right name would be shown
		c := lies(data)[i]
		t.Run(c.name, func(t *testing.T) {
			h := *h
			h.t = t
			img, err := testimage.Image(testimage.Config{}, tocLayer(t, data, c.entries...))
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("lies/i%d:1", i)
			if _, err := s.AddImage(name, img); err != nil {
				t.Fatal(err)
			}
			ref := s.Host() + "/" + name
			if name, fails := strings.CutPrefix(c.files, "!"); name != "" {
				h.readLie(ref, name, string(data), fails)
			}
			if !c.refused { // what is no tar cannot be pulled as a whole
				h.must("msb-fs", "ls", ref)
				return
			}
			if o := h.fs("pull", ref); o.code != 1 || strings.Count(strings.TrimSpace(o.stderr), "\n") > 0 {
				t.Errorf("want one line of error: %v", o)
			}
		})
	}
	h.must("msb-fs", "verify")
}

// readLie reads a file by the command and in a mount: it has the content or, where it fails, an error.
func (h *home) readLie(ref, name, content string, fails bool) {
	h.t.Helper()
	o := h.fs("cat", ref, "/"+name)
	switch {
	case fails && (o.code != 1 || !strings.HasPrefix(content, o.stdout) || strings.Count(strings.TrimSpace(o.stderr), "\n") > 0):
		h.t.Errorf("want a line and no other byte: %v", o)
	case !fails && (o.code != 0 || o.stdout != content):
		h.t.Errorf("exit status %d, %d bytes for %d: %.500s", o.code, len(o.stdout), len(content), o.stderr)
	}
	mnt := h.t.TempDir()
	h.must("msb-fs", "mount", "--ro", ref, mnt)
	defer h.must("msb-fs", "umount", mnt)
	b, err := exec.Command("cat", filepath.Join(mnt, name)).Output()
	switch {
	case fails && (err == nil || !strings.HasPrefix(content, string(b)) || !strings.Contains(stderrOf(err), syscall.EIO.Error())):
		h.t.Errorf("%s in a mount: %d bytes, %v: %s", name, len(b), err, stderrOf(err))
	case !fails && (err != nil || string(b) != content):
		h.t.Errorf("%s in a mount: %d bytes for %d, %v", name, len(b), len(content), err)
	}
}

// stderrOf is what a command that failed said.
func stderrOf(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return strings.ToLower(string(exit.Stderr))
	}
	return ""
}
