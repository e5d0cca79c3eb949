package testimage

// Services is Debian with python3, redis-server and nginx: what answers on a published port.
func Services() Stack {
	return Stack{
		Name:     "services",
		Packages: []string{"python=python3", "redis=redis-server", "nginx=nginx-light"},
		Config:   Config{Cmd: []string{"/bin/bash"}, Env: []string{debianPath}},
	}
}

// Toolchains is Debian with Node.js, a Java runtime with its compiler and Go.
func Toolchains() Stack {
	return Stack{
		Name:     "toolchains",
		Packages: []string{"node=nodejs", "jvm=openjdk-17-jdk-headless", "go=golang-go"},
		Config:   Config{Cmd: []string{"/bin/bash"}, Env: []string{debianPath}},
	}
}
