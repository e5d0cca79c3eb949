package main

import (
	"bytes"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// someResults is a directory with a little of everything.
func someResults(t *testing.T) *set {
	t.Helper()
	dir := t.TempDir()
	res, err := openResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	add := func(file string, v any) {
		t.Helper()
		if err := appendLine(filepath.Join(dir, file), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := res.addMachine(); err != nil {
		t.Fatal(err)
	}
	add(imagesFile, Facts{Image: "python", About: "an import", Layers: 3, Bytes: 78e6, Native: 0.05, Pages: 9e6, Touched: 3e6, Files: 90, Opened: 5e6})
	for n, at := range []float64{1, 1.2, 1.1} {
		for i, c := range []cell{
			{"python", "gzip", "1g", "containerd"}, {"python", "estargz", "1g", "mount"}, {"python", "gzip", "1g", "mount"}, {"python", "estargz", "100m", "stargz"}, {"python", "estargz", "100m", "mount"},
		} {
			add(coldFile, Record{
				Time: time.Now(), System: c.System, SystemVersion: "<1>", Image: c.Image, Form: c.Form, Link: c.Link, Run: n + 1, Mounted: at / 2, Output: at + float64(i), Ready: at + float64(i),
				Complete: 9, Bytes: 5e6, Requests: 50, ImageBytes: 78e6, CPU: 0.5, RSSTotal: 90 << 20,
			})
		}
		for _, v := range []Sample{{System: "msb-fs", Value: at}, {System: "ext4", Value: 1, Base: true}} {
			v.Set, v.Case, v.Unit, v.Run = "warm", "find <all>", "s", n+1
			if err := res.addSample(v); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(errorsFile, Failure{System: "soci", Image: "python", Form: "gzip+soci", Link: "1g", Error: "no <daemon>"})
	s, err := readResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReportNeedsNothingElse(t *testing.T) {
	s := someResults(t)
	path, err := s.writeReport()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, bad := range []string{"<script", "<link", "src=", "@import", "url(", "find <all>", "no <daemon>"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	for _, want := range []string{"100 Mbit/s, 20 ms", "limit 0.300 s", "no &lt;daemon&gt;", "find &lt;all&gt;", "1.10 x", "stargz-snapshotter, estargz", "22.0 x"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q in it", want)
		}
	}
	if n := strings.Count(page, "<svg"); n != strings.Count(page, "</svg>") || n < 9 {
		t.Errorf("%d pictures", n)
	}
}

// TestReportInABrowser opens the page as its readers do.
func TestReportInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	s := someResults(t)
	path, err := s.writeReport()
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) []byte {
		t.Helper()
		args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--user-data-dir=" + t.TempDir(), "--window-size=1060,3000", "--hide-scrollbars"}, args...)
		var said bytes.Buffer
		cmd := exec.CommandContext(t.Context(), browser, append(args, "file://"+path)...)
		cmd.Stderr = &said
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TMPDIR="+t.TempDir())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", browser, err, said.String())
		}
		return out
	}
	if dom := string(run("--dump-dom")); strings.Count(dom, `class="plot"`) < 9 || strings.Count(dom, "<rect") < 20 {
		t.Errorf("the browser sees %d plots, %d bars", strings.Count(dom, `class="plot"`), strings.Count(dom, "<rect"))
	}
	shot := filepath.Join(t.TempDir(), "shot.png")
	run("--screenshot=" + shot)
	if err := colorful(shot); err != nil {
		t.Error(err)
	}
}

// colorful fails unless a picture has the colors of this project's bars, of others' and of the limit in it, and is not all ink.
func colorful(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		return err
	}
	var blue, orange, red, white, all int
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			r, g, b = r>>8, g>>8, b>>8
			all++
			switch {
			case r > 240 && g > 240 && b > 240:
				white++
			case b > r+60 && b > g+20:
				blue++
			case r > 180 && g < 60 && b < 60:
				red++
			case r > g+20 && g > b+20:
				orange++
			}
		}
	}
	if blue < 2000 || orange < 2000 || red < 50 || white < all/2 {
		return fmt.Errorf("a picture of %d pixels has %d blue, %d orange, %d red, %d white ones", all, blue, orange, red, white)
	}
	return nil
}

func TestShortTable(t *testing.T) {
	s := someResults(t)
	var out strings.Builder
	if err := s.writeShort(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| seconds until ready | limit | **ours**, eStargz | **ours**, gzip never seen | stargz-snapshotter, eStargz | containerd, gzip |",
		"| python (78 MB) | 0.05 | 2.10 | 3.10 | | **1.10** |", "| python (78 MB) | 0.30 | 5.10 | | **4.10** | |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
	page, err := between("a\n"+readmeBegin+"\nold\n"+readmeEnd+"\nb\n", "new\n")
	if err != nil || page != "a\n"+readmeBegin+"\nnew\n"+readmeEnd+"\nb\n" {
		t.Errorf("%q, %v", page, err)
	}
	if _, err := between("a\n", "new\n"); err == nil {
		t.Error("a page without markers was written to")
	}
}

func TestLosses(t *testing.T) {
	s := someResults(t)
	var got []string
	for _, l := range s.losses() {
		got = append(got, fmt.Sprintf("%s %s %s %.2f %s | %s", l.Image, l.Form, l.Link, l.Ready, l.Ratio(), l.Other))
	}
	want := []string{
		"python estargz 100 Mbit/s, 20 ms 5.10 17.0 x | stargz-snapshotter, estargz",
		"python gzip 1 Gbit/s, 1 ms 3.10 62.0 x | containerd + overlayfs, gzip", "python estargz 1 Gbit/s, 1 ms 2.10 42.0 x | ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
