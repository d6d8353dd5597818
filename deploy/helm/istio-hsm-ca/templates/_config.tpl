{{/* The daemon's configuration: `config` of the values with the chart's additions. The program validates it. */}}
{{- define "ca.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $tokens := list -}}
{{- range (include "ca.tokens" . | fromJson).tokens -}}
{{- $token := dict "name" .name "socket" (printf "/run/token/%s/socket" .name) "socket_uid" (int64 $.Values.tokenHost.runAsUser) -}}
{{- with .callTimeout -}}{{- $_ := set $token "call_timeout" . -}}{{- end -}}
{{- $tokens = append $tokens $token -}}
{{- end -}}
{{- $service := printf "%s.%s.svc" (include "ca.fullname" .) .Release.Namespace -}}
{{- $own := dict
  "ca" (dict "bundle" "/etc/istio-hsm-ca/bundle")
  "token" $tokens
  "serving" (dict "dns_names" (concat (list $service) (($config.serving | default dict).dns_names | default list) | uniq))
  "log" (dict "directory" "/var/lib/istio-hsm-ca/log")
  "admin" (dict "socket" "/run/istio-hsm-ca/admin.sock")
-}}
{{- if $config.kubernetes -}}
{{- $kubernetes := dict "namespace" .Release.Namespace "lease" (include "ca.fullname" .) -}}
{{- if kindIs "map" $config.kubernetes.checkpoints -}}
{{- $_ := set $kubernetes "checkpoints" (dict "configmap" (include "ca.checkpointsConfigMap" .)) -}}
{{- end -}}
{{- $_ := set $own "kubernetes" $kubernetes -}}
{{- end -}}
{{- $config = mustMergeOverwrite $config $own -}}
{{- include "ca.integers" $config -}}
{{- toToml $config -}}
{{- end }}

{{/* A token host's own settings; it derives the others from the daemon's configuration: (dict "token" MAP). */}}
{{- define "ca.hostConfig" -}}
{{- $host := dict "uri" .uri "pin_file" (include "ca.pinFile" .) "pin_marker" (printf "/var/lib/token/%s/pin-refused" .name) "checkpoint_file" (printf "/var/lib/token/%s/signed-checkpoints" .name) -}}
{{- with .sessions -}}{{- $_ := set $host "sessions" (int64 .) -}}{{- end -}}
{{- with .callTimeout -}}{{- $_ := set $host "call_timeout" . -}}{{- end -}}
{{- toToml $host -}}
{{- end }}

{{/* Helm reads every number as a float; TOML has integers. Changes the map in place. */}}
{{- define "ca.integers" -}}
{{- $map := . -}}
{{- range $key, $value := $map -}}
{{- if kindIs "float64" $value -}}{{- $_ := set $map $key (int64 $value) -}}
{{- else if kindIs "map" $value -}}{{- include "ca.integers" $value -}}
{{- else if kindIs "slice" $value -}}
{{- range $value -}}{{- if kindIs "map" . -}}{{- include "ca.integers" . -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
