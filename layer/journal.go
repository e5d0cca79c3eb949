package layer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A journal is the file of a layer that is being streamed, so that whoever opens the layer after a crash goes on where it had
// got to. It begins with a header and is only ever appended to: each record has what the table has gained since the one
// before, and the mark up to which that goes. A record that was cut short fails its checksum (CRC-32C) and ends the journal
// there. It is little endian like the index file, and what is in it is as trusted as that.
const (
	journalMagic   = "msbstrm\n"
	journalVersion = 1
)

type journalHeader struct {
	Magic   [8]byte
	Version uint32
	_       uint32
	Layer   Digest
	Blob    int64
}

// hashState is a sha256 as crypto/sha256 marshals it.
type hashState [108]byte

// mark is a place of a stream from where it can be taken up.
type mark struct {
	Off    int64     // of the blob, to be read from there on
	Blob   hashState // of the blob's bytes before Off
	Pos    int64     // tar offset where cutting goes on: of a header, or of data
	Left   int64     // bytes at Pos of the newest entry's file; 0 when a header is there
	Holes  int64     // bytes of sparse files so far
	Hashed int64     // tar offset up to which Tar has been computed; it may lie beyond Pos
	Tar    hashState // of the tar's bytes before Hashed
	Form   uint64
}

// journalRecord is the start of a record. Its payload are the sections [From, To) one after the other: entries, chunks, spans,
// text, windows, fresh chunks.
type journalRecord struct {
	mark
	From, To [6]uint64
	CRC      uint32 // of the record with CRC 0, and the payload
	_        uint32
}

// sectionSizes are the bytes of one record of each section.
var sectionSizes = [6]uint64{
	uint64(unsafe.Sizeof(entryRec{})), uint64(unsafe.Sizeof(chunkRec{})), uint64(unsafe.Sizeof(spanRec{})), 1, 1, 4,
}

// partialName is the name of a layer's journal in Options.Dir.
func partialName(id Digest) string { return hex.EncodeToString(id[:]) + ".partial" }

// journal writes a layer's journal. The zero value with a path and an id is ready; it is not safe for concurrent use.
type journal struct {
	path string
	id   Digest
	blob int64

	f     *os.File // nil before the first record
	end   int64    // of what is sound in the file
	saved [6]uint64
	given bool // it cannot be written: the stream goes on without
}

// add appends a record with what t and fresh have before counts beyond what the journal has already. Where that fails there is no
// journal any more.
func (j *journal) add(m *mark, t *table, fresh []uint32, to [6]uint64) {
	if j.given {
		return
	}
	if err := j.tryAdd(m, t, fresh, to); err != nil {
		j.given = true
		j.remove()
	}
}

func (j *journal) tryAdd(m *mark, t *table, fresh []uint32, to [6]uint64) error {
	if j.f == nil {
		if err := j.open(); err != nil {
			return err
		}
	}
	r := journalRecord{mark: *m, From: j.saved, To: to}
	r.From[0] = max(j.saved[0], 1) - 1 // the newest entry may have got chunks since
	payload := [6][]byte{
		records(t.entries[r.From[0]:to[0]]), records(t.chunks[r.From[1]:to[1]]), records(t.spans[r.From[2]:to[2]]),
		t.text[r.From[3]:to[3]], t.windows[r.From[4]:to[4]], records(fresh[r.From[5]:to[5]]),
	}
	n := binary.Size(&r)
	b := bytes.NewBuffer(make([]byte, 0, n))
	if err := binary.Write(b, binary.LittleEndian, &r); err != nil {
		return err
	}
	for _, p := range payload {
		b.Write(p)
	}
	binary.LittleEndian.PutUint32(b.Bytes()[n-8:], crc32.Checksum(b.Bytes(), castagnoli()))
	if _, err := j.f.WriteAt(b.Bytes(), j.end); err != nil {
		return err
	}
	j.end += int64(b.Len())
	j.saved = to
	return nil
}

// open opens the file and keeps others away from it. What is in it is kept if it is what was read when the stream began.
func (j *journal) open() error {
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	j.f = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		j.f = nil // it is another stream's
		return errors.Join(err, f.Close())
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if j.end > 0 && st.Size() >= j.end {
		return f.Truncate(j.end)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	h := journalHeader{Version: journalVersion, Layer: j.id, Blob: j.blob}
	copy(h.Magic[:], journalMagic)
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &h); err != nil {
		return err
	}
	j.saved, j.end = [6]uint64{}, int64(b.Len())
	_, err = f.WriteAt(b.Bytes(), 0)
	return err
}

// close leaves the file for the next who opens the layer.
func (j *journal) close() {
	if j.f != nil {
		j.f.Close()
		j.f = nil
	}
}

// remove deletes the file: the stream has ended, or should begin anew.
func (j *journal) remove() {
	if j.f == nil && j.end == 0 {
		return // it is nobody's, or another's
	}
	os.Remove(j.path)
	j.close()
}

