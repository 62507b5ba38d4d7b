#!/usr/bin/env bash
# A cluster on this machine with Knative, Kourier and KServe: cluster.sh up|status|down kind|minikube
# KIND_CLUSTER and MINIKUBE_PROFILE name it. Versions stand in the kustomizations beside this file.
set -euo pipefail
cd "$(dirname "$0")"

readonly KUBERNETES=v1.34.0 # the same as in kind.yaml
readonly CERT_MANAGER=https://github.com/cert-manager/cert-manager/releases/download/v1.17.0/cert-manager.yaml
readonly KNATIVE_CRDS=https://github.com/knative/serving/releases/download/knative-v1.21.1/serving-crds.yaml
readonly NAME_KIND=${KIND_CLUSTER:-serin} NAME_MINIKUBE=${MINIKUBE_PROFILE:-serin}
readonly TRIES=30 PAUSE_S=5

fail() {
  echo "serin: $*" >&2
  exit 2
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || fail "$tool is not on the PATH; install it first."
  done
}

say() { echo "== $*"; }

# Webhooks and new kinds take a moment: what they refuse now they accept soon.
apply() {
  local try said
  for ((try = 1; try <= TRIES; try++)); do
    if said=$(kubectl apply --server-side --force-conflicts "$@" 2>&1); then
      return
    fi
    sleep "$PAUSE_S"
  done
  fail "kubectl apply $* was refused for $((TRIES * PAUSE_S)) s: $said"
}

ready() { # NAMESPACE: every deployment in it
  kubectl -n "$1" wait deployment --all --for condition=Available --timeout 300s >/dev/null ||
    fail "not everything in $1 became ready; see kubectl -n $1 get pods"
}

create_kind() {
  need docker kind kubectl
  if [[ $(sysctl -n fs.inotify.max_user_instances 2>/dev/null || echo 8192) -lt 512 ]]; then
    fail "kind runs out of inotify instances here; sudo sysctl -w fs.inotify.max_user_instances=1280 fs.inotify.max_user_watches=655360"
  fi
  if ! kind get clusters 2>/dev/null | grep -qx "$NAME_KIND"; then
    kind create cluster --name "$NAME_KIND" --config kind.yaml --wait 120s
  fi
  kubectl config use-context "kind-$NAME_KIND" >/dev/null
}

create_minikube() {
  need minikube kubectl
  minikube start -p "$NAME_MINIKUBE" --kubernetes-version "$KUBERNETES" --cpus 4 --memory 8g --cni calico
  kubectl config use-context "$NAME_MINIKUBE" >/dev/null
}

up() {
  say "Kubernetes $KUBERNETES on $1"
  "create_$1"
  say "cert-manager"
  apply -f "$CERT_MANAGER"
  ready cert-manager
  say "Knative Serving and Kourier"
  apply -f "$KNATIVE_CRDS"
  apply -k knative
  ready knative-serving
  ready kourier-system
  say "KServe"
  apply -k kserve
  ready kserve
  apply -k sklearn
}

status() {
  need kubectl
  kubectl get nodes
  kubectl get deployments -A
  kubectl get inferenceservices -A
  kubectl get modelrollouts -A
}

down() {
  need "$1"
  case $1 in
    kind) kind delete cluster --name "$NAME_KIND" ;;
    minikube) minikube delete -p "$NAME_MINIKUBE" ;;
  esac
}

[[ ${1:-} =~ ^(up|status|down)$ ]] || fail "use cluster.sh up|status|down kind|minikube"
[[ $1 == status || ${2:-} =~ ^(kind|minikube)$ ]] || fail "CLUSTER is kind or minikube, not ${2:-empty}."
"$@"
