#!/bin/sh
# Prints "ready" when a server has answered a query; no port, for the sake of what else runs on the machine.
set -e
echo starting
bin=$(echo /usr/lib/postgresql/*/bin) dir=/tmp/postgres.$$
data=$(echo /var/lib/postgresql/*/main) config=$(echo /etc/postgresql/*/main)
install -d -o postgres -m 700 "$dir"
# A subshell each time: what is ended is the server and no shell around it.
as() { exec setpriv --reuid=postgres --regid=postgres --clear-groups env LC_ALL=C "$@"; }
as "$bin/postgres" -D "$data" -c config_file="$config/postgresql.conf" -c listen_addresses= -c unix_socket_directories="$dir" \
	-c dynamic_shared_memory_type=mmap -c external_pid_file= -c ssl=off -c shared_buffers=16MB >/tmp/postgres.log 2>&1 &
server=$!
until answer=$(as "$bin/psql" -h "$dir" -d postgres -Atc 'select sum(i) from generate_series(1, 1000) i' 2>/dev/null); do
	kill -0 $server 2>/dev/null || { cat /tmp/postgres.log >&2; exit 1; }
	sleep 0.05
done
echo "ready: the sum is $answer"
kill -INT $server
wait $server || :
