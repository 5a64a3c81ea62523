{{- define "modelrollout.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "modelrollout.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "modelrollout.selector" -}}
app.kubernetes.io/name: {{ include "modelrollout.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "modelrollout.labels" -}}
{{ include "modelrollout.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Of a map with repository, tag and digest; the digest wins. */}}
{{- define "modelrollout.image" -}}
{{- $tag := default .root.Chart.AppVersion .image.tag -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- define "modelrollout.serviceAccount" -}}
{{- default (include "modelrollout.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "modelrollout.feedbackServiceAccount" -}}
{{- default (printf "%s-feedback" (include "modelrollout.fullname" .)) .Values.feedback.serviceAccount.name -}}
{{- end -}}

{{/* The operator's own Lease. */}}
{{- define "modelrollout.lease" -}}modelrollout-operator{{- end -}}

{{- define "modelrollout.podSecurityContext" -}}
runAsNonRoot: true
{{- if eq .Values.workloads.users "Fixed" }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "modelrollout.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Folder of a Prometheus provider's credentials in the operator's pod. */}}
{{- define "modelrollout.prometheusDir" -}}
/var/run/modelrollout/prometheus/{{ .name }}
{{- end -}}

{{/* Not empty where a Prometheus provider is asked with something that is mounted there. */}}
{{- define "modelrollout.prometheusFiles" -}}
{{- if or .tokenSecret .basicAuthSecret .headerSecrets .caSecret .caConfigMap }}yes{{ end -}}
{{- end -}}

{{/* The operator's configuration; operator/modelrollout/config.py reads it and refuses what it does not know. */}}
{{- define "modelrollout.config" -}}
{{- if not .Values.stores }}{{ fail "stores: name at least one place that models may come from, for example\n  stores: [{name: models, uri: s3://models/}]" }}{{ end -}}
{{- if not .Values.artifacts.uri }}{{ fail "artifacts.uri: say where prepared models are kept, for example\n  artifacts: {uri: s3://model-artifacts/, secretName: s3-writer}" }}{{ end -}}
{{- $artifacts := dict -}}
{{- range $key, $value := .Values.artifacts }}{{ if $value }}{{ $_ := set $artifacts $key $value }}{{ end }}{{ end -}}
{{- $providers := list -}}
{{- range .Values.prometheus }}
  {{- $dir := include "modelrollout.prometheusDir" . }}
  {{- $provider := omit . "tokenSecret" "basicAuthSecret" "headerSecrets" "caSecret" "caConfigMap" }}
  {{- if and .caSecret .caConfigMap }}{{ fail (printf "prometheus %s: caSecret and caConfigMap are both there; leave one of them out" .name) }}{{ end }}
  {{- with .headerSecrets }}
    {{- $files := dict }}
    {{- range $header, $_ := . }}{{ $_ := set $files $header (printf "%s/headers/%s" $dir $header) }}{{ end }}
    {{- $_ := set $provider "headerFiles" $files }}
  {{- end }}
  {{- if or .caSecret .caConfigMap }}{{ $_ := set $provider "caFile" (printf "%s/ca.crt" $dir) }}{{ end }}
  {{- with .tokenSecret }}{{ $_ := set $provider "tokenFile" (printf "%s/token" $dir) }}{{ end }}
  {{- with .basicAuthSecret }}{{ $_ := merge $provider (dict "usernameFile" (printf "%s/username" $dir) "passwordFile" (printf "%s/password" $dir)) }}{{ end }}
  {{- $providers = append $providers $provider }}
{{- end }}
{{- $gateway := dict "profile" .Values.gatewayMetrics.profile "settleSeconds" .Values.gatewayMetrics.settleSeconds }}
{{- $custom := dict }}
{{- range $field, $query := .Values.gatewayMetrics.custom }}{{ with $query }}{{ $_ := set $custom $field . }}{{ end }}{{ end }}
{{- with $custom }}{{ $_ := set $gateway "custom" . }}{{ end }}
{{- with .Values.gatewayMetrics.provider }}{{ $_ := set $gateway "provider" . }}{{ end }}
{{- with .Values.gatewayMetrics.selector }}{{ $_ := merge $gateway (dict "selector" . "namespaces" $.Values.gatewayMetrics.namespaces) }}{{ end }}
{{- $feedback := dict }}
{{- if .Values.feedback.enabled }}
  {{- $own := printf "%s=%s" .Values.scrape.namespaceLabel (quote .Release.Namespace) }}
  {{- $feedback = dict "selector" (default $own .Values.feedback.selector) "namespaces" (list .Release.Namespace) "labelsPerRow" .Values.feedback.labelsPerRow }}
{{- end }}
{{- $images := dict
  "optimizer" (include "modelrollout.image" (dict "root" $ "image" .Values.optimizer.image))
  "triton" .Values.triton.image
  "pullPolicy" .Values.workloadPullPolicy }}
{{- if .Values.trainer.image.repository }}{{ $_ := set $images "trainer" (include "modelrollout.image" (dict "root" $ "image" .Values.trainer.image)) }}{{ end }}
{{- if .Values.trees.image.repository }}{{ $_ := set $images "trees" (include "modelrollout.image" (dict "root" $ "image" .Values.trees.image)) }}{{ end }}
{{- if .Values.tensorflow.image.repository }}{{ $_ := set $images "tensorflow" (include "modelrollout.image" (dict "root" $ "image" .Values.tensorflow.image)) }}{{ end }}
{{- if .Values.pytorch.image.repository }}{{ $_ := set $images "pytorch" (include "modelrollout.image" (dict "root" $ "image" .Values.pytorch.image)) }}{{ end }}
{{- $config := dict
  "stores" .Values.stores
  "artifacts" $artifacts
  "prometheus" $providers
  "queries" .Values.queries
  "gatewayMetrics" $gateway
  "feedbackMetrics" $feedback
  "scrape" .Values.scrape
  "images" $images
  "drain" .Values.drain
  "shadow" .Values.shadow
  "hostnames" .Values.hostnames
  "routes" .Values.routes
  "workloads" .Values.workloads
  "capacity" .Values.capacity
  "gpus" .Values.gpus
  "namespaces" .Values.namespaces
  "stampedVerbs" (ne (include "modelrollout.stampVersion" .) "")
  "workers" .Values.workers
  "shards" .Values.shards
  "resyncSeconds" .Values.resyncSeconds
  "maxJobs" .Values.maxJobs
  "metricsObjects" .Values.metricsObjects
  "jobTtlSeconds" .Values.jobTtlSeconds -}}
{{- $models := .Values.networkPolicy.models -}}
{{- if eq $models.mode "Write" }}
  {{- $missing := list }}
  {{- range $part := list "proxies" "prometheus" }}
    {{- $peers := get $models $part }}
    {{- if not (or $peers.namespaces $peers.addresses) }}{{ $missing = append $missing $part }}{{ end }}
  {{- end }}
  {{- if not $models.stores }}{{ $missing = append $missing "stores" }}{{ end }}
  {{- with $missing }}
    {{- fail (printf "networkPolicy.models.%s: name where they are, or every model is cut off from them, for example\n  proxies: {namespaces: [gateways]}\n  prometheus: {namespaces: [monitoring]}\n  stores: [{addresses: [10.20.0.0/24], ports: [443]}]" (join ", " .)) }}
  {{- end }}
{{- end }}
{{- if ne $models.mode "Ignore" }}{{ $_ := set $config "networkPolicies" (merge (dict "operatorNamespace" .Release.Namespace) $models) }}{{ end }}
{{- $config | toYaml }}
{{- end -}}

{{/* What the operator may do in each namespace that it watches. */}}
{{- define "modelrollout.rules" -}}
- apiGroups: [modelrollout.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [modelrollout.dev]
  resources: [modeldeployments/status, modelrevisions/status]
  verbs: [update]
- apiGroups: [modelrollout.dev]
  resources: [modelrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [get, list, watch]  # whether they carry the routes
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]  # delete: less time for servers that are being deleted, which an admission policy sees to
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]  # why a Job that Kueue holds back waits
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch, list]  # list: why a Job gets no pod stands nowhere else
{{- end -}}

{{/* And with NetworkPolicies, to write them or only to take them away. */}}
{{- define "modelrollout.networkPolicyRules" -}}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, {{ if eq .Values.networkPolicy.models.mode "Write" }}create, patch, {{ end }}delete]
{{- end -}}

{{/* And with Traefik, which mirrors by a kind of its own. */}}
{{- define "modelrollout.traefikRules" -}}
- apiGroups: [traefik.io]
  resources: [traefikservices]
  verbs: [get, list, watch, create, patch, delete]
{{- end -}}

{{/* And with Envoy Gateway, where sessions stick by a policy of its own. */}}
{{- define "modelrollout.backendTrafficPolicyRules" -}}
- apiGroups: [gateway.envoyproxy.io]
  resources: [backendtrafficpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- end -}}

{{/* Whose requests the admission policies are about: those of others are not looked at. */}}
{{- define "modelrollout.isOperator" -}}
- name: operator
  expression: "request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:{{ include "modelrollout.serviceAccount" . }}'"
{{- end -}}

{{- /* The API version of MutatingAdmissionPolicies, where verbs are to be stamped and the cluster serves them; else empty. */ -}}
{{- define "modelrollout.stampVersion" -}}
{{- if .Values.admissionPolicy.stampVerbs -}}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
admissionregistration.k8s.io/v1
{{- else if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" -}}
admissionregistration.k8s.io/v1beta1
{{- end -}}
{{- end -}}
{{- end -}}

{{/* CEL: or the name is one of these entries, or begins as one that ends in a star. By regular expressions: a test takes a quoted star for a right to everything. */}}
{{- define "modelrollout.listed" -}}
{{- range .entries }}{{ if regexMatch "[*]$" . }} || {{ $.name }}.startsWith('{{ regexReplaceAll "[*]$" . "" }}'){{ else }} || {{ $.name }} == '{{ . }}'{{ end }}{{ end }}
{{- end }}
