package main

import (
	"fmt"
	"strings"
	"testing"
)

const passwd = `# comment
root:x:0:0:root:/root:/bin/sh
broken line
nohome:x:7:70:::
alice:x:1000:1000::/home/alice:/bin/sh
bad:x:abc:1::/:/bin/sh
4000:x:4001:4002::/home/number:/bin/sh
`

const group = `root:x:0:
alice:x:1000:
staff:x:50:bob,alice
wheel:x:10:alice
other:x:60:alicex
short:x
`

func TestResolveUser(t *testing.T) {
	for _, c := range []struct {
		spec  string
		extra []string
		want  string // uid gid groups home, or what the error speaks of
	}{
		{"", nil, "0 0 [0] /root"},
		{"root", nil, "0 0 [0] /root"},
		{"0", nil, "0 0 [0] /root"},
		{"alice", nil, "1000 1000 [1000 50 10] /home/alice"},
		{"1000", nil, "1000 1000 [1000 50 10] /home/alice"},
		{"alice:staff", nil, "1000 50 [50] /home/alice"},
		{"alice:99", nil, "1000 99 [99] /home/alice"},
		{"alice:", nil, "1000 1000 [1000 50 10] /home/alice"},
		{":staff", nil, "0 50 [50] /root"},
		{"1234", nil, "1234 0 [0] /"},
		{"1234:50", nil, "1234 50 [50] /"},
		{"4000", nil, "4001 4002 [4002] /home/number"}, // a name that looks like a number is the name
		{"nohome", nil, "7 70 [70] /"},
		{"alice", []string{"60", "wheel", "77"}, "1000 1000 [1000 50 10 60 77] /home/alice"},
		{"bob", nil, `user "bob"`},
		{"bad", nil, `user "bad"`},
		{"-1", nil, `user "-1"`},
		{"4294967296", nil, `user "4294967296"`},
		{"alice:nosuch", nil, `group "nosuch"`},
		{"alice", []string{"nosuch"}, `group "nosuch"`},
	} {
		id, err := resolveUser(c.spec, c.extra, strings.NewReader(passwd), strings.NewReader(group))
		got := fmt.Sprint(id.uid, " ", id.gid, " ", id.groups, " ", id.home)
		if err != nil {
			got = err.Error()
		}
		if (err == nil && got != c.want) || (err != nil && !strings.HasPrefix(got, c.want)) {
			t.Errorf("%q %v: %s, want %s", c.spec, c.extra, got, c.want)
		}
	}
}

// A line longer than any that is meant hides none of the others.
func TestOverlongLines(t *testing.T) {
	long := strings.Repeat("a", 3*maxLine)
	for _, text := range []string{long + "\n" + passwd, passwd + long, passwd + long + "\n", passwd + "x:" + long + ":1:1:::\nlast:x:1:1::/:"} {
		if id, err := resolveUser("alice", nil, strings.NewReader(text), strings.NewReader(long+"\n"+group)); err != nil || len(id.groups) != 3 {
			t.Errorf("%+v, %v", id, err)
		}
	}
	if id, err := resolveUser("last", nil, strings.NewReader("x:"+long+":2:2:::\nlast:x:5:6::/home"+":"), strings.NewReader("")); err != nil || id.uid != 5 {
		t.Errorf("%+v, %v", id, err)
	}
}
