// Package bpf holds the kernel's half of package trace: trace.bpf.c, compiled. Make generate compiles it again; that needs clang and
// libbpf's headers, which nothing else does.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package bpf -output-stem programs -target amd64 Programs trace.bpf.c -- -I. -O2 -g -Wall -Werror
