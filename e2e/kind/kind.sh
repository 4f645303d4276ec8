#!/usr/bin/env bash
# A real Kubernetes of several nodes by `kind`. The node image is kindest/node where it can be pulled, else one that is built
# here from Go modules and Debian packages (about 15 minutes of two cores, once): the tests need no image registry.
#
#   kind.sh install              Debian packages, kind, helm, kubectl, the container engine (started), the node image   (once)
#   kind.sh up [name] [workers]  create a cluster (default: penstock, 2 workers) unless it stands; prints what to export
#   kind.sh env [name]           only print it
#   kind.sh load [name] IMAGE…   put images of the local engine into every node
#   kind.sh down [name]
#   kind.sh plane                only the programs of a control plane without nodes: etcd, the API server, its controllers, kwok
#   kind.sh helm                 only helm
#   kind.sh tool NAME PACKAGE@VERSION   only another Go program, beside it
#   kind.sh base                 only the base image debian:12-slim, from Debian's packages where it cannot be pulled
#
# Everything lives below $PENSTOCK_TESTBED (default ~/.cache/penstock/testbed). Needs root, go 1.25+, apt.
# PENSTOCK_NODE_IMAGE    a node image to use as it is
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${PENSTOCK_TESTBED:-$HOME/.cache/penstock/testbed}/kind
bin=$home/bin
export PATH=$bin:$PATH
kubernetes=v1.34.4 staging=v0.34.4 kind=v0.33.0 helm=v3.22.0 etcd=v3.6.5 coredns=v1.12.4 localpath=v0.0.30 kwok=v0.8.0
built=penstock.test/kind-node:$kubernetes                    # the node image when it is built here
registry=registry.k8s.io                                   # the names that kubeadm expects; nothing is pulled from there
say() { echo "kind.sh: $*" >&2; }

packages() {
  local want=(mmdebstrap jq libcap2-bin iptables gcc libc6-dev) missing=()
  command -v dockerd >/dev/null || want+=(docker.io)
  for p in "${want[@]}"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$home/apt.log" 2>&1 ||
    { tail "$home/apt.log" >&2; return 1; }
}

