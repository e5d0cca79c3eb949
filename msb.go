// Package msb runs sandboxes: microVMs whose root filesystem is a standard OCI image, which start before the image has
// been pulled.
//
// A Sandbox is a directory below the home directory: what it is made of, its pinned manifest digest, its writable upper
// directory and its logs. While it runs, one process supervises it: the caller's own for Run, a detached one for Start.
// That process holds a lock on the directory, so that whether a sandbox runs is never a matter of what was written last.
//
// The cache and all registry traffic belong to the msb-fs daemon of the home directory, which is started on demand; the
// programs msb-fs and msb-launch must be beside the calling program or on the PATH.
package msb

import (
	"errors"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// Errors that callers may want to tell apart, with errors.Is.
var (
	// ErrNotCached is why an image cannot be used under PullNever.
	ErrNotCached error = &api.Error{Code: api.CodeNotCached}
	// ErrImageNotFound is the registry's word that there is no such image.
	ErrImageNotFound error = &api.Error{Code: api.CodeNotFound}
	// ErrUnauthorized is the registry's refusal.
	ErrUnauthorized error = &api.Error{Code: api.CodeUnauthorized}
	// ErrUnreachable means that no registry answered.
	ErrUnreachable error = &api.Error{Code: api.CodeUnreachable}
	// ErrCorrupt means that a registry's bytes are not what the image's digests say.
	ErrCorrupt error = &api.Error{Code: api.CodeCorrupt}

	// ErrExists is why a sandbox cannot be made under a name.
	ErrExists = errors.New("a sandbox of that name exists")
	// ErrNoSandbox means that there is none of that name.
	ErrNoSandbox = errors.New("no such sandbox")
	// ErrRunning is why a sandbox cannot be started or removed.
	ErrRunning = errors.New("the sandbox is running")
	// ErrTimeout is why a command was killed.
	ErrTimeout = errors.New("the command ran for too long")
	// ErrDamaged means that what a sandbox is made of cannot be read.
	ErrDamaged = errors.New("the sandbox is damaged")
	// ErrNotRunning is why there is nothing to stop or run a command in.
	ErrNotRunning = errors.New("the sandbox is not running")
)

// Process is a program to run in a sandbox, beside its command.
type Process = vmboot.Process

// Status is how a program ended.
type Status = vmboot.Status

// StartError is why a program could not be started, with the exit status 126 or 127: what the sandbox itself says.
type StartError = vmboot.StartError

// Size is a terminal's, in characters.
type Size = vmboot.Size

// PullPolicy says when a registry is asked.
type PullPolicy string

const (
	PullIfMissing PullPolicy = api.PullIfMissing // only for what is not cached; a cached image starts with no network at all
	PullAlways    PullPolicy = api.PullAlways    // whether the reference still means the same manifest
	PullNever     PullPolicy = api.PullNever     // not at all
)
