package msb_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	msb "github.com/microsandbox/msb-fs"
)

// A sandbox that goes on until it is removed, and commands in it.
func ExampleCreate() {
	ctx := context.Background()
	sb, err := msb.Create(ctx, "worker", msb.WithImage("python:3.12"), msb.WithCommand("sleep", "infinity"), msb.WithMemory(1024))
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Remove(ctx, true)
	if err := sb.Start(ctx); err != nil {
		log.Fatal(err)
	}
	status, err := sb.Exec(ctx, msb.Process{Args: []string{"python3", "-c", "print(6*7)"}, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("exit status", status.Code)
	if err := sb.Stop(ctx, 5*time.Second); err != nil {
		log.Fatal(err)
	}
}

// An image of a private registry, whose credentials are used and not kept.
func ExamplePull() {
	digest, err := msb.Pull(context.Background(), "registry.example/team/app:1", msb.WithPullPolicy(msb.PullAlways),
		msb.WithRegistry(msb.BasicAuth("me", os.Getenv("TOKEN")), msb.CACerts("/etc/ssl/team.pem")))
	if errors.Is(err, msb.ErrUnauthorized) {
		log.Fatal("the token has expired")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(digest)
}

// A look into an image that has not been pulled.
func ExampleMount() {
	ctx := context.Background()
	if err := msb.Mount(ctx, "debian:12", "/mnt"); err != nil {
		log.Fatal(err)
	}
	defer msb.Unmount(ctx, "/mnt")
	b, err := os.ReadFile("/mnt/etc/debian_version")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(b))
}

// A sandbox that there is not.
func ExampleGet() {
	home, err := os.MkdirTemp("", "msb-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(home)
	_, err = msb.Get("worker", msb.WithHome(home))
	fmt.Println(errors.Is(err, msb.ErrNoSandbox))
	// Output: true
}
