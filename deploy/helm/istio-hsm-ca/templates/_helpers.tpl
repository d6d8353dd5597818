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
{{- ((.Values.config.kubernetes | default dict).checkpoints | default dict).configmap | default (printf "%s-checkpoints" (include "ca.fullname" .)) -}}
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

{{/* The port of an address, such as "[::]:15012". */}}
{{- define "ca.port" -}}
{{- required "config.listen.address and config.admin.address are needed" . | splitList ":" | last -}}
{{- end }}

{{/* The cluster that the release runs in, as JSON: the one without a kubeconfig; empty if there is none. */}}
{{- define "ca.ownCluster" -}}
{{- range (.Values.config.kubernetes | default dict).cluster -}}
{{- if not .kubeconfig -}}{{- toJson . -}}{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" if a controller runs for any cluster; it then needs a Lease in this one. */}}
{{- define "ca.leads" -}}
{{- range (.Values.config.kubernetes | default dict).cluster -}}
{{- range list .root_configmap .crl_configmap .istiod_certificate .intermediate .workload_secrets .signer .pod_signer .cluster_trust_bundle .cert_manager -}}
{{- if or (kindIs "map" .) (and (kindIs "slice" .) .) -}}true{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Rejects contradictory values. */}}
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
{{- range list .Values.config.listen.address .Values.config.admin.address -}}
{{- if lt (include "ca.port" . | int) 1024 -}}
{{- fail (printf "%s: without capabilities a container listens on ports from 1024 on only" .) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" . -}}
{{- fail (printf "%s: nobody outside the pod reaches that address; write [::]:PORT or 0.0.0.0:PORT" .) -}}
{{- end -}}
{{- end -}}
{{- $checkpoints := kindIs "map" (.Values.config.kubernetes | default dict).checkpoints -}}
{{- if and (or (include "ca.leads" .) $checkpoints) (not (include "ca.ownCluster" .)) -}}
{{- fail "controllers and checkpoints need this cluster; add { name: Kubernetes } as the first element of config.kubernetes.cluster" -}}
{{- end -}}
{{- if and .Values.bundle.files .Values.import.enabled -}}
{{- fail "bundle.files and import.enabled both write the bundle's ConfigMap; give one" -}}
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

{{/* Scheduling of pods. */}}
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

{{/* Names of cluster-scoped objects include the namespace. */}}
{{- define "ca.clusterRole" -}}
{{- printf "%s-%s" .Release.Namespace (include "ca.fullname" .) -}}
{{- end }}

{{/* A RoleBinding and a Role whose rules follow: (dict "root" $ "part" NAME "namespace" NAMESPACE "why" TEXT). */}}
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
