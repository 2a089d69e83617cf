{{- /*
Everything the operator may ask of the API server, each with its reason. It has no right to Secrets, nodes, namespaces,
pods/exec, roles or webhooks, and none to create pods. What RBAC cannot say (only own children, only enabled namespaces,
only spec.knobs) the admission policies say.
*/ -}}
{{- define "amdahl-loop.operatorRules" -}}
# Reads the jobs it looks after; writes a proven value by a patch of one field.
- apiGroups: [amdahl-loop.io]
  resources: [trainingjobs]
  verbs: [get, list, watch, patch]
# Says what it found, and why it does nothing.
- apiGroups: [amdahl-loop.io]
  resources: [trainingjobs/status]
  verbs: [patch]
# The ledger: written before the first block runs, read again after a restart. No delete: it outlives the jobs.
- apiGroups: [amdahl-loop.io]
  resources: [experiments]
  verbs: [get, list, watch, create, patch]
# Blocks, verdicts and applications, appended with a resourceVersion.
- apiGroups: [amdahl-loop.io]
  resources: [experiments/status]
  verbs: [patch]
# An administrator's caps.
- apiGroups: [amdahl-loop.io]
  resources: [tuningpolicies]
  verbs: [list, watch]
# The running job and its blocks: created, suspended, swept.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Phases, nodes, termination messages, the address of /metrics. Pods are created by Jobs, never by the operator.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The ranks of a job find each other by a headless Service; it goes with its owner.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Knob values and the probe; list finds the probes of older versions by their label, delete sweeps them.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, update, patch, delete]
# Verdicts and transitions are told; refusals by a quota are read, so that trials make way.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]
# Trials make way for workloads that wait in the job's own queue.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
# A volume's access mode decides where a trial may run, before anything is spent.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
{{- end -}}
