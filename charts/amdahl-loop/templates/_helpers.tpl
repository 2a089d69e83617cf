{{- define "amdahl-loop.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* 40 characters leave room for the longest suffix of an object's name. */ -}}
{{- define "amdahl-loop.fullname" -}}
{{- $name := include "amdahl-loop.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "amdahl-loop.selectorLabels" -}}
app.kubernetes.io/name: {{ include "amdahl-loop.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "amdahl-loop.labels" -}}
app.kubernetes.io/name: {{ include "amdahl-loop.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: amdahl-loop
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "amdahl-loop.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "amdahl-loop.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "amdahl-loop.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- /* Whether cluster-scoped objects are part of this release: "true" or nothing. */ -}}
{{- define "amdahl-loop.isClusterScoped" -}}
{{- if eq .Values.scope "Cluster" }}true{{ end -}}
{{- end -}}

{{- /* The namespaces that are named, as a JSON list; empty means every enabled one. */ -}}
{{- define "amdahl-loop.namespaces" -}}
{{- if .Values.watchNamespaces -}}
{{- .Values.watchNamespaces | toJson -}}
{{- else if eq .Values.scope "Namespaced" -}}
{{- list .Release.Namespace | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- /*
The namespaces where trials run that this release knows of, as a JSON list: those of its own operator, and those of the
operators that teams run by themselves. Empty where its operator looks after every enabled one.
*/ -}}
{{- define "amdahl-loop.trialNamespaces" -}}
{{- $own := include "amdahl-loop.namespaces" . | fromJsonArray -}}
{{- $teams := list -}}
{{- range .Values.namespacedOperators -}}
{{- $teams = concat $teams (.namespaces | default (list .namespace)) -}}
{{- end -}}
{{- if and .Values.operator.enabled (not $own) -}}
[]
{{- else -}}
{{- concat $own $teams | uniq | sortAlpha | toJson -}}
{{- end -}}
{{- end -}}

{{- /* Without the policies trials are off, whatever trials.enabled says. */ -}}
{{- define "amdahl-loop.runsTrials" -}}
{{- $policies := ternary .Values.admission.enabled .Values.admission.installedByAdmin (eq .Values.scope "Cluster") -}}
{{- and .Values.trials.enabled $policies -}}
{{- end -}}

{{- /* Where the operator and the PodMonitor find /metrics in a training pod. */ -}}
{{- define "amdahl-loop.jobMetricsPort" -}}9178{{- end -}}

{{- /* Everything the operator is told, in one place. */ -}}
{{- define "amdahl-loop.env" -}}
- {name: AMDAHL_LOOP_NAMESPACES, value: {{ include "amdahl-loop.namespaces" . | fromJsonArray | join "," | quote }}} # empty: all
- {name: AMDAHL_LOOP_TRIALS, value: {{ include "amdahl-loop.runsTrials" . | quote }}}
- {name: AMDAHL_LOOP_PARALLEL_TRIALS, value: {{ .Values.trials.parallel | int | quote }}}
- {name: AMDAHL_LOOP_WORKERS, value: {{ .Values.workers | int | quote }}}
- {name: AMDAHL_LOOP_METRICS_PORT, value: {{ .Values.metrics.port | quote }}}
- {name: AMDAHL_LOOP_HEALTH_PORT, value: {{ .Values.health.port | quote }}}
- {name: AMDAHL_LOOP_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
{{- end -}}

{{- /* What the "restricted" Pod Security Standard asks of a container, and a root file system that cannot be written. */ -}}
{{- define "amdahl-loop.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "amdahl-loop.podSecurityContext" -}}
runAsNonRoot: true # the image's own user is 65532; no number here, since OpenShift assigns one
seccompProfile: {type: RuntimeDefault}
{{- end -}}
