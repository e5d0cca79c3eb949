package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Span is something that the daemon did for a reader: it read a chunk ("chunk"), or bytes of a layer's blob ("blob"), for which a range of
// it may have had to wait for its turn ("queue"). Times are
// CLOCK_MONOTONIC, ns, as those of Events; those of a part that there was not are 0.
type Span struct {
	Kind      string `json:"kind"`
	Start     int64  `json:"start"`
	Asked     int64  `json:"asked,omitempty"`
	FillStart int64  `json:"fill_start,omitempty"` // when the layer was asked for a chunk that the cache had not
	FillEnd   int64  `json:"fill_end,omitempty"`   // and had it, not yet verified
	End       int64  `json:"end"`
	File      uint64 `json:"file,omitempty"`
	Path      string `json:"path,omitempty"`
	Offset    int64  `json:"offset"` // in the file, or in the blob
	Size      int64  `json:"size"`
	Layer     string `json:"layer,omitempty"`
	Chunk     string `json:"chunk,omitempty"`
	Class     string `json:"class,omitempty"`
}

// Daemon is the daemon that serves the traced mounts, by its socket.
type Daemon struct{ Socket string }

func (d Daemon) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.Socket)
	}}}
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, &b)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("talk to msb-fs daemon: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e struct{ Message string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&e); err != nil || e.Message == "" {
		e.Message = resp.Status
	}
	return nil, fmt.Errorf("msb-fs daemon: %s", e.Message)
}

// Record has the daemon record until stop is called, once, which returns what it has done.
func (d Daemon) Record(ctx context.Context) (stop func(context.Context) ([]Span, error), err error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := d.do(ctx, "GET", "/v1/trace", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	var spans []Span
	ended := make(chan error, 1)
	go func() {
		defer resp.Body.Close()
		for dec := json.NewDecoder(resp.Body); ; {
			var s Span
			if err := dec.Decode(&s); errors.Is(err, io.EOF) {
				ended <- nil
				return
			} else if err != nil {
				ended <- fmt.Errorf("read the daemon's spans: %w", err)
				return
			}
			spans = append(spans, s)
		}
	}()
	return func(ctx context.Context) ([]Span, error) {
		defer cancel()
		resp, err := d.do(ctx, "DELETE", "/v1/trace", nil)
		if err == nil {
			resp.Body.Close()
			select {
			case err = <-ended:
				return spans, err
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		cancel()
		<-ended
		return spans, err
	}, nil
}

// maxLearn is how many pages a profile is made of: those of a start that reads a gigabyte.
const maxLearn = 250_000

// Learn has the daemon make the start-up profile of the image that is mounted on dir of what a start there has used.
func (d Daemon) Learn(ctx context.Context, dir string, used []Touched) error {
	type pages struct {
		Node  uint64   `json:"node"`
		Pages []uint64 `json:"pages"`
	}
	var files []pages
	left := maxLearn
	for _, f := range used {
		n := min(left, len(f.Pages))
		files = append(files, pages{f.Node, f.Pages[:n]})
		left -= n
	}
	resp, err := d.do(ctx, "POST", "/v1/mounts/pages", map[string]any{"dir": dir, "files": files})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Paths returns the paths of nodes of the mount on dir, in their order; "" for what is not of the image.
func (d Daemon) Paths(ctx context.Context, dir string, nodes []uint64) ([]string, error) {
	resp, err := d.do(ctx, "POST", "/v1/mounts/paths", map[string]any{"dir": dir, "nodes": nodes})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var paths []string
	if err := json.NewDecoder(resp.Body).Decode(&paths); err != nil {
		return nil, fmt.Errorf("read the daemon's paths: %w", err)
	}
	return paths, nil
}
