package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/microsandbox/msb-fs/remote"
)

// Keys of the database. "c/" is chunkcache's.
const (
	refPrefix      = "r/" // normalised reference NUL platform -> refRecord
	manifestPrefix = "m/" // manifest digest -> remote.Image
	profilePrefix  = "f/" // manifest digest "/" hash of the command -> start-up profile
)

// refRecord says what a reference was resolved to and when.
type refRecord struct {
	Digest string    `json:"digest"`
	Pinned time.Time `json:"pinned"`
}

// pins are the references that have been resolved and the manifests they led to. They are on disk before a method returns.
type pins struct{ db *badger.DB }

func refKey(ref, platform string) []byte { return []byte(refPrefix + ref + "\x00" + platform) }

// put records img under its reference, for callers that ask for platform ("" is the host's).
func (p pins) put(img *remote.Image, platform string) error {
	image, err := json.Marshal(img)
	if err != nil {
		return err
	}
	ref, err := json.Marshal(refRecord{Digest: img.Digest, Pinned: time.Now().UTC()})
	if err != nil {
		return err
	}
	err = p.db.Update(func(tx *badger.Txn) error {
		if err := tx.Set([]byte(manifestPrefix+img.Digest), image); err != nil {
			return err
		}
		return tx.Set(refKey(img.Reference, platform), ref)
	})
	if err == nil {
		err = p.db.Sync()
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", img.Reference, err)
	}
	return nil
}

// get returns the image that ref was last resolved to, or nil.
func (p pins) get(ref, platform string) (*remote.Image, refRecord, error) {
	var rec refRecord
	found, err := p.read(refKey(ref, platform), &rec)
	if err != nil || !found {
		return nil, rec, err
	}
	img, err := p.manifest(rec.Digest)
	if img != nil {
		img.Reference = ref
	}
	return img, rec, err
}

// atDigest returns the image that ref names by its manifest's digest, where a tag of the same repository has led to it; or nil.
func (p pins) atDigest(ref string) (*remote.Image, error) {
	_, digest, ok := strings.Cut(ref, "@")
	if !ok {
		return nil, nil
	}
	img, err := p.manifest(digest)
	if img == nil || err != nil {
		return nil, err
	}
	if at, err := remote.AtDigest(img.Reference, digest); err != nil || at != ref {
		return nil, err
	}
	img.Reference = ref
	return img, nil
}

// manifest returns the image with that manifest digest, or nil.
func (p pins) manifest(digest string) (*remote.Image, error) {
	img := &remote.Image{}
	found, err := p.read([]byte(manifestPrefix+digest), img)
	if err != nil || !found {
		return nil, err
	}
	return img, nil
}

func (p pins) read(key []byte, v any) (found bool, err error) {
	err = p.db.View(func(tx *badger.Txn) error {
		item, err := tx.Get(key)
		if err != nil {
			return err
		}
		return item.Value(func(b []byte) error { return json.Unmarshal(b, v) })
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read pin: %w", err)
	}
	return true, nil
}

// pinned is a reference with its image.
type pinned struct {
	refRecord
	Reference, Platform string
	Image               *remote.Image
}

// all returns every reference, sorted by name.
func (p pins) all() ([]pinned, error) {
	var out []pinned
	err := p.db.View(func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte(refPrefix), PrefetchValues: true})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			ref, platform, _ := strings.Cut(string(it.Item().Key()[len(refPrefix):]), "\x00")
			r := pinned{Reference: ref, Platform: platform}
			if err := it.Item().Value(func(b []byte) error { return json.Unmarshal(b, &r.refRecord) }); err != nil {
				return err
			}
			out = append(out, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	for i := range out {
		if out[i].Image, err = p.manifest(out[i].Digest); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// remove forgets ref for platform and, when no other reference leads there, its manifest.
func (p pins) remove(ref, platform string) error {
	var rec refRecord
	if found, err := p.read(refKey(ref, platform), &rec); err != nil || !found {
		return err
	}
	all, err := p.all()
	if err != nil {
		return err
	}
	shared := 0
	for _, r := range all {
		if r.Digest == rec.Digest {
			shared++
		}
	}
	err = p.db.Update(func(tx *badger.Txn) error {
		if err := tx.Delete(refKey(ref, platform)); err != nil {
			return err
		}
		if shared > 1 {
			return nil
		}
		if err := deletePrefix(tx, profilePrefix+rec.Digest+"/"); err != nil {
			return err
		}
		return tx.Delete([]byte(manifestPrefix + rec.Digest))
	})

	if err != nil {
		return fmt.Errorf("forget %s: %w", ref, err)
	}
	return nil
}

// deletePrefix deletes all keys that begin with prefix.
func deletePrefix(tx *badger.Txn, prefix string) error {
	it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if err := tx.Delete(it.Item().KeyCopy(nil)); err != nil {
			return err
		}
	}
	return nil
}
