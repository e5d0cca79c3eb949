package msb_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/microsandbox/msb-fs"

// mayImport says which packages of this module a package may import; a trailing /... is everything below. Imports point
// one way: cmd -> vmboot, cow -> fs -> layer, chunkcache -> remote, and the arrows within the libraries are interfaces
// that the one who uses them declares, so most of them import nothing of each other at all.
var mayImport = map[string][]string{
	"remote":              {"internal/priority"},
	"chunkcache":          {"internal/priority"},
	"layer":               {"internal/priority"},
	"fs":                  {"layer", "internal/priority"},
	"cow":                 {"fs", "layer", "internal/openat", "internal/priority"},
	"vmboot":              {"fs", "vmboot/..."},
	"vmboot/agentproto":   {},
	"vmboot/hostdir":      {"internal/openat"},
	"vmboot/tarcopy":      {},
	"vmboot/usernet":      {},
	"vmboot/virtiofs":     {"fs"},
	"internal/ctxio":      {},
	"internal/db":         {},
	"internal/openat":     {},
	"internal/priority":   {},
	"internal/api":        {},
	"internal/cli":        {"internal/api", "remote"},
	"internal/daemon":     {"remote", "layer", "chunkcache", "fs", "cow", "vmboot/...", "internal/api", "internal/ctxio", "internal/db", "internal/ociarchive", "internal/priority"},
	"internal/ociarchive": {"internal/ctxio", "remote"},
	"":                    {"internal/api", "vmboot/...", "remote"},
	"cmd/msb-agent":       {"vmboot/agentproto", "vmboot/tarcopy"},
	"cmd/msb-fs":          {"", "internal/api", "internal/cli", "internal/daemon", "remote", "trace"},
	"cmd/msb-launch":      {"", "internal/api", "internal/cli", "remote", "vmboot/..."},
	"internal/registry":   {},
	"trace":               {"trace/bpf"},
	"trace/bpf":           {},
}

// mayNotImport says what a package knows nothing of, directly. Command lines and metrics are kept out of all but cmd and
// internal/cli by the test itself.
var mayNotImport = map[string][]string{
	"fs":         {"net/http", "github.com/dgraph-io/badger/..."},
	"cow":        {"net/http", "github.com/dgraph-io/badger/..."},
	"layer":      {"net/http", "github.com/dgraph-io/badger/...", "github.com/hanwen/go-fuse/..."},
	"chunkcache": {"net/http", "github.com/hanwen/go-fuse/..."},
	"remote":     {"github.com/dgraph-io/badger/...", "github.com/hanwen/go-fuse/..."},
	"vmboot":     {"net/http", "github.com/dgraph-io/badger/..."},
}

var commandLine = []string{
	"flag", "github.com/spf13/...", "github.com/vbauerster/...", "expvar", "log/syslog",
	"github.com/sirupsen/...", "github.com/prometheus/...", "go.opentelemetry.io/...",
}

// pkg is what this test reads of go list's answer.
type pkg struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	var said strings.Builder
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...")
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, said.String())
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// in says whether path is one of patterns.
func in(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		tree, ok := strings.CutSuffix(p, "/...")
		return path == p || ok && (path == tree || strings.HasPrefix(path, tree+"/"))
	})
}

func TestImportsPointOneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		seen[name] = true
		allowed, ruled := mayImport[name]
		for _, i := range p.Imports {
			own, ours := strings.CutPrefix(i, module)
			own = strings.TrimPrefix(own, "/")
			if ours && ruled && !in(own, allowed) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
			if ours && strings.HasPrefix(own, "cmd/") {
				t.Errorf("%s imports a command: %s", p.ImportPath, i)
			}
			if in(i, mayNotImport[name]) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
			if in(i, commandLine) && ruled && !strings.HasPrefix(name, "cmd/") && name != "internal/cli" {
				t.Errorf("%s is no command and imports %s", p.ImportPath, i)
			}
			if i == "log/slog" && !strings.HasPrefix(name, "cmd/") && name != "internal/daemon" {
				t.Errorf("%s logs", p.ImportPath)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("there is no package %q: the rule for it holds nothing", name)
		}
	}
}

// TestLibrariesKeepNoGlobalState looks for init functions and for what writes to the global loggers.
func TestLibrariesKeepNoGlobalState(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, f), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Recv == nil && n.Name.Name == "init" {
						t.Errorf("%s: an init function", set.Position(n.Pos()))
					}
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if ok && (x.Name == "log" || x.Name == "slog") && imports(file, x.Name) && globalLog(n.Sel.Name) {
						t.Errorf("%s: %s.%s logs globally", set.Position(n.Pos()), x.Name, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// imports says whether name is a standard logging package in file.
func imports(file *ast.File, name string) bool {
	return slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
		path := strings.Trim(i.Path.Value, `"`)
		return path == name || path == "log/"+name
	})
}

func globalLog(f string) bool {
	for _, p := range []string{"Print", "Fatal", "Panic", "Set", "Default", "Debug", "Info", "Warn", "Error"} {
		if strings.HasPrefix(f, p) {
			return true
		}
	}
	return false
}
