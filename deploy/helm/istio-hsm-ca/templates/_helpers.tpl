{{/* Names. */}}
{{- define "ca.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "ca.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "ca.selector" -}}
app.kubernetes.io/name: {{ include "ca.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ca.labels" -}}
{{ include "ca.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ca.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "ca.fullname" .) }}
{{- else -}}
{{ required "serviceAccount.name is needed with serviceAccount.create: false" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- define "ca.bundleConfigMap" -}}
{{- .Values.bundle.configMap | default (printf "%s-bundle" (include "ca.fullname" .)) -}}
{{- end }}

{{- define "ca.checkpointsConfigMap" -}}
{{- .Values.kubernetes.checkpoints.configMap | default (printf "%s-checkpoints" (include "ca.fullname" .)) -}}
{{- end }}

{{/* An image: (dict "image" MAP "root" $). */}}
{{- define "ca.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Every container's security context: (dict "user" N "group" N). */}}
{{- define "ca.securityContext" -}}
runAsUser: {{ int64 .user }}
runAsGroup: {{ int64 .group }}
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The tokens as JSON {"tokens": [...]}: the configured ones, and SoftHSM's for a trial. */}}
{{- define "ca.tokens" -}}
{{- $tokens := .Values.tokens | default list -}}
{{- if .Values.softhsm.trial -}}
{{- $image := include "ca.image" (dict "image" .Values.softhsm.image "root" .) -}}
{{- $uri := printf "pkcs11:token=istio-ca?module-path=%s" .Values.softhsm.module -}}
{{- $mount := dict "name" "softhsm" "mountPath" "/var/lib/softhsm" -}}
{{- $volume := dict "name" "softhsm" "persistentVolumeClaim" (dict "claimName" (printf "%s-softhsm" (include "ca.fullname" .))) -}}
{{- $env := dict "SOFTHSM2_CONF" "/var/lib/softhsm/istio-ca/softhsm2.conf" -}}
{{- $trial := dict "name" "softhsm" "uri" $uri "image" $image "env" $env "volumes" (list $volume) "volumeMounts" (list $mount) "pinFile" "/var/lib/softhsm/istio-ca/pin" -}}
{{- $tokens = append $tokens $trial -}}
{{- end -}}
{{- dict "tokens" $tokens | toJson -}}
{{- end }}

{{- define "ca.pinFile" -}}
{{- .pinFile | default "/var/run/secrets/istio-hsm-ca/pin/pin" -}}
{{- end }}

{{/* The names of the endpoint, and all that the daemon may have signed, as JSON lists. */}}
{{- define "ca.servingNames" -}}
{{- $service := printf "%s.%s.svc" (include "ca.fullname" .) .Release.Namespace -}}
{{- concat (list $service) .Values.serving.dnsNames | uniq | toJson -}}
{{- end }}

{{/* istiod's names (istiod.<ns>.svc, istiod-<revision>, istiod-remote, istio-pilot) and requesters', of one cluster's map. */}}
{{- define "ca.istiodNames" -}}
{{- $names := list -}}
{{- $istiod := .istiodCertificate | default dict -}}
{{- if $istiod.enabled -}}
{{- $services := list -}}
{{- range $revision := $istiod.revisions | default (list "default") -}}
{{- $services = append $services (eq $revision "default" | ternary "istiod" (printf "istiod-%s" $revision)) -}}
{{- end -}}
{{- range $service := concat $services (list "istiod-remote" "istio-pilot") -}}
{{- $names = append $names (printf "%s.%s.svc" $service ($istiod.namespace | default "istio-system")) -}}
{{- end -}}
{{- $names = concat $names ($istiod.dnsNames | default list) -}}
{{- end -}}
{{- range $signer := .signers | default list -}}
{{- range $requester := $signer.requesters | default list -}}
{{- $names = concat $names ($requester.dnsNames | default list) -}}
{{- end -}}
{{- end -}}
{{- $names | toJson -}}
{{- end }}

{{- define "ca.hostNames" -}}
{{- $names := include "ca.servingNames" . | fromJsonArray -}}
{{- range $cluster := prepend (.Values.kubernetes.remoteClusters | default list) .Values.kubernetes -}}
{{- $names = concat $names (include "ca.istiodNames" $cluster | fromJsonArray) -}}
{{- range $signer := $cluster.signers | default list -}}
{{- range $requester := $signer.requesters | default list -}}
{{- $names = concat $names ($requester.dnsNames | default list) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end }}

{{- define "ca.hostAddresses" -}}
{{- $addresses := .Values.serving.ipAddresses -}}
{{- range $cluster := prepend (.Values.kubernetes.remoteClusters | default list) .Values.kubernetes -}}
{{- $istiod := $cluster.istiodCertificate | default dict -}}
{{- if $istiod.enabled -}}
{{- $addresses = concat $addresses ($istiod.ipAddresses | default list) -}}
{{- end -}}
{{- end -}}
{{- $addresses | uniq | toJson -}}
{{- end }}

{{/* The longest life that the daemon has signed, in seconds. */}}
{{- define "ca.longest" -}}
{{- $longest := list .Values.ca.maxTtlSeconds .Values.serving.ttlSeconds -}}
{{- range $cluster := prepend (.Values.kubernetes.remoteClusters | default list) .Values.kubernetes -}}
{{- range $section := list $cluster.istiodCertificate $cluster.intermediate $cluster.workloadSecrets -}}
{{- if and $section $section.enabled $section.ttlSeconds -}}
{{- $longest = append $longest $section.ttlSeconds -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $most := 0 -}}
{{- range $longest -}}{{- $most = max $most (int64 .) -}}{{- end -}}
{{- $most -}}
{{- end }}

{{/* "true" when any cluster signs intermediates. */}}
{{- define "ca.intermediates" -}}
{{- range $cluster := prepend (.Values.kubernetes.remoteClusters | default list) .Values.kubernetes -}}
{{- if ($cluster.intermediate | default dict).enabled -}}true{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" when the cluster's map has a controller: what is done by the leader alone. */}}
{{- define "ca.controllers" -}}
{{- range $section := list .rootConfigMap .istiodCertificate .intermediate .workloadSecrets -}}
{{- if ($section | default dict).enabled -}}true{{- end -}}
{{- end -}}
{{- if .signers -}}true{{- end -}}
{{- end }}

{{/* "true" when a controller runs for any cluster: then there is a Lease, in this one. */}}
{{- define "ca.leads" -}}
{{- range $cluster := prepend (.Values.kubernetes.remoteClusters | default list) .Values.kubernetes -}}
{{- include "ca.controllers" $cluster -}}
{{- end -}}
{{- end }}

{{/* "true" when this cluster's API server is asked anything. */}}
{{- define "ca.local" -}}
{{- with .Values.kubernetes -}}
{{- if or .tokenReview.enabled .nodeImpersonation.enabled .checkpoints.enabled (include "ca.controllers" .) -}}true{{- end -}}
{{- end -}}
{{- include "ca.leads" . -}}
{{- end }}

{{/* What makes no sense together. */}}
{{- define "ca.validate" -}}
{{- if not (or .Values.tokens .Values.softhsm.trial) -}}
{{- fail "no token: list one in tokens, or set softhsm.trial for a trial" -}}
{{- end -}}
{{- if or (eq (int64 .Values.daemon.runAsUser) (int64 .Values.tokenHost.runAsUser)) (eq (int64 .Values.daemon.runAsGroup) (int64 .Values.tokenHost.runAsGroup)) -}}
{{- fail "daemon and tokenHost run as one user or group; give them different ones, or the daemon's can read the PIN" -}}
{{- end -}}
{{- if has (int64 .Values.fsGroup) (list (int64 .Values.daemon.runAsGroup) (int64 .Values.tokenHost.runAsGroup)) -}}
{{- fail "fsGroup is also the group of a container; give it a number of its own" -}}
{{- end -}}
{{- if and .Values.bundle.files .Values.import.enabled -}}
{{- fail "bundle.files and import.enabled both write the bundle's ConfigMap; give one" -}}
{{- end -}}
{{- if and .Values.kubernetes.workloadSecrets.enabled (not .Values.kubernetes.workloadSecrets.namespaces) -}}
{{- fail "kubernetes.workloadSecrets.namespaces is empty; list the namespaces whose service accounts get Secrets" -}}
{{- end -}}
{{- $names := list -}}
{{- range (include "ca.tokens" . | fromJson).tokens -}}
{{- if has .name $names -}}{{- fail (printf "two tokens have the name %s" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end }}

{{/* The volumes that only a token's own containers mount: its PIN, the vendor's module. */}}
{{- define "ca.tokenVolumes" -}}
{{- with .pin }}
- name: pin-{{ $.name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items: [{ key: {{ .key | default "pin" | toJson }}, path: pin }]
{{- end }}
{{- with .volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where pods go. */}}
{{- define "ca.scheduling" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- with .Values.topologySpreadConstraints }}
{{ toYaml . | indent 2 }}
{{- else }}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "ca.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Names of what has no namespace carry it. */}}
{{- define "ca.clusterRole" -}}
{{- printf "%s-%s" .Release.Namespace (include "ca.fullname" .) -}}
{{- end }}

{{/* A Role's binding and its head; the rules follow: (dict "root" $ "part" NAME "namespace" NAMESPACE "why" TEXT). */}}
{{- define "ca.role" }}
{{- $name := printf "%s-%s" (include "ca.fullname" .root) .part }}
{{- $labels := include "ca.labels" .root }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ .namespace }}
  labels: {{- $labels | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "ca.serviceAccount" .root }}
    namespace: {{ .root.Release.Namespace }}
---
# {{ .why }}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ .namespace }}
  labels: {{- $labels | nindent 4 }}
rules:
{{- end }}
