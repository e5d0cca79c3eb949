#!/bin/sh
# Prints "ready" when a server has answered; no port, for the sake of what else runs on the machine.
set -e
echo starting
socket=/tmp/redis.$$.sock
redis-server --port 0 --unixsocket $socket --save '' --dir /tmp --daemonize no --logfile /dev/null &
until [ "$(redis-cli -s $socket set answer 42 2>/dev/null)" = OK ]; do sleep 0.02; done
echo "ready: the answer is $(redis-cli -s $socket get answer)"
redis-cli -s $socket shutdown nosave
wait
