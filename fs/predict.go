package fs

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"io"
	"path"
	"strings"

	"github.com/microsandbox/msb-fs/internal/priority"
)

const (
	maxPredicted = 256      // files
	maxPredict   = 64 << 20 // bytes of one file that are worth having before they are asked for
)

// Predict returns the chunks that running argv will need, for an image that has no profile yet: the program as found by
// env's PATH, the interpreter its first line names, its dynamic linker and libraries (ld.so(8)), the files that the command line
// names, and what Python and the JVM read at first. It reads the parts of the tree that it needs to know that, as Predicted; what it
// cannot find out is left out.
func (t *Tree) Predict(ctx context.Context, argv, env []string) []Touch {
	if len(argv) == 0 {
		return nil
	}
	p := &predictor{t: t, ctx: priority.With(ctx, priority.Predicted), seen: make(map[ID]bool)}
	p.program(argv[0], argv, env, 0)
	return p.touches
}

// predictor follows what a program needs.
type predictor struct {
	t       *Tree
	ctx     context.Context
	seen    map[ID]bool
	touches []Touch
	found   func([]Touch)       // is told of each file's chunks at once; may be nil
	libs    map[string][]string // of the dynamic linker's cache, once read
	cached  bool                // it has been read
}

// program adds what is run as name, with argv.
func (p *predictor) program(name string, argv, env []string, depth int) {
	if depth > 4 { // interpreters of interpreters: Linux's own limit (fs/exec.c)
		return
	}
	id, size, ok := p.find(name)
	if !strings.Contains(name, "/") {
		dirs := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
		for _, e := range env {
			if v, isPath := strings.CutPrefix(e, "PATH="); isPath {
				dirs = v
			}
		}
		for dir := range strings.SplitSeq(dirs, ":") {
			if id, size, ok = p.find(path.Join("/", dir, name)); ok {
				break
			}
		}
	}
	if !ok || !p.add(id, size) {
		return
	}
	head := make([]byte, min(size, 256))
	if _, err := p.t.ReadAt(p.ctx, id, head, 0); err != nil {
		return
	}
	if line, isScript := bytes.CutPrefix(head, []byte("#!")); isScript {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		words := strings.Fields(string(line))
		if len(words) == 0 {
			return
		}
		argv = append(words, argv...)
		p.program(words[0], argv, env, depth+1)
		if path.Base(words[0]) == "env" && len(words) > 1 {
			p.program(words[len(words)-1], argv[len(words)-1:], env, depth+1)
		}
		return
	}
	p.binary(id, size)
	p.language(id, argv, env, depth)
}

// linked returns where the dynamic linker's cache has a library.
func (p *predictor) linked(name string) []string {
	if !p.cached {
		p.cached = true
		if id, size, ok := p.find(libCachePath); ok && size <= maxLibCache {
			p.add(id, size)
			b := make([]byte, size)
			if _, err := p.t.ReadAt(p.ctx, id, b, 0); err == nil {
				p.libs = parseLibCache(b)
			}
		}
	}
	return p.libs[name]
}

// libraryDirs are where libraries are that nobody says the place of; the first two by the kind of machine.
func libraryDirs(m elf.Machine) []string {
	triple := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[m]
	return []string{"/lib/" + triple, "/usr/lib/" + triple, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"}
}

// binary adds the libraries that an ELF file, added already, needs, theirs too.
func (p *predictor) binary(id ID, size int64) {
	type object struct {
		id   ID
		size int64
	}
	for todo := []object{{id, size}}; len(todo) > 0; {
		o := todo[0]
		todo = todo[1:]
		f, err := elf.NewFile(io.NewSectionReader(&treeFile{p, o.id}, 0, o.size))
		if err != nil {
			continue
		}
		for _, lib := range p.needs(f, o.id) {
			if id, size, ok := p.find(lib); ok && p.add(id, size) {
				todo = append(todo, object{id, size})
			}
		}
	}
}

// needs returns the paths of what an ELF file is linked with; of one name there may be several, of which one is there.
func (p *predictor) needs(f *elf.File, id ID) []string {
	var found []string
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP && prog.Filesz < maxPath {
			if b, err := io.ReadAll(bufio.NewReader(io.LimitReader(prog.Open(), maxPath))); err == nil {
				found = append(found, strings.TrimRight(string(b), "\x00"))
			}
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return found
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		for _, run := range known(f.DynString(tag)) {
			for dir := range strings.SplitSeq(run, ":") {
				dirs = append(dirs, strings.ReplaceAll(strings.ReplaceAll(dir, "${ORIGIN}", "$ORIGIN"), "$ORIGIN", path.Dir(p.t.Path(id))))
			}
		}
	}
	for _, lib := range libs[:min(len(libs), maxPredicted)] {
		// The linker's own order (ld.so(8)): what the file says, the cache, the usual places.
		places := make([]string, 0, len(dirs))
		for _, dir := range dirs {
			places = append(places, path.Join("/", dir, lib))
		}
		places = append(places, p.linked(lib)...)
		for _, dir := range libraryDirs(f.Machine) {
			places = append(places, path.Join("/", dir, lib))
		}
		for _, at := range places {
			if _, _, ok := p.find(at); ok {
				found = append(found, at)
				break
			}
		}
	}
	return found
}

// known is what there is; the rest is not predicted.
func known(s []string, _ error) []string { return s }

// find resolves a path to a regular file.
func (p *predictor) find(name string) (ID, int64, bool) {
	id, a, err := p.t.Walk(p.ctx, name, true)
	return id, a.Size, err == nil && a.Mode&typeMask == typeFile
}

// add adds a file; it is false where it is there already or one too many.
func (p *predictor) add(id ID, size int64) bool {
	if p.seen[id] || len(p.seen) >= maxPredicted {
		return false
	}
	p.seen[id] = true
	known := len(p.touches)
	p.touches = p.t.appendFile(p.touches, id, min(size, maxPredict))
	if p.found != nil && len(p.touches) > known {
		p.found(p.touches[known:])
	}
	return true
}

// treeFile reads a file of a tree.
type treeFile struct {
	p  *predictor
	id ID
}

func (f *treeFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.p.t.ReadAt(f.p.ctx, f.id, b, off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}
