package chunkcache

import (
	"bytes"
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// FuzzRecord reads index entries and headers from anything: what is accepted is within bounds and means the same again.
func FuzzRecord(f *testing.F) {
	f.Add(record{epoch: 1, seg: 2, off: 3, size: 100_000, used: 5, sums: []uint32{1, 2}}.encode())
	f.Add(record{epoch: 1, seg: 2, off: 3, size: MaxSize, used: 5}.encode())
	var h [headerSize]byte
	header{size: 77}.encode(h[:])
	f.Add(h[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			if r.size == 0 || r.size > MaxSize || len(r.sums) > maxBlocks || !bytes.Equal(r.encode(), b) {
				t.Errorf("%x is %+v", b, r)
			}
		}
		if h, ok := decodeHeader(b); ok && (h.size == 0 || h.size > MaxSize) {
			t.Errorf("%x is %+v", b, h)
		}
	})
}

// FuzzScan scans files of anything: it ends, and what it finds lies in the file.
func FuzzScan(f *testing.F) {
	var two bytes.Buffer
	for i := range 2 {
		k, data := chunk(uint64(i), 100)
		var h [headerSize]byte
		header{key: k, size: 100}.encode(h[:])
		two.Write(h[:])
		two.Write(data)
		two.Write(make([]byte, 4))
	}
	f.Add(two.Bytes(), uint16(0))
	f.Add(two.Bytes()[3:], uint16(9))
	f.Add(two.Bytes()[:180], uint16(64))
	f.Add([]byte(recordMagic+recordMagic+recordMagic), uint16(5))
	f.Fuzz(func(t *testing.T, b []byte, shift uint16) {
		fd, err := unix.MemfdCreate("segment", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "segment")
		defer file.Close()
		defer file.Close()
		if _, err := file.WriteAt(b, int64(shift)); err != nil {
			t.Fatal(err)
		}
		end := int64(shift) + int64(len(b))
		last := int64(0)
		err = (&segment{f: file}).scan(context.Background(), func(h header, off int64) error {
			if off < last || off+int64(h.size) > end {
				t.Errorf("a record [%d,+%d) in a file of %d, after %d", off, h.size, end, last)
			}
			last = off + int64(h.size)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// The blocks of a chunk cover it, and a mask has exactly those that a range touches.
func TestBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, 300_000), rapid.Int64Range(1, 9<<20), rapid.Int64Range(1, MaxSize)).Draw(t, "size")
		off := rapid.Int64Range(0, size-1).Draw(t, "off")
		n := rapid.Int64Range(1, size-off).Draw(t, "n")
		l, count := blockLen(size), blockCount(size)
		if count < 1 || count > maxBlocks || l*int64(count) < size || l*int64(count-1) >= size {
			t.Fatalf("%d blocks of %d for %d bytes", count, l, size)
		}
		mask := blockMask(size, off, n)
		for i := range int64(maxBlocks) {
			touched := i*l < off+n && (i+1)*l > off
			if mask&(1<<i) != 0 != touched {
				t.Fatalf("size %d [%d,+%d): block %d", size, off, n, i)
			}
		}
	})
}
