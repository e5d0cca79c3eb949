package fs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"
)

func TestProfileReplay(t *testing.T) {
	body := strings.Repeat("x", 1<<17)
	layers := func() *fakeLayer {
		return newLayer(file("a", "1"+body+body), file("b", "2"+body), file("c", "3"), file("unused", "4"))
	}
	ctx := context.Background()
	first := sealedTree(t, Options{}, layers())
	p := make([]byte, 10)
	for _, r := range []struct {
		name string
		off  int64
	}{{"c", 0}, {"a", 1 << 17}, {"b", 5}, {"a", 1<<17 + 9}, {"c", 0}} {
		if _, err := first.ReadAt(ctx, mustWalk(t, first, r.name), p, r.off); err != nil {
			t.Fatal(err)
		}
	}
	run := first.Profile()
	var got []string
	for _, c := range run {
		got = append(got, first.Path(c.ID))
	}
	if want := []string{"/c", "/a", "/b"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("touched %v, want %v", got, want)
	}
	l := layers()
	again := sealedTree(t, Options{}, l)
	if err := again.Replay(ctx, append(run, Touch{ID: 77 << 24}, Touch{ID: run[0].ID, Offset: 1 << 40}, Touch{ID: Root})); err != nil {
		t.Fatal(err)
	}
	if n := l.fetches.Load(); n != 3 {
		t.Errorf("a replay fetched %d chunks, want 3", n)
	}
	if n := len(again.Profile()); n != 0 {
		t.Errorf("a replay counts as %d touches", n)
	}
	for _, c := range run {
		if _, err := again.ReadAt(ctx, c.ID, p[:1], c.Offset); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.fetches.Load(); n != 3 {
		t.Errorf("after a replay the run itself fetched %d chunks", n-3)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := again.Replay(cancelled, run); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled replay ended with %v", err)
	}
}

// A replay asks for neighbours at once, for what lies between them only where that is little, and for what is needed first,
// first.
func TestReplayCoalesces(t *testing.T) {
	l := newLayer(file("a", strings.Repeat("a", 1<<16)+strings.Repeat("c", 1<<16)+strings.Repeat("d", 1<<16)), file("far", "1"), file("b", strings.Repeat("b", 1<<16)))
	tree := sealedTree(t, Options{}, l)
	a, b := mustWalk(t, tree, "a"), mustWalk(t, tree, "b")
	profile := []Touch{{ID: b}, {ID: a, Offset: 1 << 16}, {ID: a}, {ID: a, Offset: 2 << 16}}
	if got := tree.Cost(profile)[0]; got != 4<<16 {
		t.Errorf("it costs %d bytes", got)
	}
	bs := tree.batches(profile)
	if len(bs) != 2 || len(bs[0].nums) != 1 || len(bs[1].nums) != 3 {
		t.Fatalf("%+v", bs)
	}
	if err := tree.Replay(context.Background(), profile); err != nil {
		t.Fatal(err)
	}
	if n := l.fetches.Load(); n != 4 {
		t.Errorf("%d fetches", n)
	}
	if len(l.brought) != 2 {
		t.Errorf("brought %v", l.brought)
	}
}

func TestWorthwhileGaps(t *testing.T) {
	at := func(from, to int64) batch { return batch{from: from, to: to} }
	w := [][]batch{{at(0, 100), at(101, 200), at(210, 300), at(400, 500)}}
	for waste, want := range map[int64]int64{0: 0, 1: 1, 10: 1, 11: 9 + 1, 110: 10, 111: 100} {
		if got := worthwhile(w, waste); got != want {
			t.Errorf("with %d to waste: gaps of %d, want %d", waste, got, want)
		}
	}
}

func TestLearn(t *testing.T) {
	a, b, c := Touch{ID: 1, Offset: 1}, Touch{ID: 2, At: time.Second}, Touch{ID: 3}
	profile := Learn(nil, []Touch{a, b, a})
	if want := []Touch{a, b}; !reflect.DeepEqual(profile, want) {
		t.Fatalf("%+v, want %+v", profile, want)
	}
	profile = Learn(profile, []Touch{c, b})
	unused := a
	unused.Unused = 1
	if want := []Touch{c, b, unused}; !reflect.DeepEqual(profile, want) {
		t.Fatalf("%+v, want %+v", profile, want)
	}
	for range forgetAfter {
		profile = Learn(profile, []Touch{c})
	}
	if want := []Touch{c}; !reflect.DeepEqual(profile, want) {
		t.Errorf("%+v, want %+v: what nobody uses is forgotten", profile, want)
	}
}

func TestLandmarks(t *testing.T) {
	tree := sealedTree(t, Options{}, newLayer(file("bin/sh", "sh"), dir("etc"), file("etc/passwd", "root"), file(".prefetch.landmark", "x"), file("big", "b")),
		newLayer(file("no", "landmark")))
	found, err := tree.Landmarks(context.Background())
	if err != nil || len(found) != 2 || tree.Path(found[0].ID) != "/bin/sh" || tree.Path(found[1].ID) != "/etc/passwd" {
		t.Errorf("%+v, %v", found, err)
	}
}

// What is predicted for a real program is what the real linker opens.
func TestPredict(t *testing.T) {
	out, err := exec.Command("ldd", "/bin/ls").Output()
	if err != nil {
		t.Skipf("needs ldd: %v", err)
	}
	want := map[string]bool{}
	items := []item{symlink("lib", "usr/lib"), symlink("lib64", "usr/lib64"), file("usr/bin/script", "#!/usr/bin/env list\n")}
	add := func(p string) {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(real)
		if err != nil {
			t.Fatal(err)
		}
		want[real] = true
		items = append(items, file(strings.TrimPrefix(real, "/"), string(b)))
		dir, err := filepath.EvalSymlinks(filepath.Dir(p))
		if err != nil {
			t.Fatal(err)
		}
		if link := filepath.Join(dir, filepath.Base(p)); link != real {
			items = append(items, symlink(strings.TrimPrefix(link, "/"), real))
		}
	}
	for f := range bytes.FieldsSeq(out) {
		if f[0] == '/' {
			add(string(f))
		}
	}
	add("/bin/ls")
	items = append(items, symlink("usr/bin/list", "ls"), file("usr/bin/env", "not a program"))
	tree := sealedTree(t, Options{}, newLayer(items...))
	for argv0, more := range map[string][]string{"ls": nil, "/usr/bin/script": {"/usr/bin/env", "/usr/bin/script"}} {
		seen := map[string]bool{}
		for _, c := range tree.Predict(context.Background(), []string{argv0, "-l"}, []string{"PATH=/nowhere:/usr/bin"}) {
			seen[tree.Path(c.ID)] = true
		}
		var wrong []string
		for p := range want {
			if !seen[p] {
				wrong = append(wrong, "missing "+p)
			}
			delete(seen, p)
		}
		for _, p := range more {
			if !seen[p] {
				wrong = append(wrong, "missing "+p)
			}
			delete(seen, p)
		}
		for p := range seen {
			wrong = append(wrong, "needless "+p)
		}
		sort.Strings(wrong)
		if len(wrong) > 0 {
			t.Errorf("%s: %v", argv0, wrong)
		}
	}
	if got := tree.Predict(context.Background(), []string{"absent"}, nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}
