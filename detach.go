package msb

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/microsandbox/msb-fs/internal/api"
)

// Detached is what a detached supervisor is told on its standard input, where nobody else can read it.
type Detached struct {
	Registry Registry
	Pull     PullPolicy
}

// supervisorLog is what the detached supervisor itself has to say.
const supervisorLog = "supervisor.log"

// Start runs sb in a process of its own, which outlives the caller, and returns when its command has been started. The
// image is the pinned one, wherever its tag points by now; what is missing of it is fetched by digest.
func (sb *Sandbox) Start(ctx context.Context, d Detached) error {
	if sb.Running() {
		return fmt.Errorf("%w: %s", ErrRunning, sb.Name)
	}
	binary, err := api.Binary("msb-launch")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(sb.dir.logs(), supervisorLog), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start sandbox %s: %w", sb.Name, err)
	}
	defer log.Close()
	input, err := json.Marshal(d)
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "supervise", "--home", string(sb.host.home), sb.Name)
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sandbox %s: %w", sb.Name, err)
	}
	_, werr := stdin.Write(input)
	return errors.Join(werr, stdin.Close(), awaitStarted(ctx, sb.Name, cmd, stdout))
}

// awaitStarted waits for the one line a supervisor writes: why it failed, or an empty one when the command runs. A caller
// who does not want to wait takes the sandbox with him.
func awaitStarted(ctx context.Context, name string, cmd *exec.Cmd, stdout io.ReadCloser) error {
	line := make(chan string, 1)
	go func() {
		l, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil {
			l = fmt.Sprintf("the supervisor of sandbox %s ended without a word: see its logs/%s\n", name, supervisorLog)
		}
		line <- l
	}()
	defer stdout.Close()
	select {
	case l := <-line:
		if l = l[:len(l)-1]; l == "" {
			return cmd.Process.Release()
		}
		cmd.Wait()
		return errors.New(l)
	case <-ctx.Done():
		cmd.Process.Signal(syscall.SIGTERM)
		<-line
		cmd.Wait()
		return ctx.Err()
	}
}
