package vmboot

import (
	"bytes"
	"embed"
	"fmt"
)

//go:embed all:agentbin
var agentDir embed.FS

const agentName = "agent"

// agentInit is the path of process 1 in the guest.
const agentInit = "/" + HiddenDir + "/" + agentName

// AgentBinary returns the guest agent this program was built with.
func AgentBinary() ([]byte, error) {
	agent, err := agentDir.ReadFile("agentbin/msb-agent")
	if err != nil {
		return nil, fmt.Errorf("this program was built without the guest agent: build it with `make`, which builds the agent first")
	}
	return agent, nil
}

// GuestFiles returns the synthetic files a guest needs, for WithFiles: the agent.
func GuestFiles() (map[string]File, error) {
	agent, err := AgentBinary()
	if err != nil {
		return nil, err
	}
	return map[string]File{agentName: {Mode: 0o555, Size: int64(len(agent)), Content: bytes.NewReader(agent)}}, nil
}
