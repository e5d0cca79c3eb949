// Prints "ready": it has been compiled, linked and run.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	fmt.Println("ready:", strings.Join(os.Args[1:], " "))
}
