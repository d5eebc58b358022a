{{/* Seconds from preStop to the kill: the drain, and 10 s for the processes to exit. */}}
{{- define "resnet-serve.terminationGracePeriodSeconds" -}}
{{- $config := .Values.config -}}
{{- $drain := addf $config.shutdown_grace_s $config.shutdown_timeout_s -}}
{{- $least := add .Values.drain.preStopSeconds (ceil $drain) 10 -}}
{{- $given := .Values.drain.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $least -}}
{{- else if lt (int $given) (int $least) -}}
{{- fail (printf "drain.terminationGracePeriodSeconds is %d, but preStopSeconds, config.shutdown_grace_s, config.shutdown_timeout_s and 10 s to end are %d: pods would be killed during requests; raise it, or leave it null" (int $given) (int $least)) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}
