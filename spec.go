package msb

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"
)

// Spec is what a sandbox is made of. It is kept in the sandbox's directory and holds no credentials. Its zero value, but
// for Image, is a sandbox with one CPU and 512 MiB that runs what its image says.
type Spec struct {
	ID        string    `json:"id"`   // letters and digits, unique; chosen by Create
	Name      string    `json:"name"` // what users call it; "" is the ID
	Image     string    `json:"image"`
	Platform  string    `json:"platform,omitempty"` // os/arch[/variant]; "" is the host's
	Digest    string    `json:"digest,omitempty"`   // the pin: the manifest that Image led to when the sandbox was made
	Created   time.Time `json:"created"`
	Ephemeral bool      `json:"ephemeral,omitempty"` // removed when it ends

	CPUs      int           `json:"cpus"`       // 0 is 1
	MemoryMiB int           `json:"memory_mib"` // 0 is 512
	Kernel    string        `json:"kernel,omitempty"`
	Accel     string        `json:"accel,omitempty"` // auto, kvm or tcg; "" is auto
	Hostname  string        `json:"hostname,omitempty"`
	Timeout   time.Duration `json:"timeout,omitempty"` // kills the command after so long; 0 never

	Command Command `json:"command"`
}

// Command is how a sandbox's main process differs from what its image's config says.
type Command struct {
	Entrypoint *string  `json:"entrypoint,omitempty"` // replaces the image's, and drops its CMD
	Args       []string `json:"args,omitempty"`       // replace the image's CMD
	Env        []string `json:"env,omitempty"`        // K=V, added to the image's
	Dir        string   `json:"dir,omitempty"`
	User       string   `json:"user,omitempty"` // user[:group], names or numbers
	TTY        bool     `json:"tty,omitempty"`
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// complete checks s and fills in what was left open.
func (s *Spec) complete() error {
	if s.Image == "" {
		return fmt.Errorf("create sandbox: no image was named")
	}
	if s.Name != "" && !validName.MatchString(s.Name) {
		return fmt.Errorf("invalid sandbox name %q: use letters, digits, '_', '.' and '-', at most 63, and begin with one of the first two", s.Name)
	}
	var id [6]byte
	rand.Read(id[:])
	s.ID = hex.EncodeToString(id[:])
	if s.Name == "" {
		s.Name = s.ID
	}
	if s.Hostname == "" {
		s.Hostname = s.Name
	}
	s.Created = time.Now().UTC()
	return nil
}
