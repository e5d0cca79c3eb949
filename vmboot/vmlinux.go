package vmboot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxVmlinux bounds what a compressed kernel may unpack to. Distributions' are below 100 MiB.
const maxVmlinux = 512 << 20

// extractVmlinux returns the ELF kernel inside a bzImage. Under emulation the guest would spend longer unpacking
// itself than the host does once, and QEMU boots the ELF file directly by its PVH note.
func extractVmlinux(image []byte) ([]byte, error) {
	if len(image) < 0x250 || !bytes.Equal(image[0x202:0x206], []byte("HdrS")) {
		return nil, fmt.Errorf("not a bzImage")
	}
	// Documentation/arch/x86/boot.rst: the payload lies payload_offset bytes into the protected-mode code, which
	// follows setup_sects+1 sectors of 512 bytes.
	sectors := int(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int(binary.LittleEndian.Uint32(image[0x248:]))
	length := int(binary.LittleEndian.Uint32(image[0x24c:]))
	if length < 8 || start < 0 || start+length > len(image) {
		return nil, fmt.Errorf("bzImage with its payload outside the file")
	}
	payload := image[start : start+length]
	var kernel []byte
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		kernel, err = unpackZstd(payload)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		kernel, err = unpackGzip(payload)
	case bytes.HasPrefix(payload, []byte("\x7fELF")):
		kernel = payload
	default:
		return nil, fmt.Errorf("bzImage compressed in a way not known here (% x)", payload[:4])
	}
	if err != nil {
		return nil, fmt.Errorf("unpack the bzImage's payload: %w", err)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, fmt.Errorf("bzImage whose payload is no ELF file")
	}
	return kernel, nil
}

// unpackZstd reads one frame. What follows it in the payload is the kernel's size, appended by the build.
func unpackZstd(payload []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(payload[:len(payload)-4]), zstd.WithDecoderMaxMemory(maxVmlinux), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readBounded(r)
}

func unpackGzip(payload []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return readBounded(r)
}

func readBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxVmlinux+1))
	if err == nil && len(data) > maxVmlinux {
		err = fmt.Errorf("more than %d bytes", maxVmlinux)
	}
	return data, err
}
