package main

import (
	"time"

	"github.com/microsandbox/msb-fs/internal/registry"
)

// link is a path to a registry: a bandwidth that all connections share, and a round-trip time.
type link struct {
	key, name string
	mbit      float64
	rtt       time.Duration
}

func links() []link {
	return []link{
		{"100m", "100 Mbit/s, 20 ms", 100, 20 * time.Millisecond},
		{"1g", "1 Gbit/s, 1 ms", 1000, time.Millisecond},
		{"far", "1 Gbit/s, 100 ms", 1000, 100 * time.Millisecond},
	}
}

func chooseLinks(keys string) ([]link, error) {
	return choose("link", keys, links(), func(l link) string { return l.key })
}

// open is the link, with nothing on it yet.
func (l link) open() *registry.Link { return registry.NewLink(int64(l.mbit*1e6/8), l.rtt) }

// wire is how long n bytes take on the link.
func (l link) wire(n int64) time.Duration {
	return time.Duration(float64(n) * 8 / (l.mbit * 1e6) * float64(time.Second))
}
