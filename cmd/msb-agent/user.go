package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookupUser resolves user[:group] from the image's own /etc/passwd and /etc/group as Docker does: a number needs
// no entry, a name does; without a group the primary one and all that list the user count; with one, only that. The
// primary group is one of the supplementary groups too, as after login(1): without it a set-group-id program could drop
// what a file's mode denies to that group (CVE-2022-36109).
func lookupUser(spec string, extra []string) (identity, error) {
	passwd, err := openOrEmpty("/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	defer passwd.Close()
	group, err := openOrEmpty("/etc/group")
	if err != nil {
		return identity{}, err
	}
	defer group.Close()
	return resolveUser(spec, extra, passwd, group)
}

func openOrEmpty(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return f, err
}

func resolveUser(spec string, extra []string, passwd, group io.Reader) (identity, error) {
	user, groupName, _ := strings.Cut(spec, ":")
	hasGroup := groupName != ""
	if user == "" {
		user = "0"
	}
	id := identity{home: "/"}
	number, err := strconv.ParseUint(user, 10, 31)
	isNumber := err == nil
	id.uid = uint32(number)
	name, found := "", false
	eachLine(passwd, 7, func(f []string) bool {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || (f[0] != user && !(isNumber && uid == number)) {
			return true
		}
		name, found = f[0], true
		id.uid, id.gid = uint32(uid), uint32(gid)
		if f[5] != "" {
			id.home = f[5]
		}
		return false
	})
	if !found && !isNumber {
		return identity{}, fmt.Errorf("user %q: no such user in the image's /etc/passwd", user)
	}
	wanted := slices.Clone(extra)
	if hasGroup {
		wanted = append(wanted, groupName)
	}
	gids := make(map[string]uint32)
	eachLine(group, 4, func(f []string) bool {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return true
		}
		for _, w := range wanted {
			if _, have := gids[w]; !have && (f[0] == w || f[2] == w) {
				gids[w] = uint32(gid)
			}
		}
		if name != "" && !hasGroup && slices.Contains(strings.Split(f[3], ","), name) {
			id.groups = append(id.groups, uint32(gid))
		}
		return true
	})
	for i, w := range wanted {
		gid, ok := gids[w]
		if !ok {
			n, err := strconv.ParseUint(w, 10, 31)
			if err != nil {
				return identity{}, fmt.Errorf("group %q: no such group in the image's /etc/group", w)
			}
			gid = uint32(n)
		}
		if i == len(extra) {
			id.gid = gid
			continue
		}
		id.groups = append(id.groups, gid)
	}
	id.groups = distinct(append([]uint32{id.gid}, id.groups...))
	return id, nil
}

// distinct drops all but the first of equal numbers.
func distinct(gids []uint32) []uint32 {
	out := gids[:0]
	for _, gid := range gids {
		if !slices.Contains(out, gid) {
			out = append(out, gid)
		}
	}
	return out
}

// maxLine bounds a line of /etc/passwd and /etc/group, bytes: a group may list thousands of users. Longer ones are passed over.
const maxLine = 1 << 20

// eachLine calls fn with the fields of every well-formed line until it returns false.
func eachLine(r io.Reader, fields int, fn func([]string) bool) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		raw, err := in.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = in.ReadSlice('\n')
		}
		line := strings.TrimSpace(string(raw))
		if f := strings.Split(line, ":"); !long && line != "" && line[0] != '#' && len(f) >= fields && !fn(f) {
			return
		}
		if err != nil {
			return
		}
	}
}
