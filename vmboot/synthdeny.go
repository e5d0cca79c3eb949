package vmboot

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// What changes a file is refused for synthetic ones, and in the root under HiddenDir's name. ENOSYS is never
// answered here: the kernel would take it for the whole filesystem and no longer ask the inner one.

func (s *synthFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.EROFS
	}
	return s.RawFileSystem.SetAttr(cancel, in, out)
}

func (s *synthFS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.EROFS
	}
	return s.RawFileSystem.SetXAttr(cancel, in, attr, data)
}

func (s *synthFS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if isSynth(h.NodeId) {
		return fuse.EROFS
	}
	return s.RawFileSystem.RemoveXAttr(cancel, h, attr)
}

// deny answers a change of name in parent that must not reach the inner filesystem.
func deny(parent uint64, name string) (fuse.Status, bool) {
	if isSynth(parent) {
		return fuse.EROFS, true
	}
	return fuse.EPERM, hides(parent, name)
}

func (s *synthFS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if st, no := deny(in.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Mknod(cancel, in, name, out)
}

func (s *synthFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if st, no := deny(in.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (s *synthFS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if st, no := deny(h.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Unlink(cancel, h, name)
}

func (s *synthFS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if st, no := deny(h.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Rmdir(cancel, h, name)
}

func (s *synthFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if st, no := deny(in.NodeId, oldName); no {
		return st
	}
	if st, no := deny(in.Newdir, newName); no {
		return st
	}
	return s.RawFileSystem.Rename(cancel, in, oldName, newName)
}

func (s *synthFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if isSynth(in.Oldnodeid) {
		return fuse.EROFS
	}
	if st, no := deny(in.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Link(cancel, in, name, out)
}

func (s *synthFS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if st, no := deny(h.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Symlink(cancel, h, target, name, out)
}

func (s *synthFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if st, no := deny(in.NodeId, name); no {
		return st
	}
	return s.RawFileSystem.Create(cancel, in, name, out)
}

func (s *synthFS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.EROFS
	}
	return s.RawFileSystem.Tmpfile(cancel, in, out)
}

func (s *synthFS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if isSynth(in.NodeId) {
		return 0, fuse.EROFS
	}
	return s.RawFileSystem.Write(cancel, in, data)
}

func (s *synthFS) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if isSynth(in.NodeId) {
		return 0, fuse.EROFS
	}
	return s.RawFileSystem.Writev(cancel, in, data)
}

func (s *synthFS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.EROFS
	}
	return s.RawFileSystem.Fallocate(cancel, in)
}

// CopyFileRange between the two filesystems is answered as between any two, whereupon the kernel reads and writes.
func (s *synthFS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if isSynth(in.NodeId) || isSynth(in.NodeIdOut) {
		return 0, fuse.Status(syscall.EXDEV)
	}
	return s.RawFileSystem.CopyFileRange(cancel, in)
}

func (s *synthFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if !isSynth(in.NodeId) {
		return s.RawFileSystem.Lseek(cancel, in, out)
	}
	n, ok := s.node(in.NodeId)
	if !ok || n.dir {
		return fuse.EINVAL
	}
	const seekData, seekHole = 3, 4 // lseek(2)
	switch {
	case in.Offset >= uint64(n.file.Size):
		return fuse.Status(syscall.ENXIO)
	case in.Whence == seekData:
		out.Offset = in.Offset
	case in.Whence == seekHole:
		out.Offset = uint64(n.file.Size)
	default:
		return fuse.EINVAL
	}
	return fuse.OK
}

func (s *synthFS) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.Status(syscall.ENOTTY)
	}
	return s.RawFileSystem.Ioctl(cancel, in, inbuf, out, outbuf)
}

func (s *synthFS) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.Status(syscall.ENOLCK)
	}
	return s.RawFileSystem.GetLk(cancel, in, out)
}

func (s *synthFS) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.Status(syscall.ENOLCK)
	}
	return s.RawFileSystem.SetLk(cancel, in)
}

func (s *synthFS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.Status(syscall.ENOLCK)
	}
	return s.RawFileSystem.SetLkw(cancel, in)
}

func (s *synthFS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.OK
	}
	return s.RawFileSystem.Flush(cancel, in)
}

func (s *synthFS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.OK
	}
	return s.RawFileSystem.Fsync(cancel, in)
}

func (s *synthFS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isSynth(in.NodeId) {
		return fuse.OK
	}
	return s.RawFileSystem.FsyncDir(cancel, in)
}

func (s *synthFS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if !isSynth(in.NodeId) {
		s.RawFileSystem.Release(cancel, in)
	}
}

func (s *synthFS) ReleaseDir(in *fuse.ReleaseIn) {
	if !isSynth(in.NodeId) {
		s.RawFileSystem.ReleaseDir(in)
	}
}
