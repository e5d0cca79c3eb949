package msb

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/vmboot"
)

// defaultPath is what Docker gives a process whose image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process is the main process of a sandbox: c over the image's config (OCI image-spec, config.md), as Docker combines them.
func (c Command) process(config []byte, hostname string) (vmboot.Process, error) {
	var image v1.ConfigFile
	if err := json.Unmarshal(config, &image); err != nil {
		return vmboot.Process{}, fmt.Errorf("read image config: %w", err)
	}
	p := vmboot.Process{Dir: image.Config.WorkingDir, User: image.Config.User, TTY: c.TTY, MakeDir: true}
	if p.Args = api.Argv(image.Config, c.Entrypoint, c.Args); len(p.Args) == 0 {
		return p, errors.New("the image names no command to run: give one after the image")
	}
	base := []string{defaultPath, "HOSTNAME=" + hostname}
	if c.TTY {
		base = append(base, "TERM=xterm")
	}
	p.Env = mergeEnv(base, image.Config.Env, c.Env)
	if c.Dir != "" {
		p.Dir = c.Dir
	}
	if c.User != "" {
		p.User = c.User
	}
	return p, nil
}

// mergeEnv joins lists of K=V; later values replace earlier ones of the same name in place.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				out[i] = kv
				continue
			}
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}
