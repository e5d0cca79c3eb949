package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
)

// start is one start of a command in an image, or the first use of a mount, which may have been seen before.
type start struct {
	image     *openImage
	key       []string // what its profile is kept under: the command, nil for a mount's use
	argv, env []string // what will probably run
	profiles  profiles
}

// newStart is what req is about to run in o.
func newStart(o *openImage, req api.SandboxRequest, p profiles) (*start, error) {
	var config v1.ConfigFile
	if err := json.Unmarshal(o.Config, &config); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	argv := api.Argv(config.Config, req.Entrypoint, req.Args)
	return &start{image: o, key: argv, argv: argv, env: append(config.Config.Env, req.Env...), profiles: p}, nil
}

// newMountStart is the use of o on the host by nobody knows what: by the image's own command for want of anything better.
func newMountStart(o *openImage, p profiles) (*start, error) {
	st, err := newStart(o, api.SandboxRequest{}, p)
	if err != nil {
		return nil, err
	}
	st.key = nil
	return st, nil
}

// prefetch brings what the start will need, ahead of it: what starts of that command have needed before, or what the image
// itself gives away. It returns when all of it is here or ctx ends.
func (s *start) prefetch(ctx context.Context) error {
	defer s.image.dropAhead()
	profile, err := s.profiles.get(s.image.Digest, s.key)
	if err != nil {
		return err
	}
	if len(profile) == 0 && s.key == nil {
		if profile, err = s.profiles.get(s.image.Digest, s.argv); err != nil {
			return err
		}
	}
	if len(profile) == 0 && !s.image.streams() {
		s.image.guesses()
		if profile, err = s.image.tree.Landmarks(ctx); err != nil {
			return err
		}
		return errors.Join(s.image.tree.Replay(ctx, profile), s.image.tree.Prefetch(ctx, s.argv, s.env))
	}
	return s.image.tree.Replay(ctx, profile)
}

// learn remembers what the start has needed until now.
func (s *start) learn() error { return s.remember(s.image.tree.EndProfile()) }

// remember adds a run to the start's profile.
func (s *start) remember(run []fs.Touch) error {
	profile, err := s.profiles.get(s.image.Digest, s.key)
	if err != nil {
		return err
	}
	if len(run) == 0 {
		return nil // nothing was started: it says nothing about a start
	}
	profile = fs.Learn(profile, run)
	return s.profiles.put(s.image.Digest, s.image.record(s.key, profile))
}

// record is what is kept of a profile: it says also where the blobs' bytes are, so that a later start can ask for them before it knows
// what is in the layers.
func (o *openImage) record(argv []string, profile []fs.Touch) profileRecord {
	rec := profileRecord{Argv: argv, Touches: profile, TOCs: make([]int64, len(o.layers))}
	for i, l := range o.layers {
		rec.TOCs[i] = l.TOC()
	}
	left := int64(maxAhead)
	for _, r := range o.tree.Ranges(profile) {
		if left -= r.To - r.From; left < 0 {
			break
		}
		rec.Ranges = append(rec.Ranges, r)
	}
	return rec
}

// maxAhead is how much of blobs is asked for before it is known what is in the layers, bytes. It waits in memory until then.
const maxAhead = 16 << 20

// dropAhead gives up what was asked for ahead and nobody has read.
func (o *openImage) dropAhead() {
	for _, l := range o.layers {
		if kept, ok := l.blob.(*keptBlob); ok {
			kept.DropAhead()
		}
	}
}

// streams tells whether some layer of o is being streamed: then everything comes as fast as it can already.
func (o *openImage) streams() bool {
	for _, l := range o.layers {
		if mode, _ := l.Mode(); mode == layer.Streaming {
			return true
		}
	}
	return false
}

// profiles are the start-up profiles of commands in images. They are a cache: one that is lost is learned again.
type profiles struct{ db *badger.DB }

// profileRecord is what is kept of one command in one image.
type profileRecord struct {
	Argv    []string   `json:"argv"` // null: the use of a mount
	Touches []fs.Touch `json:"touches"`
	TOCs    []int64    `json:"tocs,omitempty"`   // where each layer's TOC begins in its blob; 0 where it has none
	Ranges  []fs.Range `json:"ranges,omitempty"` // of blobs: where the first of the touches are, no more than maxAhead
}

