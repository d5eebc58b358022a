{{- define "resnet-serve.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What pods are chosen by; it can never change. */}}
{{- define "resnet-serve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "resnet-serve.metadata" -}}
name: {{ include "resnet-serve.name" . }}
labels:
  {{- include "resnet-serve.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "resnet-serve.image" -}}
{{- $tag := .Values.image.tag | default (ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0)) -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}@{{ .Values.image.digest }}{{- else -}}:{{ $tag }}{{- end -}}
{{- end -}}

{{/* Where all models run; empty: where each says, by default on a GPU if there is one. */}}
{{- define "resnet-serve.device" -}}
{{- $named := false -}}
{{- range .Values.config.models -}}{{- if .device -}}{{- $named = true -}}{{- end -}}{{- end -}}
{{- $gpus := int .Values.gpu.count -}}
{{- if and (gt $gpus 0) (not $named) -}}{{- gt $gpus 1 | ternary "cuda:all" "cuda" -}}{{- end -}}
{{- end -}}

{{- define "resnet-serve.port" -}}
{{- .Values.config.port | default 8000 | int -}}
{{- end -}}

{{- define "resnet-serve.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "resnet-serve.user" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# Lets the group read the Secrets' files and write to the volumes.
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
