#!/bin/sh
# Compiles a program and runs it.
set -e
echo starting
export GOCACHE=/tmp/go-cache GO111MODULE=off GOFLAGS=-trimpath CGO_ENABLED=0
go build -o /tmp/hello /app/hello.go
exec /tmp/hello compiled
