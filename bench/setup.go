package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
)

// packages are the Debian packages of the systems that are measured, and of what makes and looks at images and reports.
func packages() []string {
	return []string{
		"containerd", "podman", "skopeo", "umoci", "runc", "mmdebstrap", "fuse-overlayfs", "qemu-system-x86", "busybox-static", "e2fsprogs",
		"stargz-snapshotter", "chromium",
	}
}

func setupCommand() *cobra.Command {
	var bin, images, formKeys string
	var noPackages bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Install what the bench needs and make its images, once",
		Long: "Install the Debian packages that are missing (as root) and make the images in every form, in $XDG_CACHE_HOME/msb-fs/images.\n" +
			"It takes about fifteen minutes and 6 GB the first time; what is there is left alone.",
		Example: "  go run ./bench setup\n  go run ./bench setup --images python --forms gzip,estargz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !noPackages {
				if err := installPackages(cmd.Context()); err != nil {
					return err
				}
			}
			ws, err := chooseWorkloads(images)
			if err != nil {
				return err
			}
			fs, err := chooseForms(formKeys)
			if err != nil {
				return err
			}
			return makeImages(cmd.Context(), bin, ws, fs)
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "bin", "the directory of msb-fs and msb-launch")
	cmd.Flags().StringVar(&images, "images", "", "the images to make (default all)")
	cmd.Flags().StringVar(&formKeys, "forms", "gzip,estargz,zstd,zstd-chunked,gzip+index,gzip+soci", "the forms to make")
	cmd.Flags().BoolVar(&noPackages, "no-packages", false, "install nothing")
	return cmd
}

// chooseWorkloads looks up images by name; "" is all.
func chooseWorkloads(names string) ([]workload, error) {
	if names == "" {
		return workloads(), nil
	}
	return choose("image", names, workloads(), func(w workload) string { return w.name })
}

// makeImages makes each image in each form. A form that cannot be made here is said and passed over.
func makeImages(ctx context.Context, bin string, ws []workload, fs []form) error {
	s, err := newStore(bin, os.Stderr)
	if err != nil {
		return err
	}
	if err := adopt(); err != nil {
		return err
	}
	for _, w := range ws {
		if os.Getuid() == 0 {
			if _, err := s.facts(ctx, w); err != nil {
				return err
			}
		}
		for _, f := range fs {
			img, err := s.image(ctx, w, f)
			if errors.Is(err, errNotBuilt) {
				fmt.Fprintln(os.Stderr, err)
				continue
			}
			if err != nil {
				return err
			}
			fmt.Printf("%-12s %-12s %3d layers %8.1f MB  %s\n", w.name, f.key, img.layers, float64(img.size)/1e6, img.digest.Hex[:12])
		}
	}
	return nil
}

// installPackages installs the packages that are missing. One that this system's archive does not have, or that does not
// install, is said and passed over: what needs it is then skipped by name.
func installPackages(ctx context.Context) error {
	var missing []string
	for _, p := range packages() {
		out, _ := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", p).Output()
		if strings.TrimSpace(string(out)) != "installed" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("missing packages; run as root: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	for _, p := range missing {
		fmt.Fprintln(os.Stderr, "installing", p)
		cmd := exec.CommandContext(ctx, "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", p)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if said, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s is not installed: %v: %s\n", p, err, lastLine(said))
		}
	}
	return ctx.Err()
}

// lastLine is the last line of what a program has said.
func lastLine(said []byte) string {
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	return lines[len(lines)-1]
}
