"""The manifests on a real Kubernetes: a cluster that `KUBECONFIG` names, or a node made here."""
