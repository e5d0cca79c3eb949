package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/internal/cli"
)

func (a *app) lsCmd() *cobra.Command {
	var registry cli.Registry
	var out cli.Output
	var long, recursive bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS] IMAGE [PATH]",
		Short:   "List a directory of an image; fetches only what it shows",
		Example: "  msb-fs ls -l python /usr/bin\n  msb-fs ls -R python /etc",
		Args:    cli.Args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/"
			if len(args) == 2 {
				path = args[1]
			}
			files := []api.File{}
			err := a.readFiles(cmd, &registry, args[0], api.FileRequest{Path: path, Recursive: recursive}, "/v1/files/list", func(r io.Reader) error {
				return decodeFiles(r, &files)
			})
			if err != nil {
				return err
			}
			return out.Print(cmd.OutOrStdout(), files, func(w io.Writer) error { return printFiles(w, files, long, recursive) })
		},
	}
	registry.Register(cmd, "pull")
	out.Register(cmd.Flags())
	cmd.Flags().BoolVarP(&long, "long", "l", false, "show mode, links, owner, size, time and link target")
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "show everything below, by path")
	return cmd
}

func (a *app) catCmd() *cobra.Command {
	var registry cli.Registry
	cmd := &cobra.Command{
		Use:     "cat [OPTIONS] IMAGE PATH",
		Short:   "Print a file of an image; fetches only that file",
		Example: "  msb-fs cat python /etc/debian_version",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.readFiles(cmd, &registry, args[0], api.FileRequest{Path: args[1]}, "/v1/files/cat", func(r io.Reader) error {
				_, err := io.Copy(cmd.OutOrStdout(), r)
				return err
			})
		},
	}
	registry.Register(cmd, "pull")
	return cmd
}

func (a *app) statCmd() *cobra.Command {
	var registry cli.Registry
	var out cli.Output
	cmd := &cobra.Command{
		Use:     "stat [OPTIONS] IMAGE PATH",
		Short:   "Show what is known of one file of an image",
		Example: "  msb-fs stat python /usr/bin/env",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			files := []api.File{}
			err := a.readFiles(cmd, &registry, args[0], api.FileRequest{Path: args[1]}, "/v1/files/stat", func(r io.Reader) error {
				return decodeFiles(r, &files)
			})
			if err != nil {
				return err
			}
			if len(files) != 1 {
				return fmt.Errorf("stat %s: the daemon answered %d files", args[1], len(files))
			}
			return out.Print(cmd.OutOrStdout(), files[0], func(w io.Writer) error { return printStat(w, files[0]) })
		},
	}
	registry.Register(cmd, "pull")
	out.Register(cmd.Flags())
	return cmd
}

// readFiles sends req and hands fn the answer's body; what fn has read is complete only if it returns nil.
func (a *app) readFiles(cmd *cobra.Command, registry *cli.Registry, image string, req api.FileRequest, path string, fn func(io.Reader) error) error {
	return a.withImage(cmd, registry, image, func(client *api.Client, r api.ImageRequest) error {
		req.ImageRequest = r
		if !utf8.ValidString(req.Path) {
			req.Raw = []byte(req.Path)
		}
		body, trailer, err := client.Raw(cmd.Context(), "POST", path, req)
		if err != nil {
			return err
		}
		defer body.Close()
		if err := fn(body); err != nil {
			return err
		}
		return trailer()
	})
}

func decodeFiles(r io.Reader, files *[]api.File) error {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var f api.File
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read msb-fs daemon's answer: %w", err)
		}
		if len(f.Raw) > 0 {
			f.Path = string(f.Raw)
		}
		if len(f.RawLink) > 0 {
			f.Link = string(f.RawLink)
		}
		*files = append(*files, f)
	}
}

func printFiles(w io.Writer, files []api.File, long, paths bool) error {
	out := bufio.NewWriter(w)
	terminal := cli.IsTerminal(w)
	for _, f := range files {
		if terminal {
			f.Path, f.Link = printable(f.Path), printable(f.Link)
		}
		name := f.Path
		if !paths {
			name = name[strings.LastIndexByte(name, '/')+1:]
		}
		if long {
			printLong(out, f, name)
		} else {
			fmt.Fprintln(out, name)
		}
	}
	return out.Flush()
}

// printable is a name as a terminal may be shown it: an image is not to drive it.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, name)
}

func printLong(w io.Writer, f api.File, name string) {
	if f.Link != "" {
		name += " -> " + f.Link
	}
	size := fmt.Sprint(f.Size)
	if t := f.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		size = fmt.Sprintf("%d, %d", unix.Major(uint64(f.Rdev)), unix.Minor(uint64(f.Rdev)))
	}
	fmt.Fprintf(w, "%s %3d %5d %5d %10s %s %s\n", modeText(f.Mode), f.Nlink, f.UID, f.GID, size, f.Mtime.Local().Format("2006-01-02 15:04:05"), name)
}

// modeText is a mode as ls -l shows it.
func modeText(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	types := map[uint32]byte{unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's'}
	if t, ok := types[mode&unix.S_IFMT]; ok {
		b[0] = t
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	for _, s := range []struct {
		bit  uint32
		at   int
		char byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		if mode&s.bit == 0 {
			continue
		}
		if b[s.at] == '-' {
			s.char -= 'a' - 'A'
		}
		b[s.at] = s.char
	}
	return string(b)
}

func printStat(w io.Writer, f api.File) error {
	if cli.IsTerminal(w) {
		f.Path, f.Link = printable(f.Path), printable(f.Link)
	}
	fmt.Fprintf(w, "path   %s\nmode   %s (%04o)\nlinks  %d\nowner  %d:%d\nsize   %d\nmtime  %s\ninode  %d\n", f.Path, modeText(f.Mode), f.Mode&0o7777,
		f.Nlink, f.UID, f.GID, f.Size, f.Mtime.Local().Format(time.RFC3339Nano), f.Inode)
	if f.Link != "" {
		fmt.Fprintf(w, "link   %s\n", f.Link)
	}
	if t := f.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		fmt.Fprintf(w, "device %d:%d\n", unix.Major(uint64(f.Rdev)), unix.Minor(uint64(f.Rdev)))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Xattrs)) {
		fmt.Fprintf(w, "xattr  %s=%q\n", printable(name), f.Xattrs[name])
	}
	return nil
}
