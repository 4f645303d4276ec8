#!/usr/bin/env python3
"""Checks what people install and what lets them watch it: the chart, its values, the plain manifests, alerts, dashboards, runbooks.

  check.py [--tools DIR] [--cache DIR] [--update]

Names each check and what is wrong; the last line counts and says PASS or FAIL. --update writes anew what is made from something else:
golden manifests, charts/plain, the chart's README and the tables of values and alerts in the book.
"""
import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

import promql
import schemas

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KUBERNETES = "1.34.4"
CHART = "charts/penstock"
RULES = f"{CHART}/files/rules/penstock.yaml"
DASHBOARDS = f"{CHART}/files/dashboards"
RUNBOOKS = "docs/src/runbooks"
ALERTS = "docs/src/reference/alerts.md"
VALUES = "docs/src/reference/chart.md"
METRICS = ["docs/src/reference/metrics.md", "docs/src/reference/controller-metrics.md"]
PLAIN = "charts/plain/penstock.yaml"
GOLDEN = "e2e/chart/golden"
PARTS = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]

# A wrong value, and the words by which it must be refused.
WRONG = [
    ("replicas=two", "replicas"),
    ("replicas=9", "replicas"),
    ("image.repository=", "repository"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.version=1", "version"),
    ("namespaces={Risk}", "namespaces"),
    ("namespaces=risk", "namespaces"),
    ("webhook.enabled=maybe", "webhook"),
    ("wehbook.enabled=false", "wehbook"),
    ("webhook.certManager=true", "certManager"),
    ("webhook.certManager.issuerRef=internal", "issuerRef"),
    ("webhook.certManager.issuerRef.kind=ClusterIssuer", "issuerRef"),
    ("webhook.certManager.issuerRef.nam=internal", "nam"),
    ("storage=s3://streams", "storage"),
    ("storage.bucket=streams", "bucket"),
    ("storage.gcs.bucket=streams", "gcs"),
    ("storage.s3.prefix=prod", "bucket"),
    ("storage.s3.bucket=streams,storage.s3.pathstyle=true", "pathstyle"),
    ("storage.s3.bucket=streams,storage.s3.pathStyle=yes", "pathStyle"),
    ("storage.s3.bucket=streams,storage.secretRef=s3", "secretRef"),
    ("storage.secretRef.name=s3", "s3"),
    ("bounds.default.replica=4", "replica"),
    ("bounds.default.replicas=0", "replicas"),
    ("bounds.default.storage={streams/risk}", "storage"),
    ("bounds.default.images=penstock", "images"),
    ("bounds.default.volume=large", "volume"),
    ("bounds.default.cpu=some", "cpu"),
    ("bounds.default.memory=0", "memory"),
    ("bounds.namespaces.Risk.replicas=4", "Risk"),
    ("bounds.risk.replicas=4", "risk"),
    ("crds=later", "crds"),
    ("monitoring.podMonitor.enabled=1", "podMonitor"),
    ("monitoring.podMonitor.interval=30", "interval"),
    ("monitoring.podMonitors.enabled=true", "podMonitors"),
    ("monitoring.rules.runbooks=here", "runbooks"),
    ("monitoring.rules.enabled=true,monitoring.rules.disabled={PenstockNothing}", "there is no alert PenstockNothing"),
    ("monitoring.serviceMonitor.enabled=true,monitoring.service=false", "needs monitoring.service"),
    ("monitoring.dashboards.labels.grafana_dashboard=true", "grafana_dashboard"),
]

# Manifests that kubeconform must refuse, and the words by which: its schemas are strict.
REFUSED = [
    ("a member that a Service does not have", "'port'",
     {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": 1}}),
    ("a text where a number belongs", "/spec/replicas",
     {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": "two", "selector": {}, "template": {}}}),
    ("a Deployment without a selector", "'selector'",
     {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"template": {}}}),
    ("a PodMonitor with a misspelt member", "'podMetricsEndpoint'",
     {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "a"}, "spec": {"selector": {}, "podMetricsEndpoint": []}}),
    ("a StreamingJob with a misspelt member", "'tigger'",
     {"apiVersion": "penstock.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": "a"}, "spec": {"sources": [], "sinks": [], "sql": "", "tigger": {}}}),
    ("a kind that nobody knows", "could not find schema",
     {"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "a"}}),
]

# Expressions that name what is not there, or the check of names is blind.
BLIND = [
    "rate(penstock_rows_total[5m])",
    "penstock_checkpoint_duration_seconds > 1",
    'sum by (streamjob) (penstock_fenced_total)',
    'penstock_restarts_total{cause="retry"}',
    'penstock_restarts_total{reason="retries"}',
    "kube_pod_info == 1",
]


def path(name):
    return os.path.join(root, name)


def read(name):
    with open(path(name), encoding="utf-8") as file:
        return file.read()


class Checks:
    def __init__(self, tools, cache, update):
        self.tools, self.cache, self.update = tools, cache, update
        self.run = self.failed = self.written = 0

    def tool(self, name, *args, stdin=None, cwd=None):
        program = os.path.join(self.tools, name)
        if not os.access(program, os.X_OK):
            raise RuntimeError(f"{name} is missing: {program}")
        done = subprocess.run([program, *args], input=stdin, cwd=cwd or root, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def say(self, name, faults):
        self.run += 1
        if faults:
            self.failed += 1
            print(f"FAILED {name}")
            for fault in faults:
                print("\n".join("  " + line for line in str(fault).splitlines() if line.strip()))
        else:
            print(f"ok {name}")

    def check(self, name, faults, *args):
        """Runs one check; one that cannot be run has failed."""
        try:
            self.say(name, faults(*args))
        except Exception as error:                      # told by name, whatever it is
            self.say(name, [f"{type(error).__name__}: {error}"])

    def current(self, name, text):
        """Whether a file is what is made anew; writes it with --update."""
        before = read(name) if os.path.exists(path(name)) else ""
        if before == text:
            return []
        if self.update:
            os.makedirs(os.path.dirname(path(name)), exist_ok=True)
            with open(path(name), "w", encoding="utf-8") as file:
                file.write(text)
            self.written += 1
            print(f"written {name}")
            return []
        old, new = before.splitlines(), text.splitlines()
        at = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
        told = [f"  is:        {old[at] if at < len(old) else '(its end)'}", f"  should be: {new[at] if at < len(new) else '(its end)'}"]
        return [f"{name}:{at + 1} is not what is made today (./dev chart update writes it)", *told]

    # ---- the chart ------------------------------------------------------------------------------------------------------------

    def template(self, *args):
        status, out, err = self.tool("helm", "template", "penstock", CHART, "--namespace", "penstock", "--kube-version", KUBERNETES, *args)
        if status != 0:
            raise RuntimeError(err)
        return out

    def lint(self, values):
        status, out, err = self.tool("helm", "lint", "--strict", "--kube-version", KUBERNETES, CHART, "-f", values)
        return [] if status == 0 else [out + err]

    def refuses(self, wrong, words):
        status, _, err = self.tool("helm", "template", "penstock", CHART, "--kube-version", KUBERNETES, "--set", wrong)
        if status == 0:
            return ["it was taken"]
        return [] if words in err else [f"refused without the words {words!r}: {err}"]

    def golden(self, values):
        name = os.path.basename(values).removesuffix("-values.yaml")
        return self.current(f"{GOLDEN}/{name}.yaml", self.short(self.template("-f", values)))

    def short(self, manifests):
        """Without what stands in a file of its own, word for word: resource types and dashboards."""
        kept = []
        for text in re.split(r"(?m)^---\n", manifests):
            document = yaml.safe_load(text)
            if document is None:
                continue
            if document["kind"] == "CustomResourceDefinition":
                file = f"{CHART}/files/crds/{document['spec']['names']['plural']}.yaml"
                keep = document["metadata"]["annotations"].pop("helm.sh/resource-policy", None)
                source = yaml.safe_load(read(file))
                source["metadata"].setdefault("annotations", {})
                if document != source or keep != "keep":
                    raise RuntimeError(f"the chart's {document['metadata']['name']} is not {file} with a keep policy")
                text = f"# Source: {file}, with helm.sh/resource-policy: keep\n"
            for key, value in (document.get("data") or {}).items() if document["kind"] == "ConfigMap" else ():
                if key.endswith(".json"):
                    file = f"{DASHBOARDS}/{key.removeprefix('penstock-')}"
                    if value != read(file):
                        raise RuntimeError(f"{key} in the chart is not {file}")
                    text = re.sub(rf"(?m)^  {re.escape(key)}: .*$", lambda _: f"  {key}: # {file}", text)
            kept.append(text)
        return "---\n" + "---\n".join(kept)

    def plain(self):
        """For those without Helm: the chart with its defaults."""
        text = self.template()
        text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
        text = re.sub(r"(?m)^ *helm\.sh/chart: .*\n|^# Source: .*\n", "", text)
        head = ("# Penstock without Helm: kubectl apply --server-side -f penstock.yaml\n"
                "# Made of charts/penstock with its defaults by `./dev chart update`; image and settings are edited here.\n"
                "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: penstock\n  labels:\n"
                "    pod-security.kubernetes.io/enforce: restricted\n")
        return self.current(PLAIN, head + text)

    def readme(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(path(CHART), os.path.join(folder, "penstock"))
            status, _, err = self.tool("helm-docs", "--chart-search-root", folder, "--sort-values-order", "file", "--log-level", "warning", cwd=folder)
            if status != 0 or err:
                return [err or f"helm-docs ended with {status}"]
            with open(os.path.join(folder, "penstock/README.md"), encoding="utf-8") as file:
                text = "\n".join(line.rstrip() for line in file.read().splitlines()) + "\n"
        rows = re.findall(r"(?m)^\| ([\w.]+) \| \w+ \| .* \| *(.*?) *\|$", text)
        faults = [f"{name} has no comment in values.yaml" for name, said in rows if not said]

        def leaves(node, at):
            if isinstance(node, dict) and node and at not in dict(rows):
                return [leaf for key, child in node.items() for leaf in leaves(child, f"{at}.{key}" if at else key)]
            return [at]
        missing = set(leaves(yaml.safe_load(read(f"{CHART}/values.yaml")), "")) - set(dict(rows))
        faults += [f"{name} is in values.yaml and not in the README" for name in sorted(missing)]
        table = re.search(r"(?s)\n\n(\| Key \|.*?)\n\n", text)[1]
        return faults + self.current(f"{CHART}/README.md", text) + self.current(VALUES, self.filled(VALUES, "values.yaml", table))

    def filled(self, page, source, made):
        """A page of the book with what is made of something else in its place."""
        place = rf"(?s)(<!-- made of {re.escape(source)} -->\n).*?(\n<!-- end -->)"
        text, places = re.subn(place, lambda m: f"{m[1]}\n{made}\n{m[2]}", read(page))
        if places != 1:
            raise RuntimeError(f"{page} has no place for what is made of {source}")
        return text

    # ---- what the API server would say ----------------------------------------------------------------------------------------

    def conforms(self, folder, manifests):
        place = os.path.join(folder, "{{ .ResourceKind }}{{ .KindSuffix }}.json")
        status, out, err = self.tool("kubeconform", "-strict", "-output", "json", "-summary", "-schema-location", place, stdin=manifests)
        said = json.loads(out) if out else {"resources": [{"msg": err}], "summary": {}}
        told = [f"{r.get('kind')} {r.get('name')}: {r['msg']}" for r in said.get("resources") or [] if r.get("msg")]
        if said["summary"].get("skipped") or not said["summary"].get("valid", 0):
            told.append(f"not all was looked at: {said['summary']}")
        return told if status != 0 or told else []

    def nonconforming(self, folder, words, manifest):
        told = self.conforms(folder, yaml.safe_dump(manifest))
        if not told:
            return ["it was taken"]
        return [] if any(words in t for t in told) else [f"refused without the words {words!r}", *told]

    def schemas(self, folder):
        for values in sorted(glob.glob(path(f"{CHART}/ci/*-values.yaml"))):
            name = os.path.basename(values).removesuffix("-values.yaml")
            self.check(f"kubeconform: the chart, {name}", lambda v=values: self.conforms(folder, self.template("-f", v)))
        self.check(f"kubeconform: {PLAIN}", lambda: self.conforms(folder, read(PLAIN)))
        for example in sorted(glob.glob(path("examples/*/job.yaml"))):
            name = os.path.relpath(example, root)
            self.check(f"kubeconform: {name}", lambda n=name: self.conforms(folder, read(n)))
        for what, words, manifest in REFUSED:
            self.check(f"kubeconform refuses {what}", self.nonconforming, folder, words, manifest)

    # ---- what is watched ------------------------------------------------------------------------------------------------------

    def names(self, expressions):
        metrics = promql.documented(map(path, METRICS))
        return [f"{where}: {fault}" for where, text in expressions for fault in promql.faults(text, metrics)]

    def rules(self):
        """[(alert, rule)]"""
        return [(rule["alert"], rule) for group in yaml.safe_load(read(RULES))["groups"] for rule in group["rules"]]

    def expressions(self, file):
        """[(panel or variable, expression)] of a dashboard."""
        board = json.loads(read(file))
        found = [(f"{file}, {panel['title']!r}", target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
                found.append((f"{file}, variable {variable['name']}", f"count by ({metric[2]}) ({metric[1]})"))
        return found

    def dashboard(self, file):
        board = json.loads(read(file))
        faults = [f"panel {p['title']!r} asks nothing" for p in board["panels"] if p["type"] != "row" and not p.get("targets")]
        ids = [p["id"] for p in board["panels"]]
        if len(set(ids)) != len(ids):
            faults.append("two panels have one id")
        sources = {json.dumps(t["datasource"]) for p in board["panels"] for t in p.get("targets", [])}
        if any("${datasource}" not in s for s in sources):
            faults.append("a panel names a data source of its own")
        if not board.get("uid") or not board.get("title", "").startswith("Penstock"):
            faults.append("uid or title is missing")
        return faults + self.grammar(self.expressions(file))

    def grammar(self, expressions):
        """promtool's word on expressions, as rules that record them."""
        rules = []
        for i, (where, text) in enumerate(expressions):
            text = text.replace("$__rate_interval", "5m").replace("$__range", "1h")
            rules.append({"record": f"dashboard:expression:{i}", "expr": text, "labels": {"where": where}})
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
            file.flush()
            status, out, err = self.tool("promtool", "check", "rules", file.name)
        if status == 0 and f"{len(rules)} rules found" in out:
            return []
        return [re.sub(r"dashboard:expression:(\d+)", lambda m: expressions[int(m[1])][0], out + err)]

    def firing(self):
        """The tests of the rules. Of the annotations only the summary is looked at: the others are fixed texts."""
        rules = yaml.safe_load(read(RULES))
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["annotations"] = {"summary": rule["annotations"]["summary"]}
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "rules.yaml"), "w", encoding="utf-8") as file:
                yaml.safe_dump(rules, file)
            shutil.copy(path("e2e/chart/rules_test.yaml"), folder)
            status, out, err = self.tool("promtool", "test", "rules", "rules_test.yaml", cwd=folder)
        return [] if status == 0 else [out + err]

    def valid(self):
        status, out, err = self.tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
        return [] if status == 0 and f"{len(self.rules())} rules found" in out else [out + err]

    def tested(self):
        """Each alert has a moment at which it fires and one at which it does not."""
        told = {}
        for test in yaml.safe_load(read("e2e/chart/rules_test.yaml"))["tests"]:
            for case in test["alert_rule_test"]:
                told.setdefault(case["alertname"], set()).add(bool(case.get("exp_alerts")))
        faults = [f"{alert}: no test in which it {'fires' if fires else 'is silent'}"
                  for alert, _ in self.rules() for fires in (True, False) if fires not in told.get(alert, set())]
        return faults + [f"{alert} is tested and is no alert" for alert in set(told) - {alert for alert, _ in self.rules()}]

    def runbooks(self):
        faults, wanted, summary = [], set(), read("docs/src/SUMMARY.md")
        for alert, rule in self.rules():
            notes = rule.get("annotations", {})
            if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
                faults.append(f"{alert}: severity is critical or warning")
            if "{{" not in notes.get("summary", "") or not notes.get("description"):
                faults.append(f"{alert}: the summary names its object, and there is a description")
            page = re.fullmatch(r"https://penstock\.dev/docs/runbooks/([a-z-]+)\.html", notes.get("runbook_url", ""))
            if page is None:
                faults.append(f"{alert}: its runbook_url is none of the book's")
                continue
            wanted.add(page[1])
            file = f"{RUNBOOKS}/{page[1]}.md"
            if not os.path.exists(path(file)):
                faults.append(f"{alert}: there is no page {file}")
                continue
            text = read(file)
            faults += [f"{file} does not say {part!r}" for part in PARTS if f"\n{part}\n" not in text]
            if alert not in text:
                faults.append(f"{file} does not name {alert}")
            if f"(runbooks/{page[1]}.md)" not in summary:
                faults.append(f"{file} is not in SUMMARY.md")
        pages = {os.path.basename(p).removesuffix(".md") for p in glob.glob(path(f"{RUNBOOKS}/*.md"))} - {"README"}
        return faults + [f"{RUNBOOKS}/{page}.md belongs to no alert" for page in sorted(pages - wanted)]

    def commands(self):
        """What the runbooks tell a person to type is there."""
        enum = re.search(r"\nenum Command \{\n(.*?)\n\}\n", read("operator/src/bin/kubectl-penstock/main.rs"), re.S)[1]
        there = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in re.findall(r"(?m)^    ([A-Z]\w+)\b", enum)}
        pages = glob.glob(path(f"{RUNBOOKS}/*.md")) + glob.glob(path("docs/src/how-to/*.md")) + glob.glob(path("docs/src/kubernetes/*.md"))
        faults = []
        for page in sorted(pages):
            name = os.path.relpath(page, root)
            for command in re.findall(r"kubectl penstock (?:--?\w+ \S+ )*([a-z][a-z-]*)", read(name)):
                if command not in there:
                    faults.append(f"{name}: kubectl penstock has no {command}")
        return faults

    def alerts_page(self):
        rows = ["| alert | severity | after | meaning |", "|---|---|---|---|"]
        for alert, rule in self.rules():
            notes = rule["annotations"]
            page = notes["runbook_url"].rsplit("/", 1)[1].replace(".html", ".md")
            rows.append(f"| [{alert}](../runbooks/{page}) | {rule['labels']['severity']} | {rule['for']} | {notes['description']} |")
        return self.current(ALERTS, self.filled(ALERTS, "the rules", "\n".join(rows)))

    # ---- all of it ------------------------------------------------------------------------------------------------------------

    def all(self):
        values = sorted(glob.glob(path(f"{CHART}/ci/*-values.yaml")))
        for file in values:
            name = os.path.relpath(file, root)
            self.check(f"helm lint --strict with {name}", self.lint, name)
            self.check(f"golden manifests with {name}", self.golden, name)
        self.check(f"{PLAIN} is current", self.plain)
        for wrong, words in WRONG:
            self.check(f"the chart refuses --set {wrong}", self.refuses, wrong, words)
        self.check(f"{CHART}/README.md is current and has every value", self.readme)
        try:
            folder = schemas.make(self.cache, root)
        except Exception as error:
            self.say("schemas for kubeconform", [error])
        else:
            self.schemas(folder)
        self.check("promtool check rules", self.valid)
        self.check("promtool test rules", self.firing)
        self.check("every alert is tested firing and silent", self.tested)
        self.check("rules name what the book lists", lambda: self.names((alert, rule["expr"]) for alert, rule in self.rules()))
        dashboards = sorted(os.path.relpath(f, root) for f in glob.glob(path(f"{DASHBOARDS}/*.json")))
        if not dashboards:
            self.say("dashboards", ["there is none"])
        for file in dashboards:
            self.check(f"{file} asks what can be answered", self.dashboard, file)
            self.check(f"{file} names what the book lists", lambda f=file: self.names(self.expressions(f)))
        for text in BLIND:
            self.check(f"the check of names sees {text}", lambda t=text: [] if self.names([("planted", t)]) else ["it does not"])
        self.check("every alert has its runbook", self.runbooks)
        self.check("commands in the pages are there", self.commands)
        self.check(f"{ALERTS} is current", self.alerts_page)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--tools", required=True, help="the folder with helm, promtool, kubeconform and helm-docs")
    ap.add_argument("--cache", required=True, help="where schemas are kept")
    ap.add_argument("--update", action="store_true")
    a = ap.parse_args()
    checks = Checks(a.tools, a.cache, a.update)
    checks.all()
    good = checks.failed == 0 and checks.run > 40
    print(f"{'PASS' if good else 'FAIL'} chart: {checks.run} checks run, 0 skipped, {checks.failed} failed, {checks.written} files written")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
