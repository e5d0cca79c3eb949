package cow

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrNoUpper says that a directory is none that New has made an upper of.
var ErrNoUpper = errors.New("not an upper directory")

// LowerDigest returns the Options.LowerDigest that the upper directory dir was written over. It may be in use.
func LowerDigest(dir string) (string, error) {
	top, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open upper", Path: dir, Err: err}
	}
	defer unix.Close(top)
	private, err := unix.Openat(top, privateDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("%w: %s", ErrNoUpper, dir)
	}
	defer unix.Close(private)
	b, err := readSmall(place{private, "format.json"})
	if err != nil {
		return "", fmt.Errorf("%w: %s", ErrNoUpper, dir)
	}
	var was format
	if err := json.Unmarshal(b, &was); err != nil {
		return "", fmt.Errorf("upper %s: format.json is damaged: %w", dir, err)
	}
	return was.Lower, nil
}
