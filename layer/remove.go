package layer

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Deleter forgets chunks, as Store does.
type Deleter interface {
	Delete(key [32]byte) error
}

// Remove deletes the index files of the layer called digest in dir and, from chunks, those chunks that no other index
// in dir names. A layer that was never indexed has nothing to remove. An open Layer of that digest keeps working: it
// fetches what is gone again. Remove must not run twice at the same time for one dir.
func Remove(dir, digest string, chunks Deleter) error {
	id, err := parseDigest(digest)
	if err != nil {
		return fmt.Errorf("remove layer %q: %w", short(digest), err)
	}
	files, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.idx"))
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", digest, err)
	}
	var own, others []string
	for _, f := range files {
		if strings.HasPrefix(filepath.Base(f), hex.EncodeToString(id[:])) {
			own = append(own, f)
		} else {
			others = append(others, f)
		}
	}
	gone := make(map[Digest]struct{})
	for _, f := range own {
		chunksOf(f, func(d Digest) { gone[d] = struct{}{} })
	}
	partial := filepath.Join(dir, partialName(id))
	if t, _, _, _, err := readJournal(partial, id, -1); err == nil {
		for i := range t.chunks {
			gone[t.chunks[i].digest] = struct{}{}
		}
	}
	for _, f := range others {
		if len(gone) == 0 {
			break
		}
		chunksOf(f, func(d Digest) { delete(gone, d) })
	}
	var errs []error
	for d := range gone {
		if err := chunks.Delete(d); err != nil {
			errs = append(errs, err)
			break
		}
	}
	for _, f := range append(own, partial, filepath.Join(dir, fullName(id))) {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove layer %s: %w", digest, err)
	}
	return nil
}

// chunksOf calls fn with the chunks that the index file at path names. A damaged one names none.
func chunksOf(path string, fn func(Digest)) {
	t, _, file, err := mapIndex(path)
	if err != nil {
		return
	}
	defer file.close()
	for i := range t.chunks {
		fn(t.chunks[i].digest)
	}
}

// escapeGlob makes dir stand for itself in a pattern.
func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}
