{{/* One cluster's section: (dict "cluster" MAP "kubeconfig" PATH). JSON strings and lists are TOML's too. */}}
{{- define "ca.cluster" -}}
{{- $cluster := .cluster }}
[[kubernetes.cluster]]
name = {{ $cluster.clusterName | default "Kubernetes" | toJson }}
{{- with .kubeconfig }}
kubeconfig = {{ . | toJson }}
{{- end }}
{{- with $cluster.trustDomain }}
trust_domain = {{ . | toJson }}
{{- end }}
{{- with $cluster.tokenReview }}{{ if .enabled }}

[kubernetes.cluster.token_review]
issuers = {{ .issuers | toJson }}
audiences = {{ .audiences | default (list "istio-ca") | toJson }}
namespaces = {{ .namespaces | default list | toJson }}
cache = "{{ .cacheSeconds | default 60 | int64 }}s"
timeout = "{{ .timeoutSeconds | default 5 | int64 }}s"
{{- end }}{{ end }}
{{- with $cluster.nodeImpersonation }}{{ if .enabled }}

[kubernetes.cluster.node_impersonation]
trusted_accounts = {{ .trustedAccounts | default (list "istio-system/ztunnel") | toJson }}
{{- end }}{{ end }}
{{- with $cluster.rootConfigMap }}{{ if .enabled }}

[kubernetes.cluster.root_configmap]
name = {{ .name | default "istio-ca-root-cert" | toJson }}
namespace_selector = {{ .namespaceSelector | default "" | toJson }}
{{- with .ignoredNamespaces }}
ignored_namespaces = {{ . | toJson }}
{{- end }}
{{- end }}{{ end }}
{{- with $cluster.istiodCertificate }}{{ if .enabled }}

[kubernetes.cluster.istiod_certificate]
secret = {{ .secret | default "istiod-tls" | toJson }}
namespace = {{ .namespace | default "istio-system" | toJson }}
revisions = {{ .revisions | default (list "default") | toJson }}
dns_names = {{ .dnsNames | default list | toJson }}
ip_addresses = {{ .ipAddresses | default list | toJson }}
ttl = "{{ .ttlSeconds | default 86400 | int64 }}s"
{{- end }}{{ end }}
{{- with $cluster.intermediate }}{{ if .enabled }}

[kubernetes.cluster.intermediate]
namespace = {{ .namespace | default "istio-system" | toJson }}
secret = {{ .secret | default "cacerts" | toJson }}
organization = {{ .organization | default "istiod" | toJson }}
ttl = "{{ .ttlSeconds | default 604800 | int64 }}s"
{{- end }}{{ end }}
{{- with $cluster.workloadSecrets }}{{ if .enabled }}

[kubernetes.cluster.workload_secrets]
namespaces = {{ .namespaces | toJson }}
ttl = "{{ .ttlSeconds | default 86400 | int64 }}s"
{{- end }}{{ end }}
{{- range $cluster.signers }}

[[kubernetes.cluster.signer]]
name = {{ .name | toJson }}
{{- if hasKey . "includeRoot" }}
include_root = {{ .includeRoot }}
{{- end }}
{{- range .requesters }}

[[kubernetes.cluster.signer.requester]]
username = {{ .username | toJson }}
{{- if .itself }}
may = "itself"
{{- else if .anyWorkload }}
may = { any_workload = { trust_domain = {{ .anyWorkload | toJson }} } }
{{- else }}
may = { dns_names = {{ .dnsNames | toJson }} }
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The daemon's configuration. */}}
{{- define "ca.config" -}}
{{- $root := . -}}
[ca]
bundle = "/etc/istio-hsm-ca/bundle"
trust_domains = {{ .Values.trustDomains | toJson }}
default_ttl = "{{ int64 .Values.ca.defaultTtlSeconds }}s"
max_ttl = "{{ int64 .Values.ca.maxTtlSeconds }}s"
cert_signers = {{ .Values.ca.certSigners | toJson }}
first_class = {{ .Values.ca.firstClass | toJson }}
queue = {{ int64 .Values.ca.queue }}
allow_root_removal = {{ .Values.ca.allowRootRemoval }}
{{- range (include "ca.tokens" . | fromJson).tokens }}

[[token]]
name = {{ .name | toJson }}
socket = "/run/token/{{ .name }}/socket"
socket_uid = {{ int64 $root.Values.tokenHost.runAsUser }}
call_timeout = "{{ .callTimeoutMilliseconds | default 10000 | int64 }}ms"
{{- end }}

[token_host]
{{- if include "ca.intermediates" . }}
allow_intermediate = true
{{- end }}

[listen]
address = "{{ .Values.listen.address }}:{{ int64 .Values.listen.port }}"
drain = "{{ int64 .Values.listen.drainSeconds }}s"

[listen.tls]
allow_tls12 = {{ .Values.listen.allowTls12 }}

[listen.limits]
{{- if .Values.listen.connectionAgeSeconds }}
connection_age = "{{ int64 .Values.listen.connectionAgeSeconds }}s"
{{- end }}
{{- range $name, $value := .Values.listen.limits }}
{{ $name }} = {{ if kindIs "string" $value }}{{ $value | toJson }}{{ else }}{{ int64 $value }}{{ end }}
{{- end }}

[serving]
dns_names = {{ include "ca.servingNames" . }}
ip_addresses = {{ .Values.serving.ipAddresses | toJson }}
ttl = "{{ int64 .Values.serving.ttlSeconds }}s"

