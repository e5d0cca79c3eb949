package layer

import (
	"strings"
)

const (
	whiteoutPrefix = ".wh."         // of a name that hides another: image-spec, layer.md, "Whiteouts"
	whiteoutMeta   = ".wh..wh."     // of what aufs keeps for itself
	whiteoutOpaque = ".wh..wh..opq" // hides all that lower layers have in its directory
)

// cleanName turns a name as a tar has it into the name of an Entry: no leading or trailing slash, no "." and no "..". A
// name that would leave the root is refused.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refused("name %q has a NUL", short(name))
	}
	if len(name) > 4*MaxPath {
		return "", refused("name %q is longer than %d bytes", short(name), MaxPath)
	}
	if clean(name) {
		return name, checkName(name)
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", refused("name %q leaves the layer's root", short(name))
			}
			parts = parts[:len(parts)-1]
		default:
			parts = append(parts, part)
		}
	}
	name = strings.Join(parts, "/")
	return name, checkName(name)
}

// clean says whether name is already as cleanName would return it: the usual case, which costs no allocation.
func clean(name string) bool {
	if name == "" || name[len(name)-1] == '/' {
		return name == ""
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if part := name[start:i]; part == "" || part == "." || part == ".." {
			return false
		}
		start = i + 1
	}
	return true
}

// checkName holds a cleaned name against the limits.
func checkName(name string) error {
	if len(name) > MaxPath {
		return refused("name %q is longer than %d bytes", short(name), MaxPath)
	}
	depth, start := 1, 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if i-start > MaxName {
			return refused("name %q has a component longer than %d bytes", short(name), MaxName)
		}
		start = i + 1
		depth++
	}
	if depth > MaxDepth+1 {
		return refused("name %q is deeper than %d", short(name), MaxDepth)
	}
	return nil
}

// whiteout decodes a cleaned name. skip is true for what aufs keeps for itself and no unpacker shows.
func whiteout(name string) (target string, kind Kind, skip bool, err error) {
	if !strings.Contains(name, whiteoutPrefix) {
		return name, Plain, false, nil
	}
	dir, base := split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutMeta) {
			return "", Plain, true, nil
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return "", Plain, false, refused("name %q is inside of a whiteout", short(name))
		}
	}
	switch {
	case base == whiteoutOpaque:
		return dir, Opaque, false, nil
	case strings.HasPrefix(base, whiteoutMeta):
		return "", Plain, true, nil
	case !strings.HasPrefix(base, whiteoutPrefix):
		return name, Plain, false, nil
	}
	hidden := base[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return "", Plain, false, refused("whiteout %q hides no name", short(name))
	}
	return join(dir, hidden), Whiteout, false, nil
}

// split cuts a cleaned name into its parent and its last component.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// short is a name as an error shows it.
func short(name string) string {
	if len(name) > 120 {
		return name[:100] + "..."
	}
	return name
}
