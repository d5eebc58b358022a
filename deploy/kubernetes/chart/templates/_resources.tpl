{{/* What a pod asks for: the defaults of its device, the values over them, and its GPUs. */}}
{{- define "resnet-serve.resources" -}}
{{- $gpus := int .Values.gpu.count -}}
{{- $resources := dict "requests" (dict "cpu" "2" "memory" "2Gi") "limits" (dict "cpu" "2" "memory" "4Gi") -}}
{{- if gt $gpus 0 -}}
{{- $resources = dict "requests" (dict "cpu" "3" "memory" "8Gi") "limits" (dict "memory" "32Gi") -}}
{{- end -}}
{{- range $part, $given := .Values.resources -}}
{{- range $name, $quantity := $given -}}
{{- if kindIs "invalid" $quantity -}}
{{- $_ := unset (get $resources $part) $name -}}
{{- else -}}
{{- $_ := set (get $resources $part) $name $quantity -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt $gpus 0 -}}
{{- $_ := set $resources.limits .Values.gpu.resource $gpus -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
