package fs

import (
	"bytes"
	"encoding/binary"
)

// What is read of an image's /etc/ld.so.cache.
const (
	libCachePath = "/etc/ld.so.cache"
	maxLibCache  = 4 << 20
	maxLibs      = 1 << 16
)

// parseLibCache reads the dynamic linker's list of libraries: paths by name, in the order of the list. What is not such a list has none
// (glibc, sysdeps/generic/dl-cache.h, struct cache_file_new; it may stand behind one of the old form, at a multiple of 8).
func parseLibCache(b []byte) map[string][]string {
	const header, record = 48, 24
	magic := []byte("glibc-ld.so.cache1.1")
	if bytes.HasPrefix(b, []byte("ld.so-1.7.0")) {
		if i := bytes.Index(b, magic); i > 0 {
			b = b[i:]
		}
	}
	if len(b) < header || !bytes.HasPrefix(b, magic) {
		return nil
	}
	n := binary.LittleEndian.Uint32(b[20:])
	libs := make(map[string][]string)
	for i := range min(n, maxLibs) {
		at := header + int(i)*record
		if at+record > len(b) {
			break
		}
		name, ok1 := cString(b, binary.LittleEndian.Uint32(b[at+4:]))
		path, ok2 := cString(b, binary.LittleEndian.Uint32(b[at+8:]))
		if ok1 && ok2 && len(libs[name]) < 8 {
			libs[name] = append(libs[name], path)
		}
	}
	return libs
}

// cString is the string at off, which ends with a zero.
func cString(b []byte, off uint32) (string, bool) {
	if uint64(off) >= uint64(len(b)) {
		return "", false
	}
	b = b[off:min(uint64(len(b)), uint64(off)+maxPath)]
	end := bytes.IndexByte(b, 0)
	if end <= 0 {
		return "", false
	}
	return string(b[:end]), true
}
