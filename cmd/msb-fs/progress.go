package main

import (
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

// progress draws one bar per layer, on a terminal; elsewhere it is silent.
type progress struct {
	bars  *mpb.Progress // nil when silent
	layer map[string]*mpb.Bar
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{layer: map[string]*mpb.Bar{}}
	if !quiet && cli.IsTerminal(w) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
	}
	return p
}

// update shows how much of each layer is local.
func (p *progress) update(layers []api.Layer) {
	if p.bars == nil {
		return
	}
	for _, l := range layers {
		bar := p.layer[l.Digest]
		if bar == nil {
			bar = p.bars.AddBar(l.Size,
				mpb.PrependDecorators(decor.Name(cli.ShortDigest(l.Digest)+" ")),
				mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name(" "+l.Mode)))
			p.layer[l.Digest] = bar
		}
		bar.SetCurrent(l.Have)
	}
}

// close leaves the bars as they are.
func (p *progress) close() {
	if p.bars == nil {
		return
	}
	for _, bar := range p.layer {
		bar.Abort(false) // of no effect on those that are full
	}
	p.bars.Wait()
}
