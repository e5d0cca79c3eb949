package testimage

// debianPath is what Debian's own images set.
const debianPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Python is a small Python application: the base system, python3, and /app/main.py, which uses what such programs use.
func Python() Stack {
	return Stack{
		Name:     "python",
		Packages: []string{"python=python3"},
		App: func() []Entry {
			return []Entry{Dir("app", 0o755), Executable("app/main.py", pythonApp), File("app/data.json", `{"answer": 42}`+"\n")}
		},
		Config: Config{Cmd: []string{"python3", "/app/main.py"}, Env: []string{debianPath}, WorkingDir: "/app"},
	}
}

const pythonApp = `#!/usr/bin/python3
import collections, hashlib, json, platform, re, sys

with open("/app/data.json") as f:
    answer = json.load(f)["answer"]
words = collections.Counter(re.findall(r"\w+", open(json.__file__).read()))
digest = hashlib.sha256(repr(sorted(words.items())).encode()).hexdigest()
print(f"hello from Python {platform.python_version()} on {platform.machine()}: answer {answer}, digest {digest[:12]}")
sys.stdout.flush()
`
