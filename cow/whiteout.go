package cow

import (
	"golang.org/x/sys/unix"
)

// makeWhiteoutFile hides the lower's file of p's name by a file beside it. What the upper has at p stays visible.
func (p place) makeWhiteoutFile() error {
	if len(p.name)+len(whPrefix) > 255 {
		return unix.ENAMETOOLONG
	}
	fd, err := place{p.dir, whPrefix + p.name}.open(unix.O_WRONLY|unix.O_CREAT, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// hide makes a name of the lower disappear that the upper has not. One system call: it is hidden or it is not.
func (u *upper) hide(p place) error {
	if !u.devices && len(p.name)+len(whPrefix) <= 255 {
		return p.makeWhiteoutFile()
	}
	return unix.Mknodat(p.dir, p.name, unix.S_IFCHR, 0)
}

// replace puts a whiteout where the upper has something, which goes to the free place kept.
func (u *upper) replace(p, kept place) error {
	if !u.devices {
		if err := p.makeWhiteoutFile(); err != nil {
			return err
		}
		return p.rename(kept, 0)
	}
	if err := unix.Mknodat(kept.dir, kept.name, unix.S_IFCHR, 0); err != nil {
		return err
	}
	err := kept.rename(p, unix.RENAME_EXCHANGE)
	if err != nil {
		kept.unlink()
	}
	return err
}

// renameHiding renames from to to, leaving a whiteout behind if hide is set. At to there may be a whiteout.
func (f *FS) renameHiding(from, to place, isDir, hide bool) error {
	st, err := to.stat()
	overDevice := err == nil && isDir && isWhiteout(&st)
	switch {
	case f.upper.devices && hide && overDevice:
		return from.rename(to, unix.RENAME_EXCHANGE)
	case f.upper.devices && hide:
		return from.rename(to, unix.RENAME_WHITEOUT)
	case hide:
		if err := from.makeWhiteoutFile(); err != nil {
			return err
		}
	}
	if overDevice {
		return f.overWhiteout(from, to)
	}
	return from.rename(to, 0)
}
