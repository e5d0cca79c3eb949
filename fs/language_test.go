package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// libCache is an /etc/ld.so.cache with these names and paths, one after the other.
func libCache(pairs ...string) string {
	n := len(pairs) / 2
	text := uint32(48 + 24*n)
	var head, strs bytes.Buffer
	head.WriteString("glibc-ld.so.cache1.1")
	binary.Write(&head, binary.LittleEndian, [7]uint32{uint32(n)})
	for i := range n {
		at := [2]uint32{}
		for k := range 2 {
			at[k] = text + uint32(strs.Len())
			strs.WriteString(pairs[2*i+k] + "\x00")
		}
		binary.Write(&head, binary.LittleEndian, [6]uint32{3, at[0], at[1]})
	}
	return head.String() + strs.String()
}

func TestLibCache(t *testing.T) {
	good := libCache("libc.so.6", "/lib/a/libc.so.6", "libz.so.1", "/opt/libz.so.1", "libc.so.6", "/lib/b/libc.so.6")
	old := "ld.so-1.7.0\x00" + strings.Repeat("\x00", 36)
	for _, text := range []string{good, old + good} {
		libs := parseLibCache([]byte(text))
		if !slices.Equal(libs["libc.so.6"], []string{"/lib/a/libc.so.6", "/lib/b/libc.so.6"}) || !slices.Equal(libs["libz.so.1"], []string{"/opt/libz.so.1"}) {
			t.Errorf("%v", libs)
		}
	}
	for cut := range len(good) {
		parseLibCache([]byte(good[:cut]))
	}
	many := []byte(good)
	binary.LittleEndian.PutUint32(many[20:], 1<<31)
	binary.LittleEndian.PutUint32(many[48+4:], 1<<31)
	if libs := parseLibCache(many); len(libs["libz.so.1"]) != 1 {
		t.Errorf("a list that lies: %v", libs)
	}
	if parseLibCache(nil) != nil || parseLibCache([]byte(strings.Repeat("x", 100))) != nil {
		t.Error("what is no list is one")
	}
}

// What is predicted is what the language reads, and nothing beside it; scripts that lead in circles end.
func TestPredictLanguages(t *testing.T) {
	py := "usr/lib/python3.12/"
	tree := sealedTree(t, Options{}, newLayer(
		file("bin/sh", "ELF").mode(0o755), file("usr/bin/serve", "#!/bin/sh\nexec serve \"$@\"\n").mode(0o755), file("usr/bin/other", "x").mode(0o755),
		file("entry.sh", "#!/bin/sh\nset -e # other\necho serve; serve --all\nexec \"$@\"\n").mode(0o755), file("etc/conf", "x"), file("etc/unused", "x"),
		file("usr/bin/python3.12", "ELF").mode(0o755), symlink("usr/bin/python3", "python3.12"),
		file("app.py", "import json, os.path as p; from mine.sub import x\n"),
		file(py+"encodings/__pycache__/__init__.cpython-312.pyc", "1"), file(py+"encodings/__pycache__/utf_8.cpython-312.pyc", "1"), file(py+"encodings/__pycache__/cp037.cpython-312.pyc", "1"),
		file(py+"json/__pycache__/__init__.cpython-312.pyc", "1"), file(py+"json/__pycache__/decoder.cpython-312.pyc", "1"), file(py+"re/__init__.py", "1"),
		file(py+"lib-dynload/_json.cpython-312-x86_64-linux-gnu.so", "1"), file(py+"site-packages/mine/__init__.py", "1"), file(py+"site-packages/mine/sub.py", "1"), file(py+"site-packages/mine/not.py", "1"),
		file("opt/jvm/bin/java", "ELF").mode(0o755), file("opt/jvm/lib/jvm.cfg", "1"), file("opt/jvm/lib/server/libjvm.so", "1"), file("opt/jvm/lib/modules", "1"), file("opt/jvm/lib/src.zip", "1"),
		file("data.jar", "1"),
	))
	for _, tt := range []struct{ argv, want string }{
		{"/entry.sh other /etc/conf", "/bin/sh /entry.sh /etc/conf /usr/bin/other /usr/bin/serve"},
		{"sh -c serve", "/bin/sh /usr/bin/serve"},
		{"python3 /app.py", "/app.py /usr/bin/python3.12 /" + py + "encodings/__pycache__/__init__.cpython-312.pyc /" + py + "encodings/__pycache__/utf_8.cpython-312.pyc /" +
			py + "json/__pycache__/__init__.cpython-312.pyc /" + py + "json/__pycache__/decoder.cpython-312.pyc /" + py + "lib-dynload/_json.cpython-312-x86_64-linux-gnu.so /" +
			py + "re/__init__.py /" + py + "site-packages/mine/__init__.py /" + py + "site-packages/mine/sub.py"},
		{"/opt/jvm/bin/java -Dx=/etc/conf -jar /data.jar", "/data.jar /etc/conf /opt/jvm/bin/java /opt/jvm/lib/jvm.cfg /opt/jvm/lib/modules /opt/jvm/lib/server/libjvm.so"},
		{"nothing", ""},
	} {
		var got []string
		for _, c := range tree.Predict(context.Background(), strings.Fields(tt.argv), nil) {
			got = append(got, tree.Path(c.ID))
		}
		slices.Sort(got)
		if g := strings.Join(slices.Compact(got), " "); g != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.argv, g, tt.want)
		}
	}
}

// What is predicted is brought, each chunk once, while the rest is being found out.
func TestPrefetch(t *testing.T) {
	l := newLayer(file("bin/sh", "ELF").mode(0o755), file("run", "#!/bin/sh\nserve /etc/conf\n").mode(0o755), file("usr/bin/serve", "x").mode(0o755), file("etc/conf", "y"), file("other", "z"))
	tree := sealedTree(t, Options{}, l)
	want := tree.Predict(context.Background(), []string{"/run", "/etc/conf"}, nil)
	l = newLayer(file("bin/sh", "ELF").mode(0o755), file("run", "#!/bin/sh\nserve /etc/conf\n").mode(0o755), file("usr/bin/serve", "x").mode(0o755), file("etc/conf", "y"), file("other", "z"))
	tree = sealedTree(t, Options{}, l)
	if err := tree.Prefetch(context.Background(), []string{"/run", "/etc/conf"}, nil); err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, nums := range l.brought {
		got = append(got, nums...)
	}
	if len(want) != 4 || len(got) != len(want) {
		t.Errorf("%d chunks predicted, %d brought", len(want), len(got))
	}
	if n := len(tree.Profile()); n != 0 {
		t.Errorf("it counts as %d touches", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := tree.Prefetch(ctx, []string{"/run"}, nil); err == nil {
		t.Error("a cancelled one says nothing")
	}
}
