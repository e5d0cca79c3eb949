package layer

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt is what a layer answers whose bytes are not what its manifest names, or that cannot be a layer.
	ErrCorrupt = errors.New("layer is corrupt")
	// ErrRefused is what a layer answers that is well-formed but goes past one of the package's limits or tries to leave
	// its root. It is an ErrCorrupt too.
	ErrRefused = fmt.Errorf("%w: refused", ErrCorrupt)
	// ErrFalseIndex is the ErrCorrupt of a layer that was read by an imported index which turned out not to be its: the layer
	// itself is sound, and has left an index of its own for who opens it again.
	ErrFalseIndex = errors.New("the index pulled for it is not its")
	// ErrClosed is what a Layer answers after Close.
	ErrClosed = errors.New("layer is closed")
)

// corrupt makes an error that is ErrCorrupt and says why.
func corrupt(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, a...))
}

// refused makes an error that is ErrRefused and says why.
func refused(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, a...))
}

// permanent says whether the source of err knows that asking again is useless.
func permanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}
