package chunkcache

import "sync/atomic"

// Stats are what a cache holds and what it has done since it was opened.
type Stats struct {
	Chunks    int64 // held
	Bytes     int64 // of them, without what the disk adds
	DiskBytes int64 // that the data files take
	Hits      int64 // reads answered from disk
	Misses    int64 // chunks filled
	Shared    int64 // reads that waited for somebody else's fill
	Offered   int64 // bytes filled and put, those of chunks it had already included
	Refetched int64 // chunks found wrong on disk and dropped, to be filled again
	Rejected  int64 // fills whose bytes were not the chunk's, and were asked for again
	Evicted   int64 // chunks dropped to stay within MaxBytes
	Full      bool  // the disk is full or fails: chunks are not kept
}

// counters are the live Stats; hits are counted per shard.
type counters struct {
	chunks, bytes, misses, shared, offered, refetched, rejected, evicted atomic.Int64
}

// Stats returns the numbers as they are now.
func (c *Cache) Stats() Stats {
	s := Stats{
		Chunks:    c.stats.chunks.Load(),
		Bytes:     c.stats.bytes.Load(),
		DiskBytes: c.segs.used.Load(),
		Misses:    c.stats.misses.Load(),
		Shared:    c.stats.shared.Load(),
		Offered:   c.stats.offered.Load(),
		Refetched: c.stats.refetched.Load(),
		Rejected:  c.stats.rejected.Load(),
		Evicted:   c.stats.evicted.Load(),
		Full:      c.full.isSet.Load(),
	}
	for i := range c.shards {
		s.Hits += c.shards[i].hits.Load()
	}
	return s
}
