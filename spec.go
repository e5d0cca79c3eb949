package msb

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/microsandbox/msb-fs/vmboot/usernet"
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
	Net       string        `json:"net,omitempty"`     // none, public or all; "" is public
	Ports     []string      `json:"ports,omitempty"`   // [BIND:]HOST:GUEST[/udp], published on the host
	Tmpfs     []Tmpfs       `json:"tmpfs,omitempty"`
	Volumes   []Volume      `json:"volumes,omitempty"`
	UpperMiB  int           `json:"upper_mib,omitempty"` // what it may write in all; 0: as much as the disk has room for

	Command Command `json:"command"`
}

// Tmpfs is a directory in the sandbox's memory.
type Tmpfs struct {
	Path    string `json:"path"`               // in the sandbox
	SizeMiB int    `json:"size_mib,omitempty"` // 0 is half of its memory
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

// maxHostname is what the guest's kernel takes (sethostname(2)).
const maxHostname = 64

// complete checks s and fills in what was left open.
func (s *Spec) complete() error {
	if s.Image == "" {
		return fmt.Errorf("create sandbox: no image was named")
	}
	if s.Name != "" && !validName.MatchString(s.Name) {
		return fmt.Errorf("invalid sandbox name %q: use letters, digits, '_', '.' and '-', at most 63, and begin with one of the first two", s.Name)
	}
	if s.Net == "" {
		s.Net = string(usernet.Public)
	}
	if _, err := s.network(nil); err != nil {
		return err
	}
	if err := s.completeVolumes(); err != nil {
		return err
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
	if len(s.Hostname) > maxHostname || strings.ContainsAny(s.Hostname, " \t\n\x00") {
		return fmt.Errorf("invalid host name %q: use at most %d bytes and no blanks", s.Hostname, maxHostname)
	}
	s.Created = time.Now().UTC()
	return nil
}

// network reads s's network settings; refused is told what the policy refuses.
func (s *Spec) network(refused func(error)) (o usernet.Options, err error) {
	o.Refused = refused
	if o.Policy, err = usernet.ParsePolicy(s.Net); err != nil {
		return o, err
	}
	for _, p := range s.Ports {
		port, err := usernet.ParsePort(p)
		if err != nil {
			return o, err
		}
		o.Ports = append(o.Ports, port)
	}
	return o, nil
}
