// Package cow puts one writable directory, the upper, over a read-only tree, the lower, and serves both as one file
// system. The lower never changes; everything that is written lands in the upper.
//
// # The upper on disk
//
// See docs/upper.md as well.
//
// The upper directory is a tree in the manner of overlayfs: a file that was created, or changed, is under its own path.
//
//   - A name of the lower that was removed is a whiteout: a character device 0:0, or an empty file ".wh.<name>" where
//     the host refuses such devices. Both are understood, as is ".wh..wh..opq", the form of a layer's tar. Names that
//     start with ".wh." therefore cannot be created through the mount.
//   - A directory shows the lower directory that its xattr user.msbfs.origin names (so that a rename moves one name and
//     copies nothing), else the one of the same name; with overlay.opaque=y (trusted., or user. for ordinary users) none.
//   - A file with user.msbfs.origin "<id> <base>" was copied up from the lower file of that id, which is still its inode
//     number. Bytes below base that the file does not own are the lower's; its map in ranges/ says what it owns, one bit
//     for every 4 KiB. No map: it owns nothing. base 0: it owns everything.
//   - Owner, mode and type that the host cannot or should not have (an ordinary user's files, setuid bits, devices) are in
//     user.containers.override_stat as "uid:gid:0mode[:type]", types spelled as containers/storage does. The guest's
//     xattrs outside user. are kept as user.msbfs.x.<name>, and so have no effect on the host.
//   - ".wh..wh.msbfs" in the upper's root holds the rest: format.json (the version, and the lower this upper belongs
//     to), work/ and orphans/ (emptied at mount), ranges/, and index/ with a hard link to every copied-up file that has
//     several names in the lower, called by its id.
//
// New files are called 1<<32 + their host inode number, so that every inode number is the same after a remount.
//
// # Crashes
//
// Every operation takes effect in one system call on the upper (rename, link, unlink, one write), and what that call
// needs is made before it in work/, so that after kill -9 an operation has happened or has not. Where a record and the
// name space both change, the record is written first in a form that is true before and after (see links.go, ranges.go).
// The guest's fsync reaches the host's disk: data first, then the range map. CAP_WRITEBACK_CACHE is not asked for: with it
// writes that were answered would be only in the kernel when the server dies.
//
// # Open files
//
// OPEN, OPENDIR, CREATE and FLUSH answer ENOSYS, after which the kernel does without them: creating a file is one MKNOD.
// Nothing is lost by it. O_TRUNC arrives as SETATTR as long as CAP_ATOMIC_O_TRUNC is not asked for, O_APPEND offsets
// are the kernel's (there is no other writer), and locks are the kernel's own, complete and without a round trip, as long
// as EnableLocks is off. Files are named by node id; descriptors of upper files are a cache; a file that lost its last
// name moves to orphans/ and stays usable until FORGET.
//
// # Locks
//
// In this order: node.mu (one file's content), FS.tree (names, places and attributes; held over short system calls of
// the upper, never while waiting for the lower), FS.tableMu (which nodes the kernel knows), handles.mu.
package cow
