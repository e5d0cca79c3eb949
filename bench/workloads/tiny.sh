#!/bin/sh
# Prints "ready" when the applets of busybox have worked.
echo starting
for i in 1 2 3 4 5; do echo "$i root"; done | sort | sed 's/root/shell/' | grep -c shell | sha256sum | cat >/tmp/sum
echo "ready: $(wc -l </tmp/sum) line"
