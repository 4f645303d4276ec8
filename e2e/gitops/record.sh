#!/usr/bin/env bash
# Records StreamingJobs in every state that GitOps tools judge, on a real cluster with Penstock installed, and shows that nothing of
# what the controller writes is drift.
#
#   record.sh S3           S3: the endpoint of an S3 server as pods reach it, with the bucket streams
#
# Uses the kubectl and the context of whoever calls. Works in the namespace e2e-gitops, which goes with it; takes the controller away
# for moments, and the webhook for one, and puts both back.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,8p' "$0"; exit 2; }
s3=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$here/recorded namespace=e2e-gitops run=$$
mkdir -p "$out"
k() { kubectl --namespace "$namespace" "$@"; }
say() { echo "gitops: $*" >&2; }
die() { echo "FAIL gitops: $*"; exit 1; }

controller() {
  kubectl --namespace penstock scale deployment penstock-operator --replicas="$1" >/dev/null
  [ "$1" = 0 ] && kubectl --namespace penstock wait --for=delete pod -l app.kubernetes.io/name=penstock-operator --timeout=60s >/dev/null
  [ "$1" = 0 ] || kubectl --namespace penstock rollout status deployment penstock-operator --timeout=120s >/dev/null
}
# Where the API server looks for the webhook: at a port where nobody is, it is away.
webhook() {
  kubectl patch validatingwebhookconfiguration penstock-operator --type=json \
    -p "[{\"op\": \"replace\", \"path\": \"/webhooks/0/clientConfig/service/port\", \"value\": $1}]" >/dev/null
  sleep 3
}
put_back() {
  local status=$?
  webhook 443 || true
  controller 1 || true
  kubectl delete namespace "$namespace" --ignore-not-found --wait=false >/dev/null || true
  exit $status
}

# job NAME TRIGGER SQL [ROWS]: a manifest
job() {
  cat <<Y
apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {name: $1, namespace: $namespace}
spec:
  sources:
    - name: numbers
      generator: {rowsPerSecond: 10${4:+, rows: $4}}
      columns: [{name: id, type: BIGINT, generate: {sequence: {}}}]
  sql: $3
  sinks:
    - name: shown
      print: {}
  trigger: $2
  checkpoint:
    interval: 1s
    storage: {s3: {bucket: streams, prefix: $namespace-$run, region: us-east-1, endpoint: "$s3", pathStyle: true}, secretRef: {name: s3}}
  state: {ephemeral: {size: 1Gi}}
  workers: {resources: {requests: {cpu: 50m, memory: 256Mi}, limits: {memory: 512Mi}}}
  restart: {maxPerHour: 0}
  upgrade: {acceptAfter: 1s, progressDeadline: 120s}
Y
}
good='INSERT INTO shown SELECT id FROM numbers WHERE id % 100 = 0'

# wait_for JOB JQ: until the job is so
wait_for() {
  local i
  for ((i = 0; i < 360; i++)); do
    k get streamingjob "$1" -o json | jq -e "$2" >/dev/null && return 0
    sleep 0.5
  done
  k get streamingjob "$1" -o yaml >&2; k get pods,events >&2
  die "$1 did not become $2"
}
reason() { wait_for "$1" ".status.observedGeneration == .metadata.generation and any(.status.conditions[]?; .type == \"Ready\" and .reason == \"$2\")"; }

# record STATE ARGOCD KSTATUS JOB
record() {
  { echo "# argocd: $2"; echo "# kstatus: $3"; k get streamingjob "$4" -o yaml; } > "$out/$1.yaml"
  say "recorded $1"
}

# no_drift JOB [--server-side…]: a second apply of the same manifest, as Argo CD and people do it or as Flux does, changes nothing, and
# all but the status is the person's.
no_drift() {
  local before after theirs
  before=$(k get streamingjob "$1" -o json | jq -S 'del(.status, .metadata.managedFields, .metadata.resourceVersion)')
  # It says "configured" where the API server has added defaults within a list, and sends what changes nothing.
  k apply "${@:2}" -f "$work/$1.yaml" >/dev/null
  after=$(k get streamingjob "$1" -o json | jq -S 'del(.status, .metadata.managedFields, .metadata.resourceVersion)')
  [ "$before" = "$after" ] || die "a second apply of $1 changed it: $(diff <(echo "$before") <(echo "$after"))"
  k diff "${@:2}" -f "$work/$1.yaml" || die "kubectl diff sees drift in $1"
  theirs=$(k get streamingjob "$1" -o json --show-managed-fields |
    jq -c '[.metadata.managedFields[] | select(.manager == "penstock-operator") | .fieldsV1 | keys[]] | unique')
  [ "$theirs" = '["f:status"]' ] || die "the controller wrote $theirs into $1"
  say "no drift in $1"
}

work=$(mktemp -d)
kubectl delete namespace "$namespace" --ignore-not-found --timeout=120s >/dev/null
kubectl create namespace "$namespace" >/dev/null
trap put_back EXIT
kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
k create secret generic s3 --from-literal=access_key_id=penstock --from-literal=secret_access_key=penstock-secret >/dev/null
job flow '{continuous: {}}' "$good" > "$work/flow.yaml"
job batch '{availableNow: {}}' "$good" 1000 > "$work/batch.yaml"
job bad '{continuous: {}}' 'INSERT INTO shown SELECT ix FROM numbers' > "$work/bad.yaml"

controller 0
k apply -f "$work/flow.yaml" >/dev/null
record pending Progressing InProgress flow
controller 1
wait_for flow 'any(.status.conditions[]?; .type == "Reconciling" and .status == "True")'
record reconciling Progressing InProgress flow
k apply --server-side --field-manager=flux -f "$work/batch.yaml" >/dev/null
reason flow Running
record running Healthy Current flow
no_drift flow

controller 0
k patch streamingjob flow --type=merge -p '{"spec": {"sql": "INSERT INTO shown SELECT 10 / (id - id) AS id FROM numbers"}}' >/dev/null
record edited Progressing InProgress flow
controller 1
reason flow RolledBack
record rolled-back Degraded Failed flow

k apply -f "$work/flow.yaml" >/dev/null
reason flow Running
k patch streamingjob flow --type=merge -p '{"spec": {"suspend": true}}' >/dev/null
reason flow Suspended
record suspended Suspended Current flow
# Nothing is measured in it, so not even its status is written: it stays the same to the last byte, for more than one look of the
# controller.
sed 's/^  restart:/  suspend: true\n&/' "$work/flow.yaml" > "$work/still.yaml"
k apply -f "$work/still.yaml" >/dev/null
sleep 5
version=$(k get streamingjob flow -o jsonpath='{.metadata.resourceVersion}')
k apply -f "$work/still.yaml" >/dev/null
sleep 40
[ "$(k get streamingjob flow -o jsonpath='{.metadata.resourceVersion}')" = "$version" ] || die "a suspended job was written after a second apply"

reason batch Completed
record completed Healthy Current batch
no_drift batch --server-side --field-manager=flux

webhook 444
k apply -f "$work/bad.yaml" >/dev/null
webhook 443
reason bad Invalid
record stalled Degraded Failed bad

k delete streamingjob batch --cascade=foreground --wait=false >/dev/null
if k get streamingjob batch -o json | jq -e .metadata.deletionTimestamp >/dev/null; then record deleted Progressing Terminating batch
else die "batch was gone at once"; fi
echo "PASS gitops: $(ls "$out" | wc -l) states recorded, no drift"
