package cow

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sequences are operations that were wrong once, or that are easy to get wrong: "kind path [path] [n=] [off=]".
var sequences = map[string]string{
	"new directory over a lower one that moved": `
		rename opt etc/app; mkdir new n=493; create new/sub; rename new opt; remount; list opt; list etc/app; remount`,
	"new directory where one was removed": `
		unlink opt/app/lib/a.py; unlink opt/app/lib/b.py; rmdir opt/app/lib; remount; mkdir opt/app/lib n=493; list opt/app/lib; remount; list opt/app/lib`,
	"directory over a directory of whiteouts": `
		unlink opt/app/lib/a.py; unlink opt/app/lib/b.py; mkdir new n=448; create new/sub; rename new opt/app/lib; list opt/app/lib; remount; list opt/app/lib`,
	"lower directory over a directory of whiteouts": `
		unlink opt/app/lib/a.py; unlink opt/app/lib/b.py; rename bin opt/app/lib; list opt/app/lib; list bin; remount; list opt/app/lib`,
	"exchange of lower directories": `
		exchange opt bin; remount; list opt; list bin; exchange bin etc/passwd; remount; list etc; stat bin; stat etc/passwd`,
	"what was cut off stays cut off": `
		truncate big off=5000; remount; truncate big off=100000; read big n=20000 off=4096; remount; read big n=20000 off=0`,
	"cut off and grown by writing": `
		write big n=10 off=100000; truncate big off=65536 n=77; write big n=100 off=1048576; read big n=20000 off=65536; remount; read big n=20000 off=60000`,
	"written across the lower's end": `
		write big n=20000 off=1048576; truncate big off=1048576 n=5; append big n=9000; read big n=20000 off=1040000; remount; read big n=20000 off=1048576`,
	"one byte": `
		write big n=1 off=5000; read big n=20000 off=0; remount; read big n=20000 off=0; stat big`,
	"punched": `
		punch big n=9000 off=5000; zero big n=3000 off=100000; falloc big n=100 off=1048576; read big n=20000 off=0; remount; read big n=20000 off=0; read big n=9000 off=100000; stat big`,
	"hard links of the lower": `
		stat bin/ls; write bin/cat n=100 off=5; read bin/ls n=200; remount; read bin/busybox n=200; unlink bin/cat; stat bin/ls; remount; stat bin/busybox;
		link bin/ls bin/h; stat bin/h; unlink bin/ls; unlink bin/busybox; stat bin/h; remount; stat bin/h; unlink bin/h; list bin`,
	"hard links of the lower removed without a change": `
		unlink bin/ls; stat bin/cat; remount; stat bin/cat; unlink bin/cat; stat bin/busybox; unlink bin/busybox; remount; list bin`,
	"hard link of the lower renamed over": `
		rename etc/passwd bin/ls; stat bin/cat; remount; stat bin/cat; rename bin/cat bin/busybox; stat bin/cat; stat bin/busybox; remount`,
	"hard link of the lower moved": `
		rename bin/ls etc/new; stat etc/new; stat bin/cat; remount; stat etc/new; list bin; rename etc/new bin/cat; rename bin/cat etc/d; stat bin/busybox`,
	"held and unlinked": `
		hold etc/passwd; unlink etc/passwd; heldwrite n=0 off=1; heldwrite n=0 off=4096; create etc/passwd; stat etc/passwd; heldwrite n=0 off=5000`,
	"held in the upper and unlinked": `
		write big n=10 off=4096; hold big; unlink big; heldwrite n=0 off=65536; mkdir big n=493; heldwrite n=0 off=5000; release; remount; stat big`,
	"held and renamed over": `
		excl new n=420; hold new; rename etc/passwd new; heldwrite n=0 off=4095; stat new; link new etc/passwd; heldwrite n=0 off=1; stat new`,
	"held hard link": `
		hold bin/ls; unlink bin/ls; unlink bin/cat; heldwrite n=0 off=1; unlink bin/busybox; heldwrite n=0 off=4096; release; remount; list bin`,
	"nameless file": `
		tmpfile etc/new n=420; stat etc/new; remount; stat etc/new; read etc/new n=20; unlink etc/passwd; tmpfile etc/passwd n=420; remount; stat etc/passwd`,
	"setuid": `
		chmod bin/su n=2541; chown bin/su n=420; stat bin/su; chmod bin/su n=1517; write bin/su n=3 off=1; stat bin/su; remount; stat bin/su`,
	"setuid file copied into": `
		excl etc/new n=420; chmod bin/su n=2541; create bin/h; chmod bin/h n=2541; copyrange etc/new bin/h n=300; stat bin/h; copyrange etc/new bin/su n=300; stat bin/su`,
	"symbolic link": `
		chown etc/localtime n=420; utimes etc/localtime n=493; rename etc/localtime etc/new; stat etc/new; link etc/new etc/localtime; remount; stat etc/localtime`,
	"xattrs": `
		setxattr opt/app/main.py n=420; stat opt/app/main.py; rmxattr opt/app/main.py; setxattr etc n=448; remount; stat etc; rmxattr etc; setxattr etc/localtime n=449; stat etc/localtime`,
	"access control lists": `
		acl etc/passwd n=420; stat etc/passwd; asuser write etc/passwd n=5 off=0; rmacl etc/passwd; rmacl etc/passwd; stat etc/passwd; defacl etc n=504; mkdir etc/d n=511;
		asuser create etc/new; create etc/d/lib; stat etc/d; remount; stat etc/d/lib; acl etc/d n=2468; stat etc/d; rmacl etc; stat etc`,
	"privileges of a file that is written to": `
		chown bin/su n=420; chmod bin/su n=3565; setcap bin/su; asuser write bin/su n=3 off=1; stat bin/su; setcap big; write big n=1 off=9000; stat big; remount;
		chmod bin/ls n=2541; chown bin/ls n=420; asuser truncate bin/ls n=3; stat bin/cat; asuser chmod bin/ls n=2541; asuser chown bin/ls n=420; stat bin/ls`,
	"device": `
		mknod new; stat new; chmod dev/null n=384; stat dev/null; rename dev/null etc/new; remount; stat etc/new; unlink new; mknod dev/null; stat dev/null`,
	"directory of mode 0600": `
		mkdir empty/x n=384; chmod etc n=384; remount; stat etc; stat empty/x; rename etc new; stat new`,
	"deep": `
		rename opt/app/lib etc/d; rename etc empty/x; create empty/x/d/new; unlink empty/x/d/a.py; remount; list empty/x/d; rename empty/x/d opt/app/lib; remount; list opt/app/lib; list empty/x`,
	"file over what was a directory": `
		rename opt opt2; excl opt n=420; remount; stat opt; unlink opt; mkdir opt n=493; list opt; remount; list opt; rmdir opt; rename opt2 opt; remount; list opt/app`,
}

func parseSequence(t *testing.T, s string) (ops []op) {
	for _, line := range strings.Split(s, ";") {
		var o op
		for i, f := range strings.Fields(line) {
			key, v, isArg := strings.Cut(f, "=")
			n, _ := strconv.ParseInt(v, 10, 64)
			switch {
			case isArg && key == "n":
				o.n = n
			case isArg && key == "off":
				o.off = n
			case i == 0:
				o.kind = f
			case o.a == "":
				o.a = f
			default:
				o.b = f
			}
		}
		ops = append(ops, o)
	}
	return ops
}

func TestSequences(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting overlayfs needs root")
	}
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	for name, s := range sequences {
		for mode, o := range modes {
			t.Run(name+"/"+mode, func(t *testing.T) {
				if failed := runBoth(t, parseSequence(t, s), o); failed != "" {
					t.Error(failed)
				}
			})
		}
	}
}
