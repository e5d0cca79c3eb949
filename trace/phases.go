package trace

import (
	"cmp"
	"slices"
)

// Phase is a part of the time that a request takes.
type Phase string

// Phases of a request, in their order. What is not one of the others' is Queue: in the kernel, on the way to the daemon, in
// wait for another's turn.
const (
	Queue   Phase = "queue"
	Wire    Phase = "wire"    // the registry has been asked
	Inflate Phase = "inflate" // and what came is decompressed
	Verify  Phase = "verify"  // and held against its digest, stored, and copied
	Reply   Phase = "reply"   // the daemon has the bytes, and the kernel not yet
	Serve   Phase = "serve"   // a request that reads no chunk: all of it
)

// Phases are all there are.
func Phases() []Phase { return []Phase{Queue, Wire, Inflate, Verify, Reply, Serve} }

// interval is a time from and to, ns.
type interval struct{ from, to int64 }

func (i interval) and(j interval) interval { return interval{max(i.from, j.from), min(i.to, j.to)} }

func (i interval) length() int64 { return max(0, i.to-i.from) }

// piece is a time that belongs to one phase.
type piece struct {
	interval
	phase Phase
}

// daemonSide answers what the daemon did for a request.
type daemonSide struct {
	chunks map[uint64][]Span  // by file, by start
	fills  map[string][]Span  // that filled, by chunk
	blobs  map[string][]piece // when each layer's blob was being read: disjoint, in order; Wire, or Queue while its turn had not come
}

func newDaemonSide(spans []Span) *daemonSide {
	d := &daemonSide{chunks: map[uint64][]Span{}, fills: map[string][]Span{}, blobs: map[string][]piece{}}
	reads, queued := map[string][]Span{}, map[string][]Span{}
	for _, s := range spans {
		switch s.Kind {
		case "chunk":
			d.chunks[s.File] = append(d.chunks[s.File], s)
			if s.FillEnd > 0 {
				d.fills[s.Chunk] = append(d.fills[s.Chunk], s)
			}
		case "blob":
			reads[s.Layer] = append(reads[s.Layer], s)
		case "queue":
			queued[s.Layer] = append(queued[s.Layer], s)
		}
	}
	for _, c := range d.chunks {
		slices.SortFunc(c, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	}
	for layer, rs := range reads {
		d.blobs[layer] = wirePieces(rs, queued[layer])
	}
	return d
}

// wirePieces are the times in which a blob was read: Queue where all who read waited for the turn of a range of theirs.
func wirePieces(reads, queued []Span) []piece {
	slices.SortFunc(queued, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	var all, wire []interval
	for _, r := range reads {
		at := r.Start
		for _, q := range queued {
			if q.Start >= r.End {
				break
			}
			if q.End <= at || q.Offset >= r.Offset+r.Size || r.Offset >= q.Offset+q.Size {
				continue
			}
			if q.Start > at {
				wire = append(wire, interval{at, q.Start})
			}
			at = min(q.End, r.End)
		}
		if at < r.End {
			wire = append(wire, interval{at, r.End})
		}
		all = append(all, interval{r.Start, r.End})
	}
	all, wire = union(all), union(wire)
	var out []piece
	for _, a := range all {
		at := a.from
		for ; len(wire) > 0 && wire[0].from < a.to; wire = wire[1:] {
			if wire[0].from > at {
				out = append(out, piece{interval{at, wire[0].from}, Queue})
			}
			out = append(out, piece{wire[0], Wire})
			at = wire[0].to
		}
		if at < a.to {
			out = append(out, piece{interval{at, a.to}, Queue})
		}
	}
	return out
}

// union makes intervals disjoint and ordered.
func union(in []interval) []interval {
	slices.SortFunc(in, func(a, b interval) int { return cmp.Compare(a.from, b.from) })
	var out []interval
	for _, i := range in {
		if n := len(out); n > 0 && i.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, i.to)
		} else {
			out = append(out, i)
		}
	}
	return out
}

// chunksOf are the chunks that the daemon read for r.
func (d *daemonSide) chunksOf(r *Request) []Span {
	if r.Size == 0 {
		return nil
	}
	var out []Span
	for _, s := range d.chunks[r.Node] {
		if s.Start > r.End {
			break
		}
		if s.End >= r.Start && s.Start >= r.Start && s.Offset < r.Offset+r.Size && r.Offset < s.Offset+s.Size {
			out = append(out, s)
		}
	}
	return out
}

// pieces are the phases of r, in order and without a gap, from its start to its end.
func (d *daemonSide) pieces(r *Request) []piece {
	chunks := d.chunksOf(r)
	if len(chunks) == 0 {
		return []piece{{interval{r.Start, r.End}, Serve}}
	}
	var out []piece
	at := r.Start
	until := func(t int64, p Phase) {
		if t = min(t, r.End); t > at {
			out = append(out, piece{interval{at, t}, p})
			at = t
		}
	}
	for _, c := range chunks {
		until(c.Asked, Queue)
		if fill, ok := d.fillOf(c); ok {
			until(fill.from, Queue)
			for _, read := range d.blobs[c.Layer] {
				if read.to > fill.from && read.from < fill.to {
					until(read.from, Inflate)
					until(min(read.to, fill.to), read.phase)
				}
			}
			until(fill.to, Inflate)
		}
		until(c.End, Verify)
	}
	until(r.End, Reply)
	return out
}

// fillOf is when the chunk of c was got from its layer while c waited: by c's own fill or another reader's.
func (d *daemonSide) fillOf(c Span) (interval, bool) {
	if c.FillEnd > 0 {
		return interval{c.FillStart, c.FillEnd}, true
	}
	wait := interval{c.Asked, c.End}
	for _, f := range d.fills[c.Chunk] {
		if i := wait.and(interval{f.FillStart, f.FillEnd}); i.length() > 0 {
			return i, true
		}
	}
	return interval{}, false
}
