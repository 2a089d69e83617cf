{{- /*
The policies run inside the API server: no webhook, no certificate, and nothing that can be down. All of them fail closed.
They are cluster-scoped, so one administrator's release bounds every operator of the cluster.
*/ -}}
{{- define "amdahl-loop.hasPolicies" -}}
{{- if and (eq .Values.scope "Cluster") .Values.admission.enabled }}true{{ end -}}
{{- end -}}

{{- define "amdahl-loop.policyMetadata" -}}
name: {{ include "amdahl-loop.fullname" .context }}-{{ .suffix }}
labels:
  {{- include "amdahl-loop.labels" .context | nindent 2 }}
{{- end -}}

{{- define "amdahl-loop.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  {{- include "amdahl-loop.policyMetadata" . | nindent 2 }}
spec:
  policyName: {{ include "amdahl-loop.fullname" .context }}-{{ .suffix }}
  validationActions: [Deny]
{{- end -}}

{{- /* The operators and where each may act, as a CEL map: user name to namespaces; an empty list stands for every enabled one. */ -}}
{{- define "amdahl-loop.operators" -}}
{{- $operators := dict -}}
{{- range .Values.namespacedOperators -}}
{{- $user := printf "system:serviceaccount:%s:%s" .namespace (.serviceAccount | default "amdahl-loop") -}}
{{- $operators = set $operators $user (.namespaces | default (list .namespace)) -}}
{{- end -}}
{{- if .Values.operator.enabled -}}
{{- $user := printf "system:serviceaccount:%s:%s" .Release.Namespace (include "amdahl-loop.serviceAccountName" .) -}}
{{- $operators = set $operators $user (include "amdahl-loop.namespaces" . | fromJsonArray) -}}
{{- end -}}
{{- toJson $operators -}}
{{- end -}}
