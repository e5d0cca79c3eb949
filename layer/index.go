package layer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An index file is a table as it is in memory: a header, then the sections of the table one after the other, each at a
// multiple of 8. Numbers are little endian; on other machines, or when a record's layout has changed, the version does not
// match and the index is made anew. All of it but the windows is checksummed (CRC-32C) when it is opened; a window is a
// zstd frame with its own checksum, looked at when it is used.
const (
	indexMagic   = "msblayer"
	indexVersion = 2
	indexHeader  = 512 // bytes
)

// header is the start of an index file, as encoding/binary writes it.
type header struct {
	Magic    [8]byte
	Version  uint32
	Form     uint8
	_        [3]byte
	Layer    Digest // of the blob
	DiffID   Digest // of the tar; zero when only a TOC was seen
	TOC      Digest // that the index was made from; zero when it was made from the whole layer
	Blob     int64
	End      int64
	Tar      int64
	Sections [6]section
}

// section is a part of the file: entries, chunks, spans, text, span digests, windows.
type section struct {
	Off, Len int64
	CRC      uint32
	_        uint32
}

// records is a section's memory.
func records[T any](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), len(s)*int(unsafe.Sizeof(s[0])))
}

// unrecords is the reverse; b begins at a multiple of 8 and is not empty beyond whole records.
func unrecords[T any](b []byte) ([]T, bool) {
	var one T
	if len(b)%int(unsafe.Sizeof(one)) != 0 {
		return nil, false
	}
	if len(b) == 0 {
		return nil, true
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(one))), true
}

func littleEndian() bool {
	return binary.NativeEndian.Uint16([]byte{1, 0}) == 1
}

// appendIndex appends the index file of t to b.
func appendIndex(b []byte, t *table, layer, diffID, toc Digest) ([]byte, error) {
	if !littleEndian() {
		return nil, fmt.Errorf("index files are little endian, this machine is not")
	}
	h := header{
		Version: indexVersion, Form: uint8(t.form), Layer: layer, DiffID: diffID, TOC: toc, Blob: t.blob, End: t.end, Tar: t.tar,
	}
	copy(h.Magic[:], indexMagic)
	start := len(b)
	b = append(b, make([]byte, indexHeader)...)
	for i, s := range [6][]byte{records(t.entries), records(t.chunks), records(t.spans), t.text, records(t.sums), t.windows} {
		h.Sections[i] = section{Off: int64(len(b) - start), Len: int64(len(s)), CRC: crc32.Checksum(s, castagnoli())}
		b = append(b, s...)
		b = append(b, make([]byte, -len(b)+start+(len(b)-start+7)/8*8)...)
	}
	var head bytes.Buffer
	if err := binary.Write(&head, binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	head.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(head.Bytes(), castagnoli())))
	copy(b[start:start+indexHeader], head.Bytes())
	return b, nil
}

// parseIndex is the table in b, an index file. The table shares b's memory, which must begin at a multiple of 8.
func parseIndex(b []byte) (*table, *header, error) {
	var h header
	n := binary.Size(&h)
	if len(b) < indexHeader || !littleEndian() {
		return nil, nil, fmt.Errorf("index file: too short")
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, nil, fmt.Errorf("index file: %w", err)
	}
	if string(h.Magic[:]) != indexMagic || h.Version != indexVersion {
		return nil, nil, fmt.Errorf("index file: not of version %d", indexVersion)
	}
	if binary.LittleEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], castagnoli()) {
		return nil, nil, fmt.Errorf("index file: header is damaged")
	}
	var parts [6][]byte
	for i, s := range h.Sections {
		if s.Off < indexHeader || s.Off%8 != 0 || s.Len < 0 || s.Off > int64(len(b)) || s.Len > int64(len(b))-s.Off {
			return nil, nil, fmt.Errorf("index file: section %d is out of bounds", i)
		}
		parts[i] = b[s.Off : s.Off+s.Len : s.Off+s.Len]
		if i < 5 && crc32.Checksum(parts[i], castagnoli()) != s.CRC {
			return nil, nil, fmt.Errorf("index file: section %d is damaged", i)
		}
	}
	t := &table{form: form(h.Form), blob: h.Blob, end: h.End, tar: h.Tar, text: parts[3], windows: parts[5]}
	var ok [4]bool
	t.entries, ok[0] = unrecords[entryRec](parts[0])
	t.chunks, ok[1] = unrecords[chunkRec](parts[1])
	t.spans, ok[2] = unrecords[spanRec](parts[2])
	t.sums, ok[3] = unrecords[Digest](parts[4])
	if ok != [4]bool{true, true, true, true} {
		return nil, nil, fmt.Errorf("index file: records are cut")
	}
	if err := t.validate(); err != nil {
		return nil, nil, err
	}
	return t, &h, nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// indexFile is a mapped index file.
type indexFile struct{ mem []byte }

func (f *indexFile) close() error {
	mem := f.mem
	f.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// mapIndex maps the index file at path.
func mapIndex(path string) (*table, *header, *indexFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, nil, err
	}
	if st.Size() < indexHeader || st.Size() != int64(int(st.Size())) {
		return nil, nil, nil, fmt.Errorf("index file %s: %d bytes long", path, st.Size())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("map %s: %w", path, err)
	}
	file := &indexFile{mem}
	t, h, err := parseIndex(mem)
	if err != nil {
		file.close()
		return nil, nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, h, file, nil
}

// indexName is the name of the index file of the layer called digest, in Options.Dir.
func indexName(layer, toc Digest) string {
	name := hex.EncodeToString(layer[:])
	if toc != (Digest{}) {
		// Another manifest may name the same blob and vouch for another TOC, or for none.
		name += "." + hex.EncodeToString(toc[:8])
	}
	return name + ".idx"
}

// openIndex makes l use the index file called name, if it is a good one. toc is the TOC it has to be made from, zero for one that was
// made from the whole layer.
func (l *Layer) openIndex(name string, toc Digest) bool {
	if l.o.Dir == "" {
		return false
	}
	t, h, file, err := mapIndex(filepath.Join(l.o.Dir, name))
	if err != nil {
		return false // it is derived: a damaged one is made anew
	}
	if h.Layer != l.id || h.TOC != toc || h.Blob != l.size || !l.diffIDIs(h.DiffID) {
		file.close()
		return false
	}
	l.t, l.file = t, file
	return true
}

// diffIDIs says whether the layer may have the diffID d. The zero Digest is one that nobody has computed.
func (l *Layer) diffIDIs(d Digest) bool {
	want, err := parseDigest(l.d.DiffID)
	return err != nil || d == Digest{} || d == want
}

// keepIndex writes the table to its file and uses that from then on. Where that fails the table stays in memory: the
// index is a convenience for later.
func (l *Layer) keepIndex(toc Digest) {
	if l.o.Dir == "" {
		return
	}
	l.mu.RLock()
	diffID := l.t.diffID
	b, err := appendIndex(nil, l.t, l.id, diffID, toc)
	l.mu.RUnlock()
	if err != nil || writeFile(l.o.Dir, indexName(l.id, toc), b) != nil {
		return
	}
	t, _, file, err := mapIndex(filepath.Join(l.o.Dir, indexName(l.id, toc)))
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		file.close()
		return
	}
	t.diffID = diffID
	if l.file != nil {
		l.file.close()
	}
	l.t, l.file = t, file
}

// writeFile puts a file into dir as a whole or not at all, also across a crash.
func writeFile(dir, name string, b []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, name+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
