package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/fs"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
)

// start is one start of a command in an image, which may have been seen before.
type start struct {
	image     *openImage
	argv, env []string
	profiles  profiles
}

// newStart is what req is about to run in o.
func newStart(o *openImage, req api.SandboxRequest, p profiles) (*start, error) {
	var config v1.ConfigFile
	if err := json.Unmarshal(o.Config, &config); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	return &start{image: o, argv: api.Argv(config.Config, req.Entrypoint, req.Args), env: append(config.Config.Env, req.Env...), profiles: p}, nil
}

// prefetch brings what the start will need, ahead of it: what starts of that command have needed before, or what the image
// itself gives away. It returns when all of it is here or ctx ends.
func (s *start) prefetch(ctx context.Context) error {
	profile, err := s.profiles.get(s.image.Digest, s.argv)
	if err != nil {
		return err
	}
	if len(profile) == 0 && !s.image.streams() {
		if profile, err = s.image.tree.Landmarks(ctx); err != nil {
			return err
		}
		profile = append(profile, s.image.tree.Predict(ctx, s.argv, s.env)...)
	}
	return s.image.tree.Replay(ctx, profile)
}

// learn remembers what the start has needed until now.
func (s *start) learn() error {
	profile, err := s.profiles.get(s.image.Digest, s.argv)
	if err != nil {
		return err
	}
	return s.profiles.put(s.image.Digest, s.argv, fs.Learn(profile, s.image.tree.Profile()))
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

func profileKey(digest string, argv []string) []byte {
	b, _ := json.Marshal(argv) // of strings, which cannot fail
	sum := sha256.Sum256(b)
	return []byte(profilePrefix + digest + "/" + hex.EncodeToString(sum[:16]))
}

// get returns the profile of argv in the image of that manifest digest; none is no error.
func (p profiles) get(digest string, argv []string) ([]fs.Touch, error) {
	var profile []fs.Touch
	_, err := pins(p).read(profileKey(digest, argv), &profile)
	return profile, err
}

func (p profiles) put(digest string, argv []string, profile []fs.Touch) error {
	b, err := json.Marshal(profile)
	if err != nil {
		return err
	}
	err = p.db.Update(func(tx *badger.Txn) error { return tx.Set(profileKey(digest, argv), b) })
	if err != nil {
		return fmt.Errorf("remember start-up profile: %w", err)
	}
	return nil
}
