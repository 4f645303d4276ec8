#!/bin/sh
# Certificates for a broker on 127.0.0.1, or another address, with TLS, made anew with openssl: certificates.sh FOLDER [ADDRESS]
#
#   ca.pem           the authority that signs all of them
#   stranger.pem     another authority, which signs none
#   secure.pem       key and certificate of localhost and the address
#   expired.pem      the same, which has expired
#   elsewhere.pem    of another host's name
set -eu
folder=${1:?certificates.sh FOLDER [ADDRESS]}
address=${2:-127.0.0.1}
mkdir -p "$folder"
cd "$folder"

quiet() { "$@" >openssl.log 2>&1 || { cat openssl.log >&2; echo "certificates.sh: failed: $*" >&2; exit 1; }; }

authority() { # NAME
    quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$1 authority" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout "$1.key" -out "$1.pem"
}

# `openssl ca` and not `openssl x509`, which can set no dates of the past before version 3.4
server() { # NAME ALTERNATIVE-NAMES FROM TO
    printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nunique_subject=no\nrand_serial=yes\n[p]\ncommonName=supplied\n[x]\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=%s\n' "$2" > ca.cnf
    : > index.txt
    quiet openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=broker $1" -keyout "$1.key" -out "$1.csr"
    quiet openssl ca -batch -notext -config ca.cnf -extensions x -cert ca.pem -keyfile ca.key \
        -startdate "$3" -enddate "$4" -in "$1.csr" -out "$1.crt"
    cat "$1.key" "$1.crt" > "$1.pem"
}

day() { date -u -d "$1" +%Y%m%d%H%M%SZ; }

authority ca
authority stranger
server secure "DNS:localhost,IP:$address" "$(day '1 day ago')" "$(day '20 days')"
server expired "DNS:localhost,IP:$address" "$(day '20 days ago')" "$(day '2 days ago')"
server elsewhere DNS:broker.elsewhere.example,IP:192.0.2.1 "$(day '1 day ago')" "$(day '20 days')"
rm -f ./*.csr ./*.crt ./*.key index.txt* ca.cnf openssl.log [0-9A-F]*.pem
