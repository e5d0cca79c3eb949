package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
)

// A file beside the index has the digests of imported indexes that turned out to be false, so that they are not believed for the
// same layer again, after it has been removed and pulled once more.

// maxDisproved is how many of them are remembered for a layer.
const maxDisproved = 64

// disprovedName is the name of a layer's such file in Options.Dir.
func disprovedName(id Digest) string { return hex.EncodeToString(id[:]) + ".false" }

// disprove remembers that the imported index with the digest sum is not the layer's. Where that fails it is found out again the
// next time.
func disprove(dir string, id, sum Digest) {
	known, _ := os.ReadFile(filepath.Join(dir, disprovedName(id)))
	if known = append(sum[:], known...); len(known) > maxDisproved*len(sum) {
		known = known[:maxDisproved*len(sum)]
	}
	_ = writeFile(dir, disprovedName(id), known)
}

// disproved says whether the index in mem has been found to be false.
func disproved(dir string, id Digest, mem []byte) bool {
	known, err := os.ReadFile(filepath.Join(dir, disprovedName(id)))
	if err != nil {
		return false
	}
	sum := sha256.Sum256(mem)
	for len(known) >= len(sum) {
		if bytes.Equal(known[:len(sum)], sum[:]) {
			return true
		}
		known = known[len(sum):]
	}
	return false
}
