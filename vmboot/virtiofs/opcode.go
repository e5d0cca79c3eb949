package virtiofs

import (
	"bytes"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// FUSE opcodes, of include/uapi/linux/fuse.h.
const (
	opLookup      = 1
	opForget      = 2
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opRead        = 15
	opWrite       = 16
	opSetxattr    = 21
	opGetxattr    = 22
	opListxattr   = 23
	opInit        = 26
	opReaddir     = 28
	opCreate      = 35
	opInterrupt   = 36
	opDestroy     = 38
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44
	opRename2     = 45
)

const (
	inHeaderSize     = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize    = int(unsafe.Sizeof(fuse.OutHeader{}))
	writeInSize      = int(unsafe.Sizeof(fuse.WriteIn{}))
	compatSetxattrIn = inHeaderSize + 8
	initMinor        = 12 // the oldest minor version of the protocol that is spoken
)

// fixedSize is how many bytes of a request with opcode op come before its names and data, the header included. ok is
// false for what is answered ENOSYS without further ado: requests that we do not know, that need what virtio-fs does not
// have (notifications), or that only a DAX window makes sense of.
func fixedSize(op uint32) (n int, ok bool) {
	var size uintptr
	switch op {
	case opLookup, 5 /* READLINK */, opSymlink, opUnlink, opRmdir, 17 /* STATFS */, 24 /* REMOVEXATTR */, opDestroy:
		return inHeaderSize, true
	case opForget:
		size = unsafe.Sizeof(fuse.ForgetIn{})
	case 3: // GETATTR
		size = unsafe.Sizeof(fuse.GetAttrIn{})
	case 4: // SETATTR
		size = unsafe.Sizeof(fuse.SetAttrIn{})
	case opMknod:
		size = unsafe.Sizeof(fuse.MknodIn{})
	case opMkdir:
		size = unsafe.Sizeof(fuse.MkdirIn{})
	case opRename, opLink, opBatchForget, opSetxattr: // RENAME has only the new parent; SETXATTR's longer form is negotiated
		return inHeaderSize + 8, true
	case 14, 27: // OPEN, OPENDIR
		size = unsafe.Sizeof(fuse.OpenIn{})
	case opRead, opReaddir, opReaddirplus:
		size = unsafe.Sizeof(fuse.ReadIn{})
	case opWrite:
		size = unsafe.Sizeof(fuse.WriteIn{})
	case 18, 29: // RELEASE, RELEASEDIR
		size = unsafe.Sizeof(fuse.ReleaseIn{})
	case 20, 30: // FSYNC, FSYNCDIR
		size = unsafe.Sizeof(fuse.FsyncIn{})
	case opGetxattr, opListxattr:
		size = unsafe.Sizeof(fuse.GetXAttrIn{})
	case 25: // FLUSH
		size = unsafe.Sizeof(fuse.FlushIn{})
	case opInit:
		return inHeaderSize + 16, true // as of minor 12; longer since
	case 31, 32, 33: // GETLK, SETLK, SETLKW
		size = unsafe.Sizeof(fuse.LkIn{})
	case 34: // ACCESS
		size = unsafe.Sizeof(fuse.AccessIn{})
	case opCreate, 51 /* TMPFILE */ :
		size = unsafe.Sizeof(fuse.CreateIn{})
	case opInterrupt:
		size = unsafe.Sizeof(fuse.InterruptIn{})
	case opIoctl:
		size = unsafe.Sizeof(fuse.IoctlIn{})
	case 43: // FALLOCATE
		size = unsafe.Sizeof(fuse.FallocateIn{})
	case opRename2:
		size = unsafe.Sizeof(fuse.RenameIn{})
	case 46: // LSEEK
		size = unsafe.Sizeof(fuse.LseekIn{})
	case 47: // COPY_FILE_RANGE
		size = unsafe.Sizeof(fuse.CopyFileRangeIn{})
	default:
		return 0, false
	}
	return int(size), true
}

// isForget says that a request is not answered.
func isForget(op uint32) bool { return op == opForget || op == opBatchForget }

// checkNames checks the names of a request, which follow its fixed part: those that become entries of directories are
// one component of a path, whatever the guest says. A kernel never sends others.
func checkNames(op uint32, payload []byte) syscall.Errno {
	names := 1
	switch op {
	case opRename, opRename2:
		names = 2
	case opLookup, opSymlink, opMknod, opMkdir, opUnlink, opRmdir, opLink, opCreate:
	case opGetxattr, 24 /* REMOVEXATTR */ : // where SETXATTR has its name is up to the session
		if bytes.IndexByte(payload, 0) <= 0 {
			return syscall.EINVAL
		}
		return 0
	default:
		return 0
	}
	for range names {
		end := bytes.IndexByte(payload, 0)
		if end < 0 {
			return syscall.EINVAL
		}
		name := payload[:end]
		payload = payload[end+1:]
		switch {
		case len(name) > 255:
			return syscall.ENAMETOOLONG
		case len(name) == 0, bytes.IndexByte(name, '/') >= 0:
			return syscall.EINVAL
		case string(name) == ".", string(name) == "..":
			return syscall.EINVAL
		}
	}
	if op == opSymlink && bytes.IndexByte(payload, 0) <= 0 {
		return syscall.EINVAL // the target
	}
	return 0
}
