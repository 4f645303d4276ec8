{{- define "penstock.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" }}-operator
{{- end }}

{{- define "penstock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/component: controller
app.kubernetes.io/part-of: penstock
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* A webhook is of the whole cluster: with a list of namespaces there is none. */}}
{{- define "penstock.webhook" -}}
{{- and .Values.webhook.enabled (not .Values.namespaces) }}
{{- end }}

{{/* Whether cert-manager makes the webhook's certificate. */}}
{{- define "penstock.certManager" -}}
{{- and (eq (include "penstock.webhook" .) "true") (not (empty (.Values.webhook.certManager).issuerRef)) }}
{{- end }}
