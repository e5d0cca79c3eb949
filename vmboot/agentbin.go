package vmboot

import (
	"embed"
	"fmt"
)

//go:embed all:agentbin
var agentDir embed.FS

// AgentBinary returns the guest agent this program was built with.
func AgentBinary() ([]byte, error) {
	agent, err := agentDir.ReadFile("agentbin/msb-agent")
	if err != nil {
		return nil, fmt.Errorf("this program was built without the guest agent: build it with `make`, which builds the agent first")
	}
	return agent, nil
}