// readJournal reads the journal at path, of the layer id with a blob of size bytes, -1 when that is not known: the table as it was at the last mark, which
// chunks only this layer had, that mark, and how much of the file is sound.
func readJournal(path string, id Digest, size int64) (t *table, fresh []uint32, m *mark, end int64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, nil, 0, err
	}
	var h journalHeader
	r := bufio.NewReaderSize(f, 1<<20)
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil {
		return nil, nil, nil, 0, err
	}
	if string(h.Magic[:]) != journalMagic || h.Version != journalVersion || h.Layer != id || size >= 0 && h.Blob != size || h.Blob < 0 || !littleEndian() {
		return nil, nil, nil, 0, fmt.Errorf("journal %s: of another version or layer", path)
	}
	end = int64(binary.Size(&h))
	t = &table{blob: h.Blob, end: h.Blob}
	for {
		rec, n := readRecord(r, t, &fresh, uint64(st.Size()-end))
		if rec == nil {
			break
		}
		m = rec
		end += n
	}
	if m == nil {
		return nil, nil, nil, 0, fmt.Errorf("journal %s: empty", path)
	}
	t.form = form(m.Form)
	if err := m.check(t, fresh); err != nil {
		return nil, nil, nil, 0, fmt.Errorf("journal %s: %w", path, err)
	}
	return t, fresh, m, end, nil
}

// readRecord reads the next record, of at most limit bytes, into t and fresh; nil where no sound one follows.
func readRecord(r io.Reader, t *table, fresh *[]uint32, limit uint64) (*mark, int64) {
	var rec journalRecord
	n := uint64(binary.Size(&rec))
	if limit < n {
		return nil, 0
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, 0
	}
	if _, err := binary.Decode(head, binary.LittleEndian, &rec); err != nil {
		return nil, 0
	}
	have := [6]uint64{
		uint64(len(t.entries)), uint64(len(t.chunks)), uint64(len(t.spans)), uint64(len(t.text)), uint64(len(t.windows)), uint64(len(*fresh)),
	}
	total := uint64(0)
	for i := range have {
		if rec.From[i] > have[i] || rec.To[i] < rec.From[i] || rec.To[i]-rec.From[i] > limit/sectionSizes[i] {
			return nil, 0
		}
		total += (rec.To[i] - rec.From[i]) * sectionSizes[i]
	}
	if total > limit-n {
		return nil, 0
	}
	payload := make([]byte, total)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, 0
	}
	binary.LittleEndian.PutUint32(head[n-8:], 0)
	if crc32.Update(crc32.Checksum(head, castagnoli()), castagnoli(), payload) != rec.CRC {
		return nil, 0
	}
	payload = gain(&t.entries, payload, rec.From[0], rec.To[0])
	payload = gain(&t.chunks, payload, rec.From[1], rec.To[1])
	payload = gain(&t.spans, payload, rec.From[2], rec.To[2])
	payload = gain(&t.text, payload, rec.From[3], rec.To[3])
	payload = gain(&t.windows, payload, rec.From[4], rec.To[4])
	gain(fresh, payload, rec.From[5], rec.To[5])
	return &rec.mark, int64(n + total)
}

// gain makes s[from:to] what payload begins with and returns the rest of it.
func gain[T any](s *[]T, payload []byte, from, to uint64) []byte {
	more := make([]T, to-from)
	n := copy(records(more), payload)
	*s = append((*s)[:from], more...)
	return payload[n:]
}

// check holds a mark, and the table that was read with it, against what a stream would have written.
func (m *mark) check(t *table, fresh []uint32) error {
	whole := *t
	if n := len(t.entries); m.Left != 0 {
		if n == 0 {
			return corrupt("the rest of no file")
		}
		e := &t.entries[n-1]
		if m.Left < 0 || m.Left >= e.size || uint64(e.chunk)+uint64(e.chunks) != uint64(len(t.chunks)) || !regular(e.mode) {
			return corrupt("the rest of a file that cannot be")
		}
		whole.entries, whole.chunks = t.entries[:n-1], t.chunks[:e.chunk]
		if err := t.validateChunks(); err != nil {
			return err
		}
	}
	if t.form.parts() {
		return corrupt("made from a TOC")
	}
	if err := whole.validate(); err != nil {
		return err
	}
	if len(t.spans) == 0 {
		return corrupt("nowhere to begin at")
	}
	s := &t.spans[len(t.spans)-1]
	if m.Off < 0 || m.Off > t.blob || m.Pos < s.uoff || m.Hashed < s.uoff || m.Holes < 0 || t.form != formTar && m.Off > s.off || t.form == formTar && m.Off > m.Pos {
		return corrupt("a mark that cannot be")
	}
	for _, n := range fresh {
		if int(n) >= len(t.chunks) {
			return corrupt("fresh chunks that are none")
		}
	}
	return nil
}