# build NAME PACKAGE@VERSION: a Go program into $bin
build() {
  [ -x "$bin/$1" ] && return 0
  say "building $1"
  local d; d=$(mktemp -d)
  (cd "$d" && go mod init build && go get -tool "$2" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$bin/$1" "${2%@*}") >"$home/$1.log" 2>&1 ||
    { tail "$home/$1.log" >&2; return 1; }
  rm -rf "$d"
}

build_helm() { build helm helm.sh/helm/v3/cmd/helm@$helm; }

# The Kubernetes module refers to its staging modules by relative path; name their published versions instead.
build_kubernetes() {
  [ -x "$bin/kubelet" ] && return 0
  say "building Kubernetes $kubernetes (about 6 minutes on 2 cores)"
  local d v=k8s.io/component-base/version commands=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubeadm kubectl kubelet)
  d=$(mktemp -d)
  (
    cd "$d"
    go mod download -json "k8s.io/kubernetes@$kubernetes" | jq -r .Dir > dir
    { echo "module build"; echo "go 1.25.0"; echo "require k8s.io/kubernetes $kubernetes"
      sed -n 's#^[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging.*#replace \1 => \1 '$staging'#p' "$(cat dir)/go.mod"
      printf 'tool k8s.io/kubernetes/cmd/%s\n' "${commands[@]}"; } > go.mod
    go mod tidy
    CGO_ENABLED=0 go build -trimpath -o "$home/k8s-new/" \
      -ldflags "-s -w -X $v.gitVersion=$kubernetes -X $v.gitMajor=1 -X $v.gitMinor=34 -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes" \
      "${commands[@]/#/k8s.io/kubernetes/cmd/}"
  ) >"$home/kubernetes.log" 2>&1 || { tail "$home/kubernetes.log" >&2; return 1; }
  mv "$home"/k8s-new/* "$bin/"; rm -rf "$d" "$home/k8s-new"
}

# The engine: the one that runs, or Docker's, with a runc that asks for no capability which this machine lacks.
engine() {
  if ! docker info >/dev/null 2>&1; then
    say "starting the container engine"
    install -m 755 "$here/runc-lean" /usr/local/bin/runc-lean
    mkdir -p /etc/docker
    [ -e /etc/docker/daemon.json ] || echo '{"runtimes": {"lean": {"path": "/usr/local/bin/runc-lean"}}, "default-runtime": "lean"}' > /etc/docker/daemon.json
    setsid dockerd </dev/null >"$home/dockerd.log" 2>&1 &
    for _ in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.2; done
    docker info >/dev/null
  fi
  docker network inspect kind >/dev/null 2>&1 || docker network create kind >/dev/null
  # Nothing from inside a cluster leaves this machine, and the host does not reach for pods and services.
  local out; out=$(ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -1)
  iptables -C DOCKER-USER -i br-+ -o "$out" -j REJECT 2>/dev/null || iptables -I DOCKER-USER -i br-+ -o "$out" -j REJECT
  ip route replace unreachable 10.244.0.0/16; ip route replace unreachable 10.96.0.0/16
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Whether an image is here, or can be pulled within a minute.
pulled() { have_image "$1" || timeout 60 docker pull -q "$1" >/dev/null 2>&1; }

# The node image: the one that was named, kindest's, or one that is built here.
node_image() {
  if [ -n "${PENSTOCK_NODE_IMAGE:-}" ]; then echo "$PENSTOCK_NODE_IMAGE"
  elif have_image "$built"; then echo "$built"
  elif pulled "kindest/node:$kubernetes"; then echo "kindest/node:$kubernetes"
  else build_node_image >&2 && echo "$built"; fi
}

# debian IMAGE PACKAGES: an image with a minimal Debian and these packages
debian() {
  have_image "$1" && return 0
  say "making $1"
  local x=(man locale doc zoneinfo) excludes=()
  for p in "${x[@]}"; do excludes+=(--dpkgopt="path-exclude=/usr/share/$p/*"); done
  mmdebstrap --quiet --variant=minbase --include="$2" "${excludes[@]}" bookworm "$home/debian.tar" \
    "$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1)" >"$home/mmdebstrap.log" 2>&1 ||
    { tail "$home/mmdebstrap.log" >&2; return 1; }
  docker import "$home/debian.tar" "$1" >/dev/null; rm -f "$home/debian.tar"
}

# image NAME BASE ENTRYPOINT FILES…: files into /usr/local/bin of a base image
image() {
  local name=$1 base=$2 entry=$3 d; shift 3
  have_image "$name" && return 0
  d=$(mktemp -d); cp "$@" "$d/"
  printf 'FROM %s\nCOPY . /usr/local/bin/\nENTRYPOINT ["/usr/local/bin/%s"]\n' "$base" "$entry" | docker build -q -t "$name" -f - "$d" >/dev/null 2>"$home/build.log" ||
    { cat "$home/build.log" >&2; return 1; }
  rm -rf "$d"
}

base() { packages; engine; pulled debian:12-slim || debian debian:12-slim iptables,conntrack,iproute2,kmod,jq,ca-certificates,procps; }

build_node_image() {
  build local-path-provisioner github.com/rancher/local-path-provisioner@$localpath
  build etcd go.etcd.io/etcd/server/v3@$etcd
  build coredns github.com/coredns/coredns@$coredns
  build_kubernetes
  base
  debian penstock.test/node-base:bookworm systemd,systemd-sysv,dbus,containerd,runc,containernetworking-plugins,iptables,nftables,conntrack,iproute2,socat,ethtool,procps,kmod,mount,util-linux,jq,hostname,ca-certificates
  gcc -static -O2 -o "$bin/pause" "$here/pause.c"
  image $registry/pause:3.10 scratch pause "$bin/pause"
  for c in kube-apiserver kube-controller-manager kube-scheduler; do image $registry/$c:$kubernetes scratch $c "$bin/$c"; done
  image $registry/etcd:3.6.5-0 scratch etcd "$bin/etcd"
  image $registry/coredns/coredns:v1.12.1 scratch coredns "$bin/coredns"
  image kindest/local-path-provisioner:local scratch local-path-provisioner "$bin/local-path-provisioner"
  image $registry/kube-proxy:$kubernetes debian:12-slim kube-proxy "$bin/kube-proxy" "$bin/kubectl" "$here/node-network"
  docker tag $registry/kube-proxy:$kubernetes penstock.test/node-network:local
  say "making the node image"
  local d; d=$(mktemp -d)
  cp -r "$here/node" "$d/node"; mkdir "$d/bin"; cp "$bin"/{kubelet,kubeadm,kubectl} "$d/bin/"; echo "$kubernetes" > "$d/node/kind/version"
  cat > "$d/Dockerfile" <<'END'
FROM penstock.test/node-base:bookworm
COPY node /
COPY bin /usr/bin
RUN mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin && rm -f /etc/cni/net.d/* && systemctl enable containerd kubelet \
 && systemctl mask getty.target console-getty.service systemd-udevd.service systemd-logind.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer \
 && ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint"]
END
  docker build -q -t "$built-empty" "$d" >/dev/null 2>"$home/build.log" || { cat "$home/build.log" >&2; return 1; }
  rm -rf "$d"
  # Images go into the node's own store now: kind waits only 30 s for a node to come up.
  local c; c=$(docker run -d --privileged --entrypoint sleep "$built-empty" 1000)
  docker exec -d "$c" containerd
  until docker exec "$c" ctr version >/dev/null 2>&1; do sleep 0.2; done
  docker save $registry/{pause:3.10,etcd:3.6.5-0,coredns/coredns:v1.12.1} $registry/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy}:$kubernetes \
    penstock.test/node-network:local kindest/local-path-provisioner:local debian:12-slim |
    docker exec -i "$c" ctr -n k8s.io images import --no-unpack - >/dev/null
  docker exec "$c" pkill -x containerd; sleep 1; docker stop -t 1 "$c" >/dev/null
  docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' "$c" "$built" >/dev/null; docker rm "$c" >/dev/null
}

install_all() {
  mkdir -p "$bin"; packages
  build kind sigs.k8s.io/kind@$kind
  build_helm
  command -v kubectl >/dev/null || build_kubernetes
  engine; image=$(node_image)
}

environment() { echo "export PATH=$bin:\$PATH KUBECONFIG=$home/${1:-penstock}.kubeconfig"; }

up() {
  local name=${1:-penstock} workers=${2:-2} config image
  install_all
  if kind get clusters 2>/dev/null | grep -qx "$name"; then environment "$name"; return; fi
  config=$(printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n'; for ((i = 0; i < workers; i++)); do echo "- role: worker"; done)
  kind create cluster --name "$name" --image "$image" --config - --wait 120s --kubeconfig "$home/$name.kubeconfig" <<<"$config" >&2
  "$bin/kubectl" --kubeconfig "$home/$name.kubeconfig" wait --for=condition=Ready node --all --timeout=60s >&2
  environment "$name"
}

command=${1:-help}; [ $# -gt 0 ] && shift
case $command in
  install) install_all ;;
  plane)
    mkdir -p "$bin"
    build etcd go.etcd.io/etcd/server/v3@$etcd && build_kubernetes && build kwok sigs.k8s.io/kwok/cmd/kwok@$kwok ;;
  helm) mkdir -p "$bin"; build_helm ;;
  tool) mkdir -p "$bin"; build "$@" ;;
  base) mkdir -p "$bin"; base ;;
  up) up "$@" ;;
  env) environment "$@" ;;
  load) name=penstock; have_image "$1" || { name=$1; shift; }; kind load docker-image "$@" --name "$name" ;;
  down) kind delete cluster --name "${1:-penstock}" ;;
  *) sed -n '2,15p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
