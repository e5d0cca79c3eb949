package testimage

import (
	"fmt"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Config is what an image says about its command. The zero value is valid.
type Config struct {
	Entrypoint, Cmd, Env []string
	WorkingDir, User     string
	OS, Architecture     string // "" is linux and this machine's
}

// Image puts layers, bottom first, together.
func Image(c Config, layers ...*Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: l, MediaType: l.mediaType, Annotations: l.Annotations,
			History: v1.History{CreatedBy: "testimage"},
		})
		if err != nil {
			return nil, fmt.Errorf("make image: %w", err)
		}
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture = "linux", runtime.GOARCH
	if c.OS != "" {
		f.OS = c.OS
	}
	if c.Architecture != "" {
		f.Architecture = c.Architecture
	}
	f.Config = v1.Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User}
	return mutate.ConfigFile(img, f)
}

// WriteLayout writes an image as an OCI layout, called tag in it as umoci and skopeo look for it. dir appears only when
// it is whole.
func WriteLayout(dir, tag string, img v1.Image) error {
	part := fmt.Sprintf("%s.part.%d", dir, os.Getpid())
	defer os.RemoveAll(part)
	p, err := layout.Write(part, empty.Index)
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	err = p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	if err := os.Rename(part, dir); err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	return nil
}
