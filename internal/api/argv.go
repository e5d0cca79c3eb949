package api

import v1 "github.com/google/go-containerregistry/pkg/v1"

// Argv is what a container of an image runs, as Docker has it: args replace the image's CMD; an entrypoint replaces the image's
// and drops its CMD, "" being none.
func Argv(image v1.Config, entrypoint *string, args []string) []string {
	head, tail := image.Entrypoint, image.Cmd
	if entrypoint != nil {
		head, tail = nil, nil
		if *entrypoint != "" {
			head = []string{*entrypoint}
		}
	}
	if len(args) > 0 {
		tail = args
	}
	return append(append([]string{}, head...), tail...)
}
