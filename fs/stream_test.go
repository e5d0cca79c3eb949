package fs

import (
	"context"
	"errors"
	"reflect"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// asks runs a lookup in the background; its answer comes when it is certain.
func asks(tree *Tree, path string) chan error {
	c := make(chan error, 1)
	go func() {
		_, _, err := tree.Walk(context.Background(), path, false)
		c <- err
	}()
	return c
}

// waiting fails the test where c has answered.
func waiting(t *testing.T, what string, c chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Fatalf("%s: answered %v while that was uncertain", what, err)
	default:
	}
}

// answered fails the test where c has not answered want.
func answered(t *testing.T, what string, c chan error, want error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		if !errors.Is(err, want) {
			t.Fatalf("%s: answered %v, want %v", what, err, want)
		}
	default:
		t.Fatalf("%s: still waits though the answer is certain", what)
	}
}

func TestStreamCertainty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bottom := streamLayer(file("a", "1"), file("gone", "1"), file("both", "1"), dir("d"), file("d/low", "1"), file("z", "1"))
		top := streamLayer(file("both", "2"), file(".wh.gone", ""), dir("d"), file("d/.wh..wh..opq", ""), file("d/new", "2"), file("last", "2"))
		tree := newTree(t, Options{}, bottom, top)

		a, gone, both, never := asks(tree, "a"), asks(tree, "gone"), asks(tree, "both"), asks(tree, "never")
		waiting(t, "nothing shown", a)
		bottom.show(3)
		waiting(t, "the upper layer may have an a", a)
		waiting(t, "the upper layer may have a both", both)
		top.show(1)
		answered(t, "the topmost layer has shown it", both, nil)
		top.show(2)
		waiting(t, "a whiteout's own layer may have the name yet", gone)
		low, fresh := asks(tree, "d/low"), asks(tree, "d/new")
		bottom.show(5)
		waiting(t, "d may turn out opaque", low)
		top.show(5)
		answered(t, "shown by the topmost layer", fresh, nil)
		waiting(t, "the upper layer may show d/low yet", low)
		list := make(chan error, 1)
		go func() {
			list <- tree.ReadDir(context.Background(), mustWalk(t, tree, "d"), 0, func(string, ID, Attr) bool { return true })
		}()
		waiting(t, "a listing needs the upper layer's end", list)
		top.show(6)
		top.end()
		answered(t, "the upper layer has ended", a, nil)
		answered(t, "whiteout, and its layer has ended", gone, syscall.ENOENT)
		answered(t, "opaque, and its layer has ended; the lower layer does not count", low, syscall.ENOENT)
		answered(t, "an opaque directory needs no lower layer", list, nil)
		waiting(t, "the lower layer may have it yet", never)
		bottom.show(6)
		bottom.end()
		answered(t, "all layers have ended", never, syscall.ENOENT)
		<-tree.Sealed()
		tree.Close()
	})
}

func mustWalk(t *testing.T, tree *Tree, path string) ID {
	t.Helper()
	id, _, err := tree.Walk(context.Background(), path, false)
	if err != nil {
		t.Error(err)
	}
	return id
}

// A directory that a layer has only as a parent is decided by the layers below it.
func TestStreamImplicit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bottom := streamLayer(dir("usr").mode(0o711), dir("usr/lib").mode(0o700), file("usr/lib/a", "1"), file("z", "1"))
		tree := newTree(t, Options{}, bottom, newLayer(file("usr/lib/b", "2")))
		b := asks(tree, "usr/lib/b")
		waiting(t, "the lower layer may have usr, or a symlink of that name", b)
		bottom.show(1)
		waiting(t, "the same of usr/lib", b)
		bottom.show(2)
		answered(t, "both are known", b, nil)
		_, a, err := tree.Walk(context.Background(), "usr", false)
		if err != nil || a.Mode != syscall.S_IFDIR|0o711 || !a.Provisional {
			t.Errorf("usr is %+v, %v", a, err)
		}
		bottom.show(4)
		bottom.end()
		<-tree.Sealed()
		tree.Close()
	})
}

// What the root is waits for what layers begin with, and not for long.
func TestStreamRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bottom := streamLayer(dir("").mode(0o700), file("a", "1"))
		tree := newTree(t, Options{}, bottom, streamLayer(file("b", "1")))
		top := tree.layers[1].(*fakeLayer)
		root := asks(tree, "/")
		waiting(t, "no layer has begun", root)
		top.show(1)
		waiting(t, "the lower layer has not begun", root)
		bottom.show(1)
		answered(t, "it has", root, nil)
		if _, a, err := tree.Walk(context.Background(), "/", false); err != nil || a.Mode != syscall.S_IFDIR|0o700 {
			t.Errorf("the root is %+v, %v", a, err)
		}
		tree.Close()

		tree = newTree(t, Options{}, streamLayer(dir("").mode(0o700)))
		root = asks(tree, "/")
		waiting(t, "no layer has begun", root)
		time.Sleep(rootPatience)
		answered(t, "no layer begins", root, nil)
		tree.Close()
	})
}

func TestStreamHardLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bottom := streamLayer(dir("d"), file("d/a", "1"), file("b", "1"))
		top := streamLayer(hardlink("low", "d/a"), file("own", "2"), hardlink("same", "own"), hardlink("later", "zz"), file("zz", "3"), hardlink("none", "nothing"))
		tree := newTree(t, Options{}, bottom, top)
		low, same, later, none := asks(tree, "low"), asks(tree, "same"), asks(tree, "later"), asks(tree, "none")
		top.show(len(top.entries))
		answered(t, "the target is in its layer", same, nil)
		waiting(t, "the target may be in the lower layer", low)
		waiting(t, "the target may be in the lower layer", later)
		bottom.show(2)
		answered(t, "the lower layer has shown the target", low, nil)
		waiting(t, "the lower layer may have zz", later)
		bottom.show(3)
		bottom.end()
		answered(t, "only its own layer has zz", later, nil)
		waiting(t, "the link's layer may show the target yet", none)
		top.end()
		answered(t, "nobody has the target", none, syscall.ENOENT)
		<-tree.Sealed()
		tree.Close()
	})
}

func TestStreamCancelAndFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := streamLayer(file("a", "1"))
		tree := newTree(t, Options{}, l)
		ctx, cancel := context.WithCancel(context.Background())
		c := make(chan error, 1)
		go func() {
			_, _, err := tree.Lookup(ctx, Root, "x")
			c <- err
		}()
		waiting(t, "nothing shown", c)
		cancel()
		answered(t, "cancelled", c, context.Canceled)

		l.show(1)
		a, other := asks(tree, "a"), asks(tree, "other")
		answered(t, "shown", a, nil)
		l.fail(errors.New("digest mismatch"))
		answered(t, "failed", other, syscall.EIO)
		answered(t, "what was there before has failed too", asks(tree, "a"), syscall.EIO)
		if err := tree.Err(); err == nil || err.Error() != "layer 0: digest mismatch" {
			t.Errorf("Err() = %v", err)
		}
		tree.Close()

		open := newTree(t, Options{}, streamLayer(file("a", "1")))
		closing := asks(open, "a")
		waiting(t, "nothing shown", closing)
		open.Close()
		answered(t, "closed", closing, syscall.ESHUTDOWN)
	})
}

// While the registry is silent for too long, what waits for it is answered EIO and what is certain is answered; when the
// registry is well again, so is everything.
func TestStreamTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := streamLayer(file("a", "1"), file("b", "2"))
		tree := newTree(t, Options{}, l)
		l.show(1)
		b := asks(tree, "b")
		waiting(t, "not shown", b)
		silent := errors.New("the registry is silent")
		l.trouble.Store(&silent)
		time.Sleep(troubleEvery)
		answered(t, "in trouble", b, syscall.EIO)
		answered(t, "in trouble, later", asks(tree, "b"), syscall.EIO)
		answered(t, "shown before", asks(tree, "a"), nil)
		if err := tree.Err(); err != nil {
			t.Errorf("Err() = %v", err)
		}
		l.trouble.Store(nil)
		b = asks(tree, "b")
		waiting(t, "well again", b)
		l.show(2)
		answered(t, "shown", b, nil)
		tree.Close()
	})
}

// What a tree answers while growing, it answers when sealed: ids above all.
func TestStreamSealedEqual(t *testing.T) {
	layers := func() []*fakeLayer {
		return []*fakeLayer{
			newLayer(dir("d"), file("d/a", "1"), file("d/b", "1").xattr("user.x", "y"), hardlink("l", "d/a"), symlink("s", "d")),
			newLayer(file("d/c", "2"), file("d/.wh.b", ""), hardlink("m", "d/a"), device("dev", '3', 1, 5)),
			newLayer(dir("d").mode(0o700), file("e/f/g", "3"), file(".wh.l", "")),
		}
	}
	sealed := dump(t, sealedTree(t, Options{}, layers()...))
	growing := &Tree{layers: []Layer{}, cache: newCache(), grow: newGrow(3), ctx: context.Background()}
	growing.fetches.New = func() any { return new(Tree).newFetch() }
	for i, l := range layers() {
		growing.layers = append(growing.layers, l)
		if err := growing.grow.add(i, l.entries); err != nil {
			t.Fatal(err)
		}
		growing.grow.end(i)
	}
	growing.grow.unsealed = true
	f, err := seal(growing.grow)
	if err != nil {
		t.Fatal(err)
	}
	check := func(f *flat) map[string]ID {
		ids := map[string]ID{}
		for i := range f.nodes {
			if i > 0 {
				ids[f.path(uint32(i))] = ID(f.nodes[i].ID)
			}
		}
		return ids
	}
	for p, id := range check(f) {
		if p == "/" {
			continue
		}
		got, a, err := growing.Walk(context.Background(), p, false)
		if err != nil || got != id {
			t.Errorf("%s is %#x growing (%v), %#x sealed", p, got, err, id)
		}
		want := f.get(id).attr()
		want.Provisional, want.Implied, want.Nlink = true, a.Implied, a.Nlink
		if a != want {
			t.Errorf("%s is %+v growing, %+v sealed", p, a, want)
		}
	}
	again := sealedTree(t, Options{}, layers()...)
	if got := dump(t, again); !reflect.DeepEqual(got, sealed) {
		t.Errorf("got %q, want %q", got, sealed)
	}
}