[auth]
default_cluster = {{ .Values.auth.defaultCluster | toJson }}
{{- range $index, $jwt := .Values.auth.jwt }}

[[auth.jwt]]
issuer = {{ $jwt.issuer | toJson }}
{{- if $jwt.keys }}
keys = { file = { path = "/etc/istio-hsm-ca/auth/jwks-{{ $index }}.json" } }
{{- else if $jwt.url }}
keys = { url = { url = {{ $jwt.url | toJson }} } }
{{- else }}
keys = { discovery = {} }
{{- end }}
audiences = {{ $jwt.audiences | default (list "istio-ca") | toJson }}
trust_domain = {{ $jwt.trustDomain | default (first $root.Values.trustDomains) | toJson }}
cluster = {{ $jwt.cluster | default $root.Values.auth.defaultCluster | toJson }}
namespaces = {{ $jwt.namespaces | default list | toJson }}
{{- end }}

[auth.client_certificate]
disabled = {{ .Values.auth.clientCertificate.disabled }}
trust_domain_aliases = {{ .Values.auth.clientCertificate.trustDomainAliases | toJson }}
{{- with .Values.auth.clientCertificate.maxAgeSeconds }}
max_age = "{{ int64 . }}s"
{{- end }}
{{- if .Values.auth.denylist }}
denylist = "/etc/istio-hsm-ca/auth/denylist"
{{- end }}
{{- with .Values.ca.previousCertificates }}
previous_ca_certificates = [{{ range $i, $name := keys . | sortAlpha }}{{ if $i }}, {{ end }}"/etc/istio-hsm-ca/auth/{{ $name }}"{{ end }}]
{{- end }}

[rate_limits]
{{- with .Values.rateLimits.perIdentity }}
per_identity = {{ int64 . }}
{{- end }}
{{- with .Values.rateLimits.perIdentityBurst }}
per_identity_burst = {{ int64 . }}
{{- end }}
{{- with .Values.rateLimits.total }}
total = {{ int64 . }}
{{- end }}
{{- with .Values.rateLimits.totalBurst }}
total_burst = {{ int64 . }}
{{- end }}

[log]
directory = "/var/lib/istio-hsm-ca/log"
checkpoint_lines = {{ int64 .Values.log.checkpointLines }}
checkpoint_interval = "{{ int64 .Values.log.checkpointIntervalSeconds }}s"
{{- with .Values.log.keepForDays }}
keep_for = "{{ int64 . }}days"
{{- end }}
{{- with .Values.log.keepBytes }}
keep_bytes = {{ int64 . }}
{{- end }}
{{- if include "ca.local" . }}

[kubernetes]
namespace = {{ .Release.Namespace | toJson }}
lease = {{ include "ca.fullname" . | toJson }}
{{- if .Values.kubernetes.checkpoints.enabled }}

[kubernetes.checkpoints]
configmap = {{ include "ca.checkpointsConfigMap" . | toJson }}
{{- end }}
{{ include "ca.cluster" (dict "cluster" .Values.kubernetes) }}
{{- else if .Values.kubernetes.remoteClusters }}

[kubernetes]
namespace = {{ .Release.Namespace | toJson }}
{{- end }}
{{- range .Values.kubernetes.remoteClusters }}
{{ include "ca.cluster" (dict "cluster" . "kubeconfig" (printf "/etc/istio-hsm-ca/clusters/%s/%s" .clusterName .kubeconfig.key)) }}
{{- end }}

[admin]
address = "{{ .Values.admin.address }}:{{ int64 .Values.admin.port }}"
status_page = {{ .Values.admin.statusPage }}
socket = "/run/istio-hsm-ca/admin.sock"

[logging]
filter = {{ .Values.logging.filter | toJson }}
format = {{ .Values.logging.format | toJson }}
{{- with .Values.extraConfig }}

{{ . | trim }}
{{- end }}
{{- end }}

{{/* A token host's configuration: (dict "token" MAP "root" $). */}}
{{- define "ca.hostConfig" -}}
{{- $values := .root.Values -}}
{{- $limits := $values.tokenHost -}}
uri = {{ .token.uri | toJson }}
pin_file = {{ include "ca.pinFile" .token | toJson }}
pin_marker = "/var/lib/token/{{ .token.name }}/pin-refused"
bundle = "/etc/istio-hsm-ca/bundle"
{{- with $values.ca.previousCertificates }}
ca_certificates = [{{ range $i, $name := keys . | sortAlpha }}{{ if $i }}, {{ end }}"/etc/istio-hsm-ca/auth/{{ $name }}"{{ end }}]
{{- end }}
sessions = {{ .token.sessions | default 1 | int64 }}
call_timeout = "{{ .token.callTimeoutMilliseconds | default 10000 | int64 }}ms"
max_validity = "{{ $limits.maxValiditySeconds | default (include "ca.longest" .root) | int64 }}s"
trust_domains = {{ $limits.trustDomains | default $values.trustDomains | toJson }}
dns_names = {{ if $limits.dnsNames }}{{ $limits.dnsNames | toJson }}{{ else }}{{ include "ca.hostNames" .root }}{{ end }}
ip_addresses = {{ if $limits.ipAddresses }}{{ $limits.ipAddresses | toJson }}{{ else }}{{ include "ca.hostAddresses" .root }}{{ end }}
allow_intermediate = {{ if include "ca.intermediates" .root }}true{{ else }}false{{ end }}
{{- end }}
