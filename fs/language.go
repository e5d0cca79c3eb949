package fs

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// What interpreters and virtual machines read before the program's own first line, and do not say in their ELF files.

// language adds what the program in file id, run with argv, will read because of what it is.
func (p *predictor) language(id ID, argv, env []string, depth int) {
	at := p.t.Path(id)
	base := path.Base(at)
	switch {
	case slices.Contains([]string{"sh", "dash", "bash", "ash"}, base):
		p.shell(argv, env, depth)
	case pythonName.MatchString(base):
		p.python(at, argv)
	case base == "java":
		p.java(path.Dir(path.Dir(at)))
	}
	p.arguments(argv)
	for _, name := range []string{"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime"} { // who am I, and when
		p.file(name, 64<<10)
	}
}

// arguments adds the files that the command line names: scripts, configuration.
func (p *predictor) arguments(argv []string) {
	for _, a := range argv[min(1, len(argv)):] {
		if _, v, ok := strings.Cut(a, "="); ok && strings.HasPrefix(a, "-") {
			a = v
		}
		if strings.HasPrefix(a, "/") {
			p.file(a, maxArgument)
		}
	}
}

// maxCommands is how many words of a shell script are looked up.
const maxCommands = 128

// shell adds the programs that a shell script names, and what it is given to run itself, as an entry point's script is. It does not
// understand the script: a word that is a program's name counts.
func (p *predictor) shell(argv, env []string, depth int) {
	text, rest := p.text(argv)
	if len(rest) > 0 {
		p.program(rest[0], rest, env, depth+1)
	}
	builtin := strings.Fields("echo printf test [ true false kill pwd . :")
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if line, _, _ = strings.Cut(line, "#"); len(seen) >= maxCommands {
			return
		}
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n;|&()`\"'={}<>$", r) }) {
			if !seen[word] && len(seen) < maxCommands && len(word) <= maxName && !strings.HasPrefix(word, "-") && !slices.Contains(builtin, word) {
				seen[word] = true
				p.program(word, nil, env, depth+1)
			}
		}
	}
}

// text is the program that an interpreter is given, behind -c or in the first file that is named, and the arguments behind it.
func (p *predictor) text(argv []string) (text string, rest []string) {
	for i := 1; i < len(argv); i++ {
		switch a := argv[i]; {
		case a == "-c" && i+1 < len(argv):
			return argv[i+1], nil
		case strings.HasPrefix(a, "-"):
		default:
			id, size, ok := p.find(a)
			if !ok {
				return "", nil
			}
			b := make([]byte, min(size, maxArgument))
			if _, err := p.t.ReadAt(p.ctx, id, b, 0); err != nil {
				return "", nil
			}
			return string(b), argv[i+1:]
		}
	}
	return "", nil
}

// maxArgument is the most that is predicted of a file that the command line names, bytes: a script is read whole, a data file perhaps not.
const maxArgument = 1 << 20

// file adds the first bytes of a file, if there is one.
func (p *predictor) file(name string, most int64) bool {
	id, size, ok := p.find(name)
	return ok && p.add(id, min(size, most))
}

// java adds what a JVM loads by name (HotSpot, os::init_system_properties_values, and what java.base needs): its libraries, the archive of
// classes that it maps, and the start of its modules with their index.
func (p *predictor) java(home string) {
	lib := path.Join(home, "lib")
	p.file(path.Join(lib, "jvm.cfg"), maxArgument)
	for _, name := range []string{"server/libjvm.so", "libjimage.so", "libjava.so", "libzip.so", "libnio.so", "libnet.so"} {
		if id, size, ok := p.find(path.Join(lib, name)); ok && p.add(id, size) {
			p.binary(id, size)
		}
	}
	p.file(path.Join(lib, "modules"), 4<<20)
	p.file(path.Join(lib, "server/classes.jsa"), maxPredict)
	p.file(path.Join(lib, "tzdb.dat"), maxArgument)
	p.file(path.Join(home, "conf/security/java.security"), maxArgument)
}

var (
	pythonName   = regexp.MustCompile(`^python(\d(\.\d+)?)?$`)
	pythonImport = regexp.MustCompile(`(?m)^[ \t]*(?:import[ \t]+([\w., \t]+)|from[ \t]+([\w.]+)[ \t]+import)`)
)

// pythonFirst are the modules that an interpreter imports before anything else. From 3.11 on most of them are frozen into it
// (Python/frozen.c).
func pythonFirst(version string) []string {
	first := []string{"encodings", "encodings.aliases", "encodings.utf_8", "sitecustomize"}
	if _, minor, _ := strings.Cut(version, "."); len(minor) == 1 || minor == "10" {
		first = append(first, "codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "_collections_abc", "_sitebuiltins")
	}
	return first
}

// pythonBrings are what modules of the standard library import in turn, of those that most programs come by.
func pythonBrings(module string) []string {
	return strings.Fields(map[string]string{
		"argparse":           "re gettext shutil",
		"asyncio":            "asyncio.base_events asyncio.events asyncio.coroutines asyncio.futures asyncio.tasks asyncio.unix_events asyncio.selector_events concurrent.futures socket ssl logging",
		"base64":             "re struct",
		"collections":        "keyword operator reprlib",
		"concurrent.futures": "concurrent.futures._base logging threading",
		"contextlib":         "collections functools types",
		"copy":               "types weakref copyreg",
		"csv":                "re types _csv io",
		"dataclasses":        "re copy types inspect keyword functools",
		"datetime":           "_datetime",
		"decimal":            "_decimal",
		"email":              "email.parser email.feedparser email.message email._policybase email.header",
		"enum":               "types operator functools",
		"functools":          "collections reprlib types",
		"hashlib":            "_hashlib _blake2",
		"http":               "enum",
		"http.client":        "http email urllib.parse socket",
		"inspect":            "ast dis opcode enum importlib.machinery linecache tokenize token re",
		"json":               "json.decoder json.scanner json.encoder re _json",
		"logging":            "re traceback warnings weakref collections string threading",
		"pathlib":            "fnmatch ntpath urllib.parse re",
		"pickle":             "struct re copyreg _compat_pickle",
		"platform":           "re functools itertools",
		"random":             "warnings bisect hashlib math",
		"re":                 "enum re._compiler re._parser re._constants re._casefix functools copyreg sre_compile sre_parse sre_constants",
		"shutil":             "fnmatch zlib bz2 lzma",
		"socket":             "selectors enum _socket",
		"ssl":                "socket base64 _ssl",
		"string":             "re collections",
		"subprocess":         "contextlib selectors signal threading locale",
		"tempfile":           "shutil random weakref",
		"threading":          "_weakrefset functools",
		"traceback":          "collections linecache textwrap contextlib",
		"typing":             "collections contextlib functools operator re types",
		"unittest":           "unittest.case unittest.suite unittest.loader unittest.main unittest.result difflib logging argparse",
		"urllib.parse":       "urllib re types warnings",
		"urllib.request":     "urllib urllib.error urllib.response http.client hashlib tempfile ssl",
		"warnings":           "re traceback",
		"weakref":            "_weakrefset",
	}[module])
}

// python adds what an interpreter imports at first, and what the script or command that it is given imports by name.
func (p *predictor) python(at string, argv []string) {
	version := strings.TrimPrefix(path.Base(at), "python")
	if !strings.Contains(version, ".") {
		return
	}
	prefix := path.Join(path.Dir(path.Dir(at)), "lib")
	lib := path.Join(prefix, "python"+version)
	tag := ".cpython-" + strings.ReplaceAll(version, ".", "") + ".pyc"
	dirs := []string{lib, path.Join(lib, "lib-dynload"), path.Join(prefix, "python3/dist-packages"), path.Join(lib, "site-packages"), path.Join(lib, "dist-packages")}
	for _, m := range pythonFirst(version) {
		p.module(dirs[:1], m, tag)
	}
	p.file(path.Join("/etc", "python"+version, "sitecustomize.py"), maxArgument)
	p.file("/usr/lib/locale/C.utf8/LC_CTYPE", maxArgument)
	todo := p.pythonImports(argv)
	for seen := map[string]bool{}; len(todo) > 0 && len(seen) < maxPredicted; todo = todo[1:] {
		if m := todo[0]; !seen[m] {
			seen[m] = true
			p.module(dirs, m, tag)
			todo = append(todo, pythonBrings(m)...)
		}
	}
}

// pythonImports are the modules that the program text imports, which is behind -c or in the first file that is named.
func (p *predictor) pythonImports(argv []string) (modules []string) {
	if i := slices.Index(argv, "-m"); i > 0 && i+1 < len(argv) {
		return []string{argv[i+1], argv[i+1] + ".__main__"}
	}
	text, _ := p.text(argv)
	text = strings.ReplaceAll(text, ";", "\n")
	for _, m := range pythonImport.FindAllStringSubmatch(text, maxPredicted) {
		if m[2] != "" {
			modules = append(modules, m[2])
			continue
		}
		for name := range strings.SplitSeq(m[1], ",") {
			if words := strings.Fields(name); len(words) > 0 {
				modules = append(modules, words[0])
			}
		}
	}
	return modules
}

// module adds a Python module as it is found in dirs: compiled, as an extension, or its source; of a package within one both.
func (p *predictor) module(dirs []string, name, tag string) {
	parts := strings.Split(name, ".")
	if len(parts) > 8 || slices.Contains(parts, "") {
		return
	}
	for _, dir := range dirs {
		for i := range parts {
			at, last := path.Join(dir, path.Join(parts[:i+1]...)), i == len(parts)-1
			isPackage := p.file(path.Join(at, "__pycache__", "__init__"+tag), maxArgument) || p.file(path.Join(at, "__init__.py"), maxArgument)
			if last && !isPackage && !p.file(path.Join(path.Dir(at), "__pycache__", parts[i]+tag), maxArgument) {
				p.file(at+".py", maxArgument)
				for _, machine := range []string{"x86_64", "aarch64"} {
					if id, size, ok := p.find(at + strings.TrimSuffix(tag, ".pyc") + "-" + machine + "-linux-gnu.so"); ok && p.add(id, min(size, maxPredict)) {
						p.binary(id, size)
					}
				}
			}
		}
	}
}