// profileKey is where the profile of argv in an image is kept.
func profileKey(digest string, argv []string) []byte {
	b, _ := json.Marshal(argv) // of strings, which cannot fail
	sum := sha256.Sum256(b)
	return []byte(profilePrefix + digest + "/" + hex.EncodeToString(sum[:16]))
}

// get returns the profile of argv in the image of that manifest digest; none is no error, and neither is one that cannot be
// read any more.
func (p profiles) get(digest string, argv []string) ([]fs.Touch, error) {
	rec, err := p.record(digest, argv)
	return rec.Touches, err
}

func (p profiles) record(digest string, argv []string) (rec profileRecord, err error) {
	var b json.RawMessage
	if _, err := pins(p).read(profileKey(digest, argv), &b); err != nil {
		return rec, err
	}
	if json.Unmarshal(b, &rec) != nil {
		return profileRecord{}, nil
	}
	return rec, nil
}

func (p profiles) put(digest string, rec profileRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	err = p.db.Update(func(tx *badger.Txn) error { return tx.Set(profileKey(digest, rec.Argv), b) })
	if err != nil {
		return fmt.Errorf("remember start-up profile: %w", err)
	}
	return nil
}

// What others' profiles are kept to.
const (
	maxProfiles     = 64       // of one image
	maxProfileBytes = 64 << 20 // of all of them, unpacked
	maxArgv         = 1 << 16  // bytes of a command
)

// published is how an image's profiles travel: zstd'd JSON.
type published struct {
	Version  int             `json:"version"`
	Profiles []profileRecord `json:"profiles"`
}

const publishedVersion = 1

// export packs all profiles of the image of that manifest digest for others to adopt; nil where there are none.
func (p profiles) export(digest string) ([]byte, error) {
	out := published{Version: publishedVersion}
	err := p.db.View(func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte(profilePrefix + digest + "/"), PrefetchValues: true})
		defer it.Close()
		for it.Rewind(); it.Valid() && len(out.Profiles) < maxProfiles; it.Next() {
			var rec profileRecord
			if err := it.Item().Value(func(b []byte) error { return json.Unmarshal(b, &rec) }); err != nil {
				continue // of another version
			}
			for i := range rec.Touches {
				rec.Touches[i].Unused = 0
			}
			if len(rec.Touches) > 0 {
				out.Profiles = append(out.Profiles, rec)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("export start-up profiles: %w", err)
	}
	if len(out.Profiles) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil), nil
}

// adopt takes what export has packed elsewhere for the image of that manifest digest. Nothing in it is
// trusted: at worst what is not needed is fetched. What has been learned here stays.
func (p profiles) adopt(digest string, data []byte) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxProfileBytes))
	if err != nil {
		return err
	}
	defer dec.Close()
	b, err := dec.DecodeAll(data, nil)
	if err != nil {
		return fmt.Errorf("read start-up profiles: %w", err)
	}
	var in published
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("read start-up profiles: %w", err)
	}
	if in.Version != publishedVersion || len(in.Profiles) > maxProfiles {
		return fmt.Errorf("read start-up profiles: version %d with %d of them", in.Version, len(in.Profiles))
	}
	for _, rec := range in.Profiles {
		n := 0
		for _, a := range rec.Argv {
			n += len(a)
		}
		known, err := p.get(digest, rec.Argv)
		if err != nil {
			return err
		}
		sound := fs.Learn(nil, slices.DeleteFunc(rec.Touches, func(t fs.Touch) bool { return t.Offset < 0 }))
		if n > maxArgv || len(known) > 0 || len(sound) == 0 {
			continue
		}
		rec.Touches = sound
		rec.TOCs = rec.TOCs[:min(len(rec.TOCs), fs.MaxLayers)]
		rec.Ranges = sane(rec.Ranges)
		if err := p.put(digest, rec); err != nil {
			return err
		}
	}
	return nil
}

// sane is as much of what somebody says are ranges of blobs as is worth keeping.
func sane(ranges []fs.Range) []fs.Range {
	left := int64(maxAhead)
	for i, r := range ranges {
		if r.From < 0 || r.To <= r.From || r.To-r.From > left {
			return ranges[:i]
		}
		left -= r.To - r.From
	}
	return ranges
}
