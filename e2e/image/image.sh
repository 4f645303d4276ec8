#!/usr/bin/env bash
# Makes the image out of built binaries, for the local engine.
#
#   image.sh BIN NAME    BIN: the folder with penstock and penstock-operator; NAME: the image's name and tag
#
# Symbols are kept apart, in BIN/symbols: `gdb -s`, `perf --symfs` and `addr2line -e` take them.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,7p' "$0"; exit 2; }
bin=$1 name=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
context=$(mktemp -d); trap 'rm -rf "$context"' EXIT
mkdir -p "$context/bin" "$context/lib" "$bin/symbols"
for program in penstock penstock-operator; do
  objcopy --only-keep-debug "$bin/$program" "$bin/symbols/$program.debug"
  objcopy --strip-all --add-gnu-debuglink="$bin/symbols/$program.debug" "$bin/$program" "$context/bin/$program"
  # glibc comes with the base; all else that the program asks for goes beside it.
  ldd "$bin/$program" | awk '$3 ~ /^\// && $1 !~ /^(libc|libm|libpthread|libdl|librt|libresolv)\.so/ {print $3}' | xargs -r -I{} cp -Ln {} "$context/lib/"
done
cp /etc/ssl/certs/ca-certificates.crt "$context/"
cp "$root/Dockerfile" "$context/"
docker build -q -t "$name" "$context" >/dev/null
docker image inspect "$name" --format "$name: {{.Size}} bytes with its base"
