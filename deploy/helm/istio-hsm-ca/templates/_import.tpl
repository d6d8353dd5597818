{{/* The import's pod: (dict "token" MAP "root" $). */}}
{{- define "ca.importPod" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $token := .token -}}
{{- $softhsm := and $values.softhsm.trial (eq $token.name "softhsm") -}}
{{- $image := $token.image | default (include "ca.image" (dict "image" $values.image "root" $root)) -}}
{{- $security := include "ca.securityContext" (dict "user" $values.tokenHost.runAsUser "group" $values.tokenHost.runAsGroup) -}}
restartPolicy: Never
serviceAccountName: {{ include "ca.fullname" $root }}-import
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  fsGroup: {{ int64 $values.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- if $softhsm }}
# The token's volume can be mounted on one node only: where the daemon's pod is.
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "ca.selector" $root | nindent 12 }}
initContainers:
  - name: softhsm-init
    image: {{ $image | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    command: [/usr/libexec/istio-hsm-ca/softhsm-init, /var/lib/softhsm/istio-ca]
    securityContext: {{- $security | nindent 6 }}
    resources: {{- toYaml $values.tokenHost.resources | nindent 6 }}
    volumeMounts: {{- toYaml $token.volumeMounts | nindent 6 }}
{{- end }}
containers:
  - name: import
    image: {{ $image | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    args:
      - import
      - --from-secret={{ $values.import.namespace }}/{{ $values.import.secret }}
      {{- with $values.import.keys.caCert }}
      - --secret-ca-cert={{ . }}
      {{- end }}
      {{- with $values.import.keys.caKey }}
      - --secret-ca-key={{ . }}
      {{- end }}
      {{- with $values.import.keys.rootCert }}
      - --secret-root-cert={{ . }}
      {{- end }}
      {{- with $values.import.keys.certChain }}
      - --secret-cert-chain={{ . }}
      {{- end }}
      - --token={{ $token.uri }}
      - --pin-file={{ include "ca.pinFile" $token }}
      - --label={{ $values.import.label }}
      {{- if $values.import.allowPlaintext }}
      - --allow-plaintext-import
      {{- end }}
      - --bundle=/run/bundle/files
      - --bundle-configmap={{ $root.Release.Namespace }}/{{ include "ca.bundleConfigMap" $root }}
    {{- with $token.env }}
    env:
      {{- range $variable, $value := . }}
      - name: {{ $variable }}
        value: {{ $value | quote }}
      {{- end }}
    {{- end }}
    securityContext: {{- $security | nindent 6 }}
    resources: {{- toYaml ($token.resources | default $values.tokenHost.resources) | nindent 6 }}
    volumeMounts:
      - name: bundle
        mountPath: /run/bundle
      - name: api
        mountPath: /var/run/secrets/kubernetes.io/serviceaccount
        readOnly: true
      {{- if $token.pin }}
      - name: pin-{{ $token.name }}
        mountPath: /var/run/secrets/istio-hsm-ca/pin
        readOnly: true
      {{- end }}
      {{- with $token.volumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: bundle
    emptyDir: { medium: Memory, sizeLimit: 16Mi }
  - name: api
    projected:
      defaultMode: 0440
      sources:
        - serviceAccountToken:
            path: token
            expirationSeconds: 3600
        - configMap:
            name: kube-root-ca.crt
            items: [{ key: ca.crt, path: ca.crt }]
        - downwardAPI:
            items: [{ path: namespace, fieldRef: { fieldPath: metadata.namespace } }]
  {{- with include "ca.tokenVolumes" $token | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}
