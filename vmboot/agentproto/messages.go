package agentproto

// Hello is the agent's first frame.
type Hello struct {
	Magic    string  `json:"magic"`
	Version  int     `json:"version"`
	Kernel   string  `json:"kernel"`   // release of the guest kernel
	UptimeMS float64 `json:"uptimeMS"` // guest uptime when the agent's main began
}

// Setup is the host's answer: what the guest is to become before its first process.
type Setup struct {
	Version  int      `json:"version"`
	Time     int64    `json:"time"` // nanoseconds since 1970, UTC; 0 leaves the clock alone
	Hostname string   `json:"hostname,omitempty"`
	Hosts    []string `json:"hosts,omitempty"` // further lines of /etc/hosts
	Network  *Network `json:"network,omitempty"`
	Mounts   []Mount  `json:"mounts,omitempty"`
}

// Network is the guest's only interface beside lo.
type Network struct {
	Interface string   `json:"interface"`
	Address   string   `json:"address"` // CIDR
	Gateway   string   `json:"gateway"`
	DNS       []string `json:"dns,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
}

// Mount is one more filesystem. Target is made if the image has none.
type Mount struct {
	Type     string `json:"type"`   // "virtiofs" or "tmpfs"
	Source   string `json:"source"` // virtiofs tag
	Target   string `json:"target"`
	File     string `json:"file,omitempty"` // of the filesystem, which is all of it that Target shows; "" is its root
	Options  string `json:"options,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Process is a program to start. The zero value of every field but Args works.
type Process struct {
	Args    []string `json:"args"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`     // "" is /
	MakeDir bool     `json:"makeDir,omitempty"` // makes Dir where the image lacks it
	Dirs    []string `json:"dirs,omitempty"`    // made where the image lacks them
	User    string   `json:"user,omitempty"`    // user[:group], names or numbers, as Docker's --user; "" is root
	Groups  []string `json:"groups,omitempty"`  // further groups
	Umask   *uint32  `json:"umask,omitempty"`   // nil is 022
	Rlimits []Rlimit `json:"rlimits,omitempty"`
	TTY     bool     `json:"tty,omitempty"` // stdout carries the terminal, there is no stderr
	Size    Size     `json:"size"`          // of the terminal
	Stdin   bool     `json:"stdin,omitempty"`
}

// Size is a terminal's size in characters; zero leaves it alone.
type Size struct {
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
}

// Rlimit is a resource limit, Resource being the number of setrlimit(2).
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// Request is a frame from the host on a Control stream; one field is set. The first is Start.
type Request struct {
	Start  *Process `json:"start,omitempty"`
	Signal int      `json:"signal,omitempty"`
	Resize *Size    `json:"resize,omitempty"`
}

// Reply is a frame from the agent; one field is set.
type Reply struct {
	Started int   `json:"started,omitempty"` // process id in the guest
	Exit    *Exit `json:"exit,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Code   int    `json:"code"`             // exit status; 128+n for a signal; 126 and 127 where it could not be started
	Signal int    `json:"signal,omitempty"` // the signal that ended it
	Error  string `json:"error,omitempty"`  // why it could not be started
}

// Shutdown asks for the end of everything.
type Shutdown struct {
	GraceMS int `json:"graceMS"` // between SIGTERM and SIGKILL
}
