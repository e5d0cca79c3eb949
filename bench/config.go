package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What runtimes make of an image's configuration (https://github.com/opencontainers/image-spec/blob/main/conversion.md).

// argv is the image's command.
func (i *image) argv() []string {
	return append(append([]string{}, i.config.Entrypoint...), i.config.Cmd...)
}

// cwd is the directory that it starts in.
func (i *image) cwd() string {
	if i.config.WorkingDir == "" {
		return "/"
	}
	return i.config.WorkingDir
}

// env is the image's environment, with the PATH that runtimes give to images that say none.
func (i *image) env() []string {
	if slices.ContainsFunc(i.config.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		return i.config.Env
	}
	return append([]string{debianPath}, i.config.Env...)
}

// named says whether it takes the image's files to know who the user is.
func (i *image) named() bool {
	user, group, _ := strings.Cut(i.config.User, ":")
	_, err1 := strconv.ParseUint(user, 10, 32)
	_, err2 := strconv.ParseUint(group, 10, 32)
	return user != "" && (err1 != nil || group != "" && err2 != nil)
}

// user is who the command runs as: "", or user[:group] by number or as the image's files in root name them.
func (i *image) user(root string) (uid, gid uint64, err error) {
	user, group, _ := strings.Cut(i.config.User, ":")
	if user == "" {
		return 0, 0, nil
	}
	if uid, err = strconv.ParseUint(user, 10, 32); err != nil {
		f, err := fieldsOf(root, "passwd", user)
		if err != nil {
			return 0, 0, err
		}
		if uid, err = strconv.ParseUint(f[2], 10, 32); err != nil {
			return 0, 0, fmt.Errorf("user %s of the image: %w", user, err)
		}
		if gid, err = strconv.ParseUint(f[3], 10, 32); err != nil {
			return 0, 0, fmt.Errorf("user %s of the image: %w", user, err)
		}
	}
	if group == "" {
		return uid, gid, nil
	}
	if gid, err = strconv.ParseUint(group, 10, 32); err != nil {
		f, err := fieldsOf(root, "group", group)
		if err != nil {
			return 0, 0, err
		}
		gid, err = strconv.ParseUint(f[2], 10, 32)
		return uid, gid, err
	}
	return uid, gid, nil
}

// fieldsOf is the line of name in an image's passwd(5) or group(5). root is not trusted: a link in it is not followed out of it.
func fieldsOf(root, file, name string) ([]string, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	raw, err := dir.ReadFile(filepath.Join("etc", file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for user %s: %w", name, err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); f[0] == name && len(f) > 3 {
			return f, nil
		}
	}
	return nil, fmt.Errorf("the image wants to run as %s, which its /etc/%s does not know", name, file)
}
