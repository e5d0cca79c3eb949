package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/microsandbox/msb-fs/internal/testimage"
)

// workload is an image with a program in it that says when it is ready.
type workload struct {
	name  string
	about string // what the program does before it is ready
	stack testimage.Stack
	ready string  // what the line begins with that the program prints then
	from  *source // an image that is not the bench's own; nil: stack
}

const debianPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// readyLine is what most programs print when they are ready.
const readyLine = "ready"

//go:embed workloads/*
var workloadFiles embed.FS

// workloads are the images, small ones first.
func workloads() []workload {
	python := testimage.Python()
	return []workload{
		{name: "tiny", about: "a shell loop over applets of busybox", ready: readyLine, stack: testimage.Stack{
			Name: "tiny", Scratch: true, Files: busybox, App: app("tiny.sh"), Config: command("/bin/sh", "/app/tiny.sh"),
		}},
		{name: "python", about: "an import of eight modules and a hash over one", ready: "hello from Python", stack: python},
		{name: "redis", about: "a server that has answered SET and GET", ready: readyLine, stack: testimage.Stack{
			Name: "redis", Packages: []string{"redis=redis-server"}, App: app("redis.sh"), Config: command("/bin/sh", "/app/redis.sh"),
		}},
		{name: "node", about: "an HTTP server that has answered a request", ready: readyLine, stack: testimage.Stack{
			Name: "node", Packages: []string{"certificates=ca-certificates,openssl", "node=nodejs"}, Files: nodeModules,
			App: app("server.js"), Config: command("node", "/app/server.js"),
		}},
		{name: "openjdk", about: "an HTTP server, written in JavaScript on the JVM, that has answered a request", ready: readyLine, stack: testimage.Stack{
			Name: "openjdk", Packages: []string{"certificates=ca-certificates", "java=openjdk-17-jre-headless", "rhino=librhino-java"},
			App: app("jvm.js"), Config: command("java", "-cp", "/usr/share/java/js.jar", "org.mozilla.javascript.tools.shell.Main", "/app/jvm.js"),
		}},
		{name: "postgresql", about: "a server that has answered a query", ready: readyLine, stack: testimage.Stack{
			Name: "postgresql", Packages: []string{"locales=ca-certificates,tzdata", "postgresql=postgresql"}, App: app("postgres.sh"),
			Config: command("/bin/sh", "/app/postgres.sh"),
		}},
		{name: "golang", about: "a compiled, linked and run program", ready: readyLine, stack: testimage.Stack{
			Name: "golang", Packages: []string{"certificates=ca-certificates", "source=golang-src", "go=golang-go"},
			App: app("hello.go", "compile.sh"), Config: command("/bin/sh", "/app/compile.sh"),
		}},
		{name: "scipy", about: "an import of numpy, scipy.stats and pandas and a small sum with each", ready: readyLine, stack: testimage.Stack{
			Name: "scipy", Packages: []string{"python=python3", "numpy=python3-numpy", "scipy=python3-scipy", "pandas=python3-pandas"},
			App: app("science.py"), Config: command("python3", "/app/science.py"),
		}},
	}
}

func command(argv ...string) testimage.Config {
	return testimage.Config{Cmd: argv, Env: []string{debianPath, "HOME=/root"}, WorkingDir: "/"}
}

// app is a layer of programs in /app.
func app(names ...string) func() []testimage.Entry {
	return func() []testimage.Entry {
		entries := []testimage.Entry{testimage.Dir("app", 0o755)}
		for _, n := range names {
			content, err := workloadFiles.ReadFile("workloads/" + n)
			if err != nil {
				panic(err) // it is compiled in
			}
			entries = append(entries, testimage.Executable("app/"+n, string(content)))
		}
		return entries
	}
}

// busybox is the host's static busybox with links for its applets, and what else a root directory has.
func busybox() ([][]testimage.Entry, error) {
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; apt-get install busybox-static", err)
	}
	root := []testimage.Entry{testimage.Dir("bin", 0o755), testimage.Executable("bin/busybox", string(binary))}
	for _, applet := range []string{"sh", "cat", "echo", "grep", "ls", "mkdir", "mount", "rm", "sed", "sha256sum", "sleep", "sort", "wc"} {
		root = append(root, testimage.Symlink("bin/"+applet, "busybox"))
	}
	var dirs []testimage.Entry
	for _, d := range []string{"dev", "etc", "proc", "root", "run", "sys", "usr", "var"} {
		dirs = append(dirs, testimage.Dir(d, 0o755))
	}
	dirs = append(dirs, testimage.Dir("tmp", 0o1777), testimage.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), testimage.File("etc/group", "root:x:0:\n"))
	return [][]testimage.Entry{root, dirs}, nil
}

// nodeModules are eight layers, as a build file with many steps leaves them: modules of which the server loads every other one.
func nodeModules() ([][]testimage.Entry, error) {
	var layers [][]testimage.Entry
	for i := range 8 {
		dir := fmt.Sprintf("app/node_modules/part%d", i)
		entries := []testimage.Entry{testimage.Dir("app", 0o755), testimage.Dir("app/node_modules", 0o755), testimage.Dir(dir, 0o755)}
		for f := range 40 {
			// Words that differ, so that they compress as sources do and no two files are one chunk.
			sum := sha256.Sum256([]byte(fmt.Sprint(i, f)))
			line := fmt.Sprintf("exports.%s = function () { return %q; };\n", "f"+hex.EncodeToString(sum[:4]), hex.EncodeToString(sum[:]))
			entries = append(entries, testimage.File(fmt.Sprintf("%s/file%d.js", dir, f), strings.Repeat(line, 30)))
		}
		index := "module.exports = 1 + Object.keys(require('./file0.js')).length;\n"
		layers = append(layers, append(entries, testimage.File(dir+"/index.js", index)))
	}
	return layers, nil
}
