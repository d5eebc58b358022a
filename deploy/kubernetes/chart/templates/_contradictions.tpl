{{/* values.schema.json checks each value; this checks combinations. */}}
{{- define "resnet-serve.contradictions" -}}
{{- $config := .Values.config -}}
{{- if and (not .Values.keys.existingSecret) (not $config.allow_anonymous) -}}
{{- fail "keys.existingSecret is empty: name a Secret with keys, or set config.allow_anonymous to true to serve anyone" -}}
{{- end -}}
{{- if and (hasKey $config "port") (eq (int $config.port) 0) -}}
{{- fail "config.port is 0, an unpredictable port: set another" -}}
{{- end -}}
{{- if and (hasKey $config "grpc_port") (eq (int $config.grpc_port) 0) -}}
{{- fail "config.grpc_port is 0, an unpredictable port: set another" -}}
{{- end -}}
{{- if eq (int $config.grpc_port) (int (include "resnet-serve.port" .)) -}}
{{- fail "config.grpc_port is config.port: set another" -}}
{{- end -}}
{{- $host := $config.host | default "0.0.0.0" -}}
{{- if hasPrefix "unix:" $host -}}
{{- fail (printf "config.host is %s, which no probe and no Service could reach: leave it out, or set it to :: for IPv6" $host) -}}
{{- end -}}
{{- if or (hasPrefix "127." $host) (has $host (list "localhost" "::1")) -}}
{{- fail (printf "config.host is %s, where only the pod itself could reach the service: leave it out, or set it to :: for IPv6" $host) -}}
{{- end -}}
{{- if and (eq $host "0.0.0.0") (has "IPv6" .Values.service.ipFamilies) -}}
{{- fail "service.ipFamilies has IPv6, but pods listen on IPv4 only: set config.host to ::" -}}
{{- end -}}
{{- if and (eq $host "0.0.0.0") (hasSuffix "DualStack" .Values.service.ipFamilyPolicy) -}}
{{- fail (printf "service.ipFamilyPolicy is %s, but pods listen on IPv4 only: set config.host to ::" .Values.service.ipFamilyPolicy) -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "RESNET_SERVE_" .name -}}
{{- fail (printf "extraEnv has %s, which would override config: give it as config.%s" .name (.name | trimPrefix "RESNET_SERVE_" | lower)) -}}
{{- end -}}
{{- end -}}
{{- $sources := compact (list .Values.bundles.existingClaim .Values.bundles.image .Values.bundles.fetch.image) -}}
{{- if gt (len $sources) 1 -}}
{{- fail (printf "bundles can have only one source, not each of %s: leave all but one of bundles.existingClaim, bundles.image and bundles.fetch.image empty" (join ", " $sources)) -}}
{{- end -}}
{{- if and .Values.bundles.fetch.image (not .Values.bundles.fetch.command) -}}
{{- fail "bundles.fetch.command is empty: set the command that writes the bundles to /bundles" -}}
{{- end -}}
{{- $gpus := int .Values.gpu.count -}}
{{- $placed := 0 -}}
{{- range $number, $model := $config.models -}}
{{- if and (hasPrefix "/bundles/" $model.spec) (not $sources) -}}
{{- fail (printf "config.models[%d].spec is %s, but nothing is mounted there: set bundles.existingClaim, bundles.image or bundles.fetch" $number $model.spec) -}}
{{- end -}}
{{- $device := $model.device | default "auto" -}}
{{- if $model.device -}}{{- $placed = add1 $placed -}}{{- end -}}
{{- range (kindIs "slice" $device | ternary $device (list $device)) -}}
{{- if and (hasPrefix "cuda" .) (ge (int (trimPrefix ":" (trimPrefix "cuda" .) | default "0")) $gpus) -}}
{{- fail (printf "config.models[%d].device is %s, but pods have %d GPUs: raise gpu.count" $number . $gpus) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (gt $gpus 0) (gt $placed 0) (lt $placed (len $config.models)) -}}
{{- fail "some of config.models have a device and some have none: with GPUs, set it for all of them, or for none to use cuda" -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if .enabled -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, more than maxReplicas, %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if not (or .queueDepth .cpuUtilization) -}}
{{- fail "autoscaling has no metric: set autoscaling.queueDepth or autoscaling.cpuUtilization" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq (toString .Values.rollingUpdate.maxUnavailable | trimSuffix "%") "0") (eq (toString .Values.rollingUpdate.maxSurge | trimSuffix "%") "0") -}}
{{- fail "rollingUpdate.maxUnavailable and maxSurge are both 0, so no pod could be replaced" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.serviceMonitor.enabled (not .Values.networkPolicy.prometheusNamespace) -}}
{{- fail "networkPolicy would block Prometheus: set networkPolicy.prometheusNamespace" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is empty: name the Gateway" -}}
{{- end -}}
{{- end -}}
