package msb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// LogLine is one line, or a piece of a very long one, that a sandbox's command has written.
type LogLine struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	Log    []byte    `json:"log"`    // with its newline; base64 in JSON, for it may be anything
}

const (
	logFile  = "command.jsonl"   // newest lines
	oldLog   = "command.jsonl.1" // those before
	logBytes = 16 << 20          // when the newest become the old ones
	logPiece = 16 << 10          // of a line, at most
)

// logWriter writes a sandbox's log. It is safe for concurrent use. A command never fails for want of room for its log.
type logWriter struct {
	dir string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLogs(dir string) (*logWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open sandbox's log: %w", err)
	}
	w := &logWriter{dir: dir, file: f}
	if fi, err := f.Stat(); err == nil {
		w.size = fi.Size()
	}
	return w, nil
}

func (w *logWriter) Close() error { return w.file.Close() }

func (w *logWriter) add(l LogLine) {
	b, err := json.Marshal(l)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size > logBytes {
		w.rotate()
	}
	n, _ := w.file.Write(append(b, '\n'))
	w.size += int64(n)
}

// rotate makes the newest lines the old ones, if it can.
func (w *logWriter) rotate() {
	path := filepath.Join(w.dir, logFile)
	if os.Rename(path, filepath.Join(w.dir, oldLog)) != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	w.file.Close()
	w.file, w.size = f, 0
}

// stream returns a writer for one of the command's outputs.
func (w *logWriter) stream(name string) io.Writer { return &logStream{w: w, name: name} }

// logStream cuts what is written into lines. What a command leaves without a newline is written as it comes.
type logStream struct {
	w    *logWriter
	name string
}

func (s *logStream) Write(p []byte) (int, error) {
	now := time.Now().UTC()
	for rest := p; len(rest) > 0; {
		n := bytes.IndexByte(rest, '\n') + 1
		if n == 0 {
			n = len(rest)
		}
		n = min(n, logPiece)
		s.w.add(LogLine{Time: now, Stream: s.name, Log: rest[:n]})
		rest = rest[n:]
	}
	return len(p), nil
}

// followEvery is how often a log is looked at for more.
const followEvery = 50 * time.Millisecond

// Logs hands fn what sb's command has written: the last tail lines, all if tail is negative; then, if follow is true, what
// it goes on to write until sb ends.
func (sb *Sandbox) Logs(ctx context.Context, tail int, follow bool, fn func(LogLine) error) error {
	var lines []LogLine
	keep := func(l LogLine) error {
		lines = append(lines, l)
		if tail >= 0 && len(lines) > 2*tail+1024 {
			lines = slices.Delete(lines, 0, len(lines)-tail)
		}
		return nil
	}
	// Followed from before it is read, so that nothing is missed in between.
	running := follow && sb.Running()
	if err := readLog(filepath.Join(sb.dir.logs(), oldLog), keep); err != nil {
		return err
	}
	newest, err := os.Open(filepath.Join(sb.dir.logs(), logFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read sandbox's log: %w", err)
	}
	r := &logReader{file: newest}
	defer func() { r.close() }()
	if err := r.read(keep); err != nil {
		return err
	}
	if tail >= 0 && len(lines) > tail {
		lines = lines[len(lines)-tail:]
	}
	for _, l := range lines {
		if err := fn(l); err != nil {
			return err
		}
	}
	for running {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
		running = sb.Running() // before the last look, so that it sees everything
		if err := r.next(filepath.Join(sb.dir.logs(), logFile), fn); err != nil {
			return err
		}
	}
	return nil
}

// readLog hands fn the lines of the file at path, if there is one.
func readLog(path string, fn func(LogLine) error) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read sandbox's log: %w", err)
	}
	r := &logReader{file: f}
	defer r.close()
	return r.read(fn)
}

// logReader reads a log that may still grow.
type logReader struct {
	file    *os.File // nil while there is none
	partial []byte   // the beginning of a line whose end is not there yet
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// read hands fn the lines that are there.
func (r *logReader) read(fn func(LogLine) error) error {
	if r.file == nil {
		return nil
	}
	in := bufio.NewReaderSize(r.file, 64<<10)
	for {
		b, err := in.ReadBytes('\n')
		r.partial = append(r.partial, b...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read sandbox's log: %w", err)
		}
		var l LogLine
		// A line that a crash or a full disk cut short is skipped.
		if json.Unmarshal(r.partial, &l) == nil {
			if err := fn(l); err != nil {
				return err
			}
		}
		r.partial = r.partial[:0]
	}
}

// next reads on, in the file that has taken path's place if one has.
func (r *logReader) next(path string, fn func(LogLine) error) error {
	if err := r.read(fn); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	if r.file != nil {
		a, aerr := r.file.Stat()
		b, berr := f.Stat()
		if aerr != nil || berr != nil || os.SameFile(a, b) {
			f.Close()
			return nil
		}
	}
	if err := r.read(fn); err != nil { // what came between the last read and the rotation
		f.Close()
		return err
	}
	r.close()
	r.file, r.partial = f, nil
	return r.read(fn)
}
