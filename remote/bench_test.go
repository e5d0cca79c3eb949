package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/microsandbox/msb-fs/internal/priority"
	"github.com/microsandbox/msb-fs/internal/registry"
)

// serve starts a registry with an image a/b:1 of the given layers, and resolves it.
func serve(tb testing.TB, ro registry.Options, co Options, layers ...[]byte) (*registry.Server, *Client, *Image) {
	tb.Helper()
	s, err := registry.Start(ro)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	addImage(tb, s, "a/b:1", layers...)
	if co.StallTimeout == 0 {
		co.StallTimeout = 10 * time.Second
	}
	c := NewClient(co)
	tb.Cleanup(func() { c.Close() })
	patient := NewClient(Options{}) // whatever stall c is to be tested with
	defer patient.Close()
	img, err := patient.Resolve(context.Background(), s.Host()+"/a/b:1", amd64)
	if err != nil {
		tb.Fatal(err)
	}
	return s, c, img
}

func addImage(tb testing.TB, s *registry.Server, ref string, layers ...[]byte) {
	tb.Helper()
	var ids []string
	var descs []map[string]any
	put := func(body []byte) string {
		d, err := s.AddBlob(body)
		if err != nil {
			tb.Fatal(err)
		}
		return d
	}
	for _, l := range layers {
		ids = append(ids, sha([]byte("tar")))
		descs = append(descs, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": put(l), "size": len(l)})
	}
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "layers": descs,
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config), "size": len(config)}})
	if _, err := s.AddManifest(ref, ociManifest, manifest); err != nil {
		tb.Fatal(err)
	}
}

const (
	benchRate = 125_000_000 // 1 Gbit/s
	benchRTT  = 20 * time.Millisecond
)

