#!/bin/sh
# A real S3-compatible server (versitygw, posix back end) for tests, built from
# its Go module. Needs: go 1.24+ , a file system with user xattrs and O_TMPFILE
# (ext4, xfs, tmpfs on Linux 6.6+), curl.
#
#   s3.sh install          build the binary (once)
#   s3.sh start [port]     start, wait until ready
#   s3.sh ready [port]     exit 0 when the server answers
#   s3.sh stop  [port]     stop it
#   s3.sh kill9 [port]     end it as a crash would (keeps the data)
#   s3.sh wipe  [port]     stop and delete its data
#   s3.sh bucket NAME [port]   make a bucket; one that stands already is left as it is
#
# Everything lives below $PENSTOCK_TESTBED (default ~/.cache/penstock/testbed).
# S3_ACCESS / S3_SECRET   the one account (default penstock / penstock-secret)
# S3_DATA                 data folder     (default $PENSTOCK_TESTBED/s3/run-PORT)
# S3_HOST                 the address to listen on (default 127.0.0.1)
# Region us-east-1, path-style addresses, bucket names of 3 letters or more.
set -eu
version=v1.8.0
home=${PENSTOCK_TESTBED:-$HOME/.cache/penstock/testbed}/s3
bin=$home/bin/versitygw-$version
tool=s3.sh
host=${S3_HOST:-127.0.0.1}
. "$(cd "$(dirname "$0")" && pwd)/../server.sh"

place() {
    port=${1:-29000}
    run=${S3_DATA:-$home/run-$port}
    pidf=$run/pid
    log=$run/server.log
}

ready() { alive && curl -sf -m 2 -o /dev/null "http://$host:$port/health"; }

# signed CURL-ARGS…: a request without a body, signed by the account (the server insists on the hash of the body)
signed() {
    curl -sfS -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 -u "${S3_ACCESS:-penstock}:${S3_SECRET:-penstock-secret}" \
        -H 'x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855' "$@"
}

install() {
    [ -x "$bin" ] && return 0
    command -v go >/dev/null || die "no go"
    mkdir -p "$home/bin"
    # The caches stay inside the cache folder too; the build cache is dropped after.
    GOBIN=$home/bin/new GOPATH=$home/go GOCACHE=$home/gocache GOFLAGS="-p=2 -modcacherw" \
        go install -trimpath -ldflags "-s -w" "github.com/versity/versitygw/cmd/versitygw@$version"
    mv "$home/bin/new/versitygw" "$bin"
    rm -rf "$home/bin/new" "$home/gocache" "$home/go"
}

launch() {
    mkdir -p "$run/buckets"
    ROOT_ACCESS_KEY=${S3_ACCESS:-penstock} ROOT_SECRET_KEY=${S3_SECRET:-penstock-secret} \
        setsid "$bin" --port "$host:$port" --health /health --quiet \
        posix "$run/buckets" </dev/null >>"$log" 2>&1 &
}

more() {
    [ "$1" = bucket ] && [ $# -gt 1 ] || { sed -n '2,20p' "$0"; exit 2; }
    name=$2; shift 2; place "$@"
    signed "http://$host:$port/$name?list-type=2&max-keys=1" 2>/dev/null || signed -X PUT "http://$host:$port/$name"
}

serve "$@"
