# What the servers of the test bed have in common: sourced by kafka/kafka.sh and s3/s3.sh, never run by itself.
#
# The script that sources it sets `tool`, its own name, and defines
#   place [port]   sets port, run (the data folder), pidf (the file with the process id) and log
#   install        fetches or builds what is missing
#   launch         starts the server in the background; its process id is then $!
#   ready          exit 0 when the server on $port answers
#   more CMD ...   sub-commands of its own; exit 2 with the usage for any other
# and ends with: serve "$@"
set -eu

die() { echo "$tool: $*" >&2; exit 1; }

alive() { [ -f "$pidf" ] && kill -0 "$(cat "$pidf")" 2>/dev/null; }

# waits up to $1 tenths of a second until the server answers
wait_ready() {
    n=0
    until ready; do
        alive || { tail -20 "$log" >&2; die "the server ended while starting"; }
        n=$((n + 1)); [ $n -lt "$1" ] || die "not ready after $(($1 / 10)) s, see $log"
        sleep 0.1
    done
}

# SIGTERM, then SIGKILL after 20 s
stop() {
    alive || { rm -f "$pidf"; return 0; }
    pid=$(cat "$pidf"); kill "$pid"
    n=0
    while kill -0 "$pid" 2>/dev/null; do
        n=$((n + 1)); [ $n -lt 200 ] || kill -9 "$pid" 2>/dev/null || true
        sleep 0.1
    done
    rm -f "$pidf"
}

serve() {
    cmd=${1:-help}
    [ $# -gt 0 ] && shift
    case $cmd in
    install) install ;;
    start)
        place "$@"; install
        alive && die "already running on $port"
        mkdir -p "$run"
        launch
        echo $! > "$pidf"
        wait_ready 600 ;;
    ready) place "$@"; ready ;;
    stop) place "$@"; stop ;;
    kill9)
        place "$@"; alive || die "not running on $port"
        kill -9 "$(cat "$pidf")"
        while alive; do sleep 0.05; done       # gone, so that start may follow at once
        rm -f "$pidf" ;;
    wipe) place "$@"; stop; rm -rf "$run" ;;
    *) more "$cmd" "$@" ;;
    esac
}
