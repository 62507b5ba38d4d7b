#!/usr/bin/env bash
# A cluster on this machine with Knative, Kourier and KServe: cluster.sh up|status|down kind|minikube
# KIND_CLUSTER and MINIKUBE_PROFILE name it. What is installed stands in `downloads`, each file with its SHA-256.
set -euo pipefail
cd "$(dirname "$0")"

readonly KUBERNETES=v1.34.0 # the same as in kind.yaml
readonly CACHE=../.cache/cluster
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

has() { # FILE SHA256
  sha256sum --check --status <<<"$2  $1" 2>/dev/null
}

# All files, beside copies of the kustomizations that change them: a kustomization takes no file from elsewhere.
download() {
  mkdir -p "$CACHE"
  cp -R knative kserve sklearn "$CACHE"
  local sum file url
  while read -r sum file url; do
    [[ $sum != "#" ]] || continue
    if ! has "$CACHE/$file" "$sum"; then
      curl --fail --silent --show-error --location --retry 5 --output "$CACHE/$file.part" "$url" ||
        fail "$url cannot be read; try again later."
      has "$CACHE/$file.part" "$sum" || fail "$url is not the file whose SHA-256 stands in cluster/downloads; nothing was installed."
      mv "$CACHE/$file.part" "$CACHE/$file"
    fi
  done <downloads
}

ready() { # NAMESPACE: every deployment in it
  kubectl -n "$1" wait deployment --all --for condition=Available --timeout 300s >/dev/null ||
    fail "not everything in $1 became ready; see kubectl -n $1 get pods"
}

create_kind() {
  need docker
  if [[ $(sysctl -n fs.inotify.max_user_instances 2>/dev/null || echo 8192) -lt 512 ]]; then
    fail "kind runs out of inotify instances here; sudo sysctl -w fs.inotify.max_user_instances=1280 fs.inotify.max_user_watches=655360"
  fi
  if ! kind get clusters 2>/dev/null | grep -qx "$NAME_KIND"; then
    kind create cluster --name "$NAME_KIND" --config kind.yaml --wait 120s
  fi
  kubectl config use-context "kind-$NAME_KIND" >/dev/null
}

create_minikube() {
  minikube start -p "$NAME_MINIKUBE" --kubernetes-version "$KUBERNETES" --cpus 4 --memory 8g --cni calico
  kubectl config use-context "$NAME_MINIKUBE" >/dev/null
}

up() {
  need "$1" kubectl curl sha256sum
  say "Downloads"
  download
  say "Kubernetes $KUBERNETES on $1"
  "create_$1"
  say "cert-manager"
  apply -f "$CACHE/cert-manager.yaml"
  ready cert-manager
  say "Knative Serving and Kourier"
  apply -f "$CACHE/serving-crds.yaml"
  apply -k "$CACHE/knative"
  ready knative-serving
  ready kourier-system
  say "KServe"
  apply -k "$CACHE/kserve"
  ready kserve
  apply -k "$CACHE/sklearn"
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