// One big read of 128 MiB, and beside it, in turn, one plain GET of the same blob over the same link: "%link" is the share of
// the bandwidth that was reached, round trips included, and "x-get" how much faster than the plain GET that is.
func BenchmarkSequential(b *testing.B) {
	const size = 128 << 20
	for _, mode := range []string{"ReadAt", "Open"} {
		b.Run(mode, func(b *testing.B) {
			data := randomBytes(size)
			s, c, img := serve(b, registry.Options{Link: registry.NewLink(benchRate, benchRTT)}, Options{}, data)
			p := make([]byte, size)
			var plain time.Duration
			b.SetBytes(size)
			for b.Loop() {
				if mode == "ReadAt" {
					if _, err := c.Blob(img, img.Layers[0], Access{}).ReadAt(context.Background(), p, 0); err != nil {
						b.Fatal(err)
					}
				} else {
					r, err := c.Blob(img, img.Layers[0], Access{}).Open(context.Background(), 0)
					if err == nil {
						err = readFull(r, p)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				if !bytes.Equal(p, data) {
					b.Fatal("wrong bytes")
				}
				start := time.Now()
				resp, err := http.Get(s.URL() + "/v2/a/b/blobs/" + img.Layers[0].Digest)
				if err == nil {
					err = readFull(resp.Body, p)
				}
				if err != nil {
					b.Fatal(err)
				}
				plain += time.Since(start)
				b.StartTimer()
			}
			b.ReportMetric(float64(size)/benchRate*float64(b.N)/b.Elapsed().Seconds()*100, "%link")
			b.ReportMetric(plain.Seconds()/b.Elapsed().Seconds(), "x-get")
		})
	}
}

// readFull reads as a layer does, 128 KiB at a time, and closes r.
func readFull(r io.ReadCloser, p []byte) error {
	defer r.Close()
	for len(p) > 0 {
		n, err := r.Read(p[:min(len(p), 128<<10)])
		if err != nil && n < len(p) {
			return err
		}
		p = p[n:]
	}
	return nil
}

// A full pull of six layers of 24 MiB at once, each read in order: "%link" as above, "MB-heap" the most memory in use.
func BenchmarkFullPull(b *testing.B) {
	const size, count = 24 << 20, 6
	var layers [][]byte
	for i := range count {
		layers = append(layers, append([]byte{byte(i)}, randomBytes(size-1)...))
	}
	_, c, img := serve(b, registry.Options{Link: registry.NewLink(benchRate, benchRTT)}, Options{}, layers...)
	clear(layers) // the registry has them; they must not count as ours
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	b.SetBytes(size * count)
	ctx := priority.With(context.Background(), priority.Background)
	var most uint64
	for b.Loop() {
		var wg sync.WaitGroup
		for _, l := range img.Layers {
			wg.Go(func() {
				r, err := c.Blob(img, l, Access{}).Open(ctx, 0)
				if err == nil {
					_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 128<<10))
					r.Close()
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapInuse-min(before.HeapInuse, now.HeapInuse))
		wg.Wait()
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapInuse-min(before.HeapInuse, now.HeapInuse))
	}
	b.ReportMetric(float64(size*count)/benchRate*float64(b.N)/b.Elapsed().Seconds()*100, "%link")
	b.ReportMetric(float64(most)/1e6, "MB-heap")
}

// 500 scattered reads of 32 KiB by 16 goroutines: "x-ideal" is their time over bytes/bandwidth + 500/16 round trips.
func BenchmarkScattered(b *testing.B) {
	const size, count, length, readers = 64 << 20, 500, 32 << 10, 16
	_, c, img := serve(b, registry.Options{Link: registry.NewLink(benchRate, benchRTT)}, Options{}, randomBytes(size))
	for b.Loop() {
		blob := c.Blob(img, img.Layers[0], Access{})
		offs := make(chan int64, count)
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(count) {
			offs <- int64(i) * (size / count)
		}
		close(offs)
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				p := make([]byte, length)
				for off := range offs {
					if _, err := blob.ReadAt(context.Background(), p, off); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if got := blob.Stats().Bytes; got > count*length*11/10 {
			b.Errorf("fetched %d bytes for %d", got, count*length)
		}
	}
	ideal := time.Duration(count*length)*time.Second/benchRate + benchRTT*count/readers
	b.ReportMetric((b.Elapsed()/time.Duration(b.N)).Seconds()/ideal.Seconds(), "x-ideal")
}

// On-demand reads with and without a background pull that saturates the link, in turn. "p99-bound" is the loaded p99 over
// what it may be, twice the unloaded one plus a range's time on the wire; "%link" is what the background still gets.
func BenchmarkOnDemandUnderLoad(b *testing.B) {
	for _, rate := range []int64{benchRate, benchRate / 10} {
		b.Run(fmt.Sprintf("%dMbit", rate*8/1_000_000), func(b *testing.B) {
			_, c, img := serve(b, registry.Options{Link: registry.NewLink(rate, benchRTT)}, Options{}, randomBytes(64<<20), randomBytes(256 << 20)[1:])
			demand := func(n int) []time.Duration {
				var took []time.Duration
				blob := c.Blob(img, img.Layers[0], Access{})
				for i := range n {
					start := time.Now()
					if _, err := blob.ReadAt(context.Background(), make([]byte, 32<<10), int64((i*7919)%2000)*32<<10); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
					time.Sleep(2 * time.Millisecond)
				}
				slices.Sort(took)
				return took
			}
			p99 := func(d []time.Duration) time.Duration { return d[len(d)*99/100] }
			var worst, share float64
			for b.Loop() {
				idle := p99(demand(100))
				ctx, cancel := context.WithCancel(priority.With(context.Background(), priority.Background))
				blob := c.Blob(img, img.Layers[1], Access{})
				var wg sync.WaitGroup
				wg.Go(func() {
					s, err := blob.Open(ctx, 0)
					if err != nil {
						b.Error(err)
						return
					}
					defer s.Close()
					p := make([]byte, 128<<10)
					for {
						if _, err := s.Read(p); err != nil {
							return
						}
					}
				})
				time.Sleep(300 * time.Millisecond)
				start, before := time.Now(), blob.Stats().Bytes
				loaded := p99(demand(100))
				share = float64(blob.Stats().Bytes-before) / time.Since(start).Seconds() / float64(rate) * 100
				cancel()
				wg.Wait()
				bound := 2*idle + time.Duration(rangeSize)*time.Second/time.Duration(rate)
				worst = max(worst, loaded.Seconds()/bound.Seconds())
				b.Logf("p99 %v idle, %v loaded, bound %v, background %.0f %% of the link", idle, loaded, bound, share)
			}
			b.ReportMetric(worst, "p99-bound")
			b.ReportMetric(share, "%link-bg")
		})
	}
}

// A new client resolves an image and reads 64 KiB of each of its four layers at once: "rtts" is how many round trips that took.
func BenchmarkColdStart(b *testing.B) {
	ca, err := registry.NewCA()
	if err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    registry.Options
	}{
		{"plain", registry.Options{}},
		{"tls", registry.Options{CA: ca}},
		{"tls,bearer,objectstore", registry.Options{CA: ca, Auth: registry.Auth{Bearer: true}, ObjectStore: true}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			tt.o.Link = registry.NewLink(0, benchRTT)
			s, err := registry.Start(tt.o)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var layers [][]byte
			for i := range 4 {
				layers = append(layers, append([]byte{byte(i)}, randomBytes(1<<20)...))
			}
			addImage(b, s, "a/b:1", layers...)
			a := amd64
			a.CACerts = ca.PEM()
			plain := tt.o.CA == nil
			a.Insecure = &plain
			var took time.Duration
			for b.Loop() {
				c := NewClient(Options{})
				start := time.Now()
				img, err := c.Resolve(context.Background(), s.Host()+"/a/b:1", a)
				if err != nil {
					b.Fatal(err)
				}
				var wg sync.WaitGroup
				for _, l := range img.Layers {
					wg.Go(func() {
						if _, err := c.Blob(img, l, a).ReadAt(context.Background(), make([]byte, 64<<10), 1000); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
				took += time.Since(start)
				c.Close()
			}
			b.ReportMetric(took.Seconds()/float64(b.N)/benchRTT.Seconds(), "rtts")
		})
	}
}
