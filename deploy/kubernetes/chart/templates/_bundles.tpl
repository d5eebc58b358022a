{{/* The volume with bundles; empty where no model needs one. */}}
{{- define "resnet-serve.bundles" -}}
{{- with .Values.bundles -}}
{{- if .existingClaim -}}
persistentVolumeClaim: {claimName: {{ .existingClaim }}, readOnly: true}
{{- else if .image -}}
image: {reference: {{ .image }}, pullPolicy: {{ $.Values.image.pullPolicy }}}
{{- else if .fetch.image -}}
emptyDir: {sizeLimit: {{ .fetch.sizeLimit }}}
{{- end -}}
{{- end -}}
{{- end -}}
