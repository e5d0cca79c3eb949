package vmboot

import (
	"strings"
	"testing"
)

func TestQEMUArguments(t *testing.T) {
	c := Config{Kernel: &Kernel{Path: "/k/vmlinux"}, FSSocket: "/run/a,b.sock", CPUs: 2, Mounts: []Mount{{Socket: "/run/m.sock", Target: "/m"}}}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	want := `-nodefaults -no-user-config -display none -no-reboot
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine q35,vmport=off,usb=off,smm=off,sata=off,hpet=off,memory-backend=mem
-object memory-backend-memfd,id=mem,share=on,size=512M -m 512M -smp 2
-kernel /proc/self/fd/6 -append console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests -initrd /proc/self/fd/5
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev stdio,id=console,signal=off -serial chardev:console
-chardev socket,id=agent,fd=4 -device virtio-serial-pci,max_ports=2 -device virtserialport,chardev=agent,name=msb.agent
-accel tcg,thread=multi -cpu max,erms=off
-chardev socket,id=root,fd=7 -device vhost-user-fs-pci,chardev=root,tag=msbroot,num-request-queues=2,queue-size=1024
-chardev socket,id=mount0,fd=8 -device vhost-user-fs-pci,chardev=mount0,tag=msb0,num-request-queues=1,queue-size=1024`
	if got := strings.Join(qemuArgs(&c), " "); got != strings.ReplaceAll(want, "\n", " ") {
		t.Errorf("%s", got)
	}
	c.Accel = AccelKVM
	if got := strings.Join(qemuArgs(&c), " "); !strings.Contains(got, " -accel kvm -cpu host ") || strings.Contains(got, "tcg") {
		t.Errorf("%s", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	builtIn := "CONFIG_FUSE_FS=y\nCONFIG_VIRTIO_FS=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_CONSOLE=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\nCONFIG_BLK_DEV_INITRD=y\n"
	if err := checkConfig([]byte(builtIn)); err != nil {
		t.Error(err)
	}
	err := checkConfig([]byte(strings.Replace(builtIn, "CONFIG_VIRTIO_FS=y", "CONFIG_VIRTIO_FS=m", 1)))
	if err == nil || !strings.Contains(err.Error(), "CONFIG_VIRTIO_FS must be built in") {
		t.Error(err)
	}
}

func TestVmlinuxOfNothing(t *testing.T) {
	for name, image := range map[string][]byte{"empty": nil, "short": make([]byte, 100), "zeros": make([]byte, 4096)} {
		if _, err := extractVmlinux(image); err == nil {
			t.Errorf("%s: a kernel was found", name)
		}
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	image[0x1f1], image[0x24c] = 1, 100
	copy(image[1024:], []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add(image)
	f.Fuzz(func(t *testing.T, image []byte) { extractVmlinux(image) })
}
