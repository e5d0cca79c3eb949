package vmboot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Accelerators, as QEMU calls them.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// probeTime bounds the try of accel. Where KVM works a kernel needs well under a second, also on a machine with
// much else to do; emulation is only tried to see whether it works at all.
func probeTime(accel string) time.Duration {
	if accel == AccelKVM {
		return 12 * time.Second
	}
	return 2 * time.Minute
}

// Accelerator returns the accelerator to use where the user wants want: "kvm", "tcg", or "auto" (also ""), which is
// kvm where k has been seen booting under it here, else tcg. That /dev/kvm opens proves nothing: there are
// paravirtual KVMs on which a stock kernel dies. The try is made once and remembered in the state directory until
// the host's kernel, its CPU, QEMU or k changes.
func Accelerator(ctx context.Context, want string, k *Kernel) (string, error) {
	switch want {
	case AccelTCG:
		return want, nil
	case AccelKVM:
		return want, mustKVM(ctx, k)
	case AccelAuto, "":
	default:
		return "", fmt.Errorf("accelerator %q: must be auto, kvm or tcg", want)
	}
	if openKVM() != nil {
		return AccelTCG, nil
	}
	p, err := probeKVM(ctx, k, false)
	if err != nil {
		return "", err
	}
	if p.Works {
		return AccelKVM, nil
	}
	return AccelTCG, nil
}

// mustKVM says why k cannot run under KVM here. Who insists has a reason to: what has failed before is tried again.
func mustKVM(ctx context.Context, k *Kernel) error {
	if err := openKVM(); err != nil {
		return fmt.Errorf("accelerator kvm: %w: add this user to the group kvm, or use auto or tcg", err)
	}
	p, err := probeKVM(ctx, k, true)
	if err == nil && !p.Works {
		err = fmt.Errorf("a guest kernel does not boot under it here (%s): use auto or tcg", p.Reason)
	}
	if err != nil {
		return fmt.Errorf("accelerator kvm: %w", err)
	}
	return nil
}

// probeKVM returns whether k boots under KVM here, as remembered or else tried now; insist does not believe in a failure that is
// remembered.
func probeKVM(ctx context.Context, k *Kernel, insist bool) (Probe, error) {
	program, err := findQEMU("")
	if err != nil {
		return Probe{}, err
	}
	dir, err := StateDir()
	if err != nil {
		return Probe{}, err
	}
	key, err := hostKey(program, k)
	if err != nil {
		return Probe{}, err
	}
	return remembered(ctx, filepath.Join(dir, "accel.json"), key, insist, func(ctx context.Context) (Probe, error) {
		return ProbeAccel(ctx, AccelKVM, k)
	})
}

// Probe is the outcome of trying an accelerator.
type Probe struct {
	Accel  string `json:"accel"`
	Works  bool   `json:"works"`
	Reason string `json:"reason,omitempty"` // why not
	Key    string `json:"key"`              // of what was tried
}

// remembered returns the outcome stored in file under key, else what try says, and stores that. Where it cannot be
// stored it is tried again the next time. Processes that ask at the same time wait for one try. With insist a failure is as good as
// nothing.
func remembered(ctx context.Context, file, key string, insist bool, try func(context.Context) (Probe, error)) (Probe, error) {
	if p, ok := recall(file, key); ok && (p.Works || !insist) {
		return p, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err == nil {
		if unlock, err := lockFile(file + ".lock"); err == nil {
			defer unlock()
		}
	}
	if p, ok := recall(file, key); ok && (p.Works || !insist) {
		return p, nil
	}
	p, err := try(ctx)
	if err != nil {
		return p, err
	}
	p.Key = key
	if text, err := json.MarshalIndent(p, "", "\t"); err == nil {
		writeFileAtomic(file, append(text, '\n'))
	}
	return p, nil
}

func recall(file, key string) (Probe, bool) {
	var p Probe
	text, err := os.ReadFile(file)
	ok := err == nil && json.Unmarshal(text, &p) == nil && p.Key == key
	return p, ok
}

func writeFileAtomic(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// openKVM says why /dev/kvm cannot be used, nil if it opens.
func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// hostKey names everything that decides whether an accelerator works.
func hostKey(qemu string, k *Kernel) (string, error) {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "", err
	}
	release := make([]byte, 0, 2*len(u.Release))
	for _, c := range append(u.Release[:], u.Version[:]...) {
		release = append(release, byte(c))
	}
	h := sha256.New()
	h.Write(release)
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(cpuinfo)) {
			if strings.HasPrefix(line, "model name") || strings.HasPrefix(line, "flags") {
				h.Write([]byte(line))
			}
			if line == "\n" {
				break // one processor says it all
			}
		}
	}
	for _, file := range []string{qemu, k.Path} {
		st, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, file, st.Size(), st.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// Identity names what a VM of k is made of here: QEMU, this program's agent, k and the host. Equal ones are alike.
func Identity(k *Kernel) (string, error) {
	program, err := findQEMU("")
	if err != nil {
		return "", err
	}
	agent, err := AgentBinary()
	if err != nil {
		return "", err
	}
	host, err := hostKey(program, k)
	return fmt.Sprintf("%s %08x", host, crc32.Checksum(agent, crc32.MakeTable(crc32.Castagnoli))), err
}

// ProbeAccel boots k under accel without a root filesystem and sees whether the agent says hello in a few seconds. The error is about what kept it from trying.
func ProbeAccel(ctx context.Context, accel string, k *Kernel) (Probe, error) {
	p := Probe{Accel: accel}
	c := Config{Kernel: k, Accel: accel, CPUs: 1, MemoryMiB: 256}
	l, err := qemu{}.launchBare(&c, machineArgs(&c))
	if err != nil {
		return p, err
	}
	vm, err := start(ctx, c, l)
	if err != nil {
		return p, err
	}
	defer vm.Kill()
	short, cancel := context.WithTimeout(ctx, probeTime(accel))
	defer cancel()
	_, err = vm.Agent(short, Setup{})
	if ctx.Err() != nil {
		return p, ctx.Err()
	}
	p.Works = err == nil
	if err != nil {
		p.Reason, _, _ = strings.Cut(err.Error(), "\n")
		if said := strings.TrimSpace(vm.stderr.String()); said != "" {
			p.Reason, _, _ = strings.Cut(said, "\n")
		}
	}
	return p, nil
}
