package agentproto

// Hello is the agent's first frame.
type Hello struct {
	Magic   string
	Version int
	Kernel  string // release of the guest kernel
}

// Setup is the host's answer: what the guest is to become before its first process.
type Setup struct {
	Version  int
	Time     int64 // nanoseconds since 1970, UTC; 0 leaves the clock alone
	Hostname string
	Hosts    []string // further lines of /etc/hosts
	Network  *Network
	Mounts   []Mount
}

// Network is the guest's only interface beside lo.
type Network struct {
	Interface string
	Address   string // CIDR
	Gateway   string
	DNS       []string
	MTU       int
}

// Mount is one more filesystem. Target is made if the image has none.
type Mount struct {
	Type     string // "virtiofs" or "tmpfs"
	Source   string // virtiofs tag
	Target   string
	File     string // of the filesystem, which is all of it that Target shows; "" is its root
	Options  string
	ReadOnly bool
}

// Process is a program to start. The zero value of every field but Args works.
type Process struct {
	Args    []string
	Env     []string
	Dir     string   // "" is /
	MakeDir bool     // makes Dir where the image lacks it
	Dirs    []string // made where the image lacks them
	User    string   // user[:group], names or numbers, as Docker's --user; "" is root
	Groups  []string // further groups
	Umask   *uint32  // nil is 022
	Rlimits []Rlimit
	TTY     bool // stdout carries the terminal, there is no stderr
	Size    Size // of the terminal
	Stdin   bool
}

// Size is a terminal's size in characters; zero leaves it alone.
type Size struct {
	Rows uint16
	Cols uint16
}

// Rlimit is a resource limit, Resource being the number of setrlimit(2).
type Rlimit struct {
	Resource int
	Soft     uint64
	Hard     uint64
}

// Request is a frame from the host on a Control stream; one field is set. The first is Start.
type Request struct {
	Start  *Process
	Signal int
	Resize *Size
}

// Reply is a frame from the agent; one field is set.
type Reply struct {
	Started int // process id in the guest
	Exit    *Exit
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // exit status; 128+n for a signal; 126 and 127 where it could not be started
	Signal int    // the signal that ended it
	Error  string // why it could not be started
}

// Shutdown asks for the end of everything.
type Shutdown struct {
	GraceMS int // between SIGTERM and SIGKILL
}
