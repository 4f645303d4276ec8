"""JSON schemas for kubeconform, made on this machine: Kubernetes' own types from the OpenAPI document of its Go module, the types of
Prometheus' operator and of cert-manager from the resource definitions in their modules, ours from charts/penstock/files/crds. All of them are strict: a
member that the type does not have is a fault.
"""
import copy
import glob
import json
import os
import subprocess

import yaml

KUBERNETES = "k8s.io/kubernetes@v1.34.4"                                      # as e2e/kind/kind.sh has it
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CERT_MANAGER = "github.com/cert-manager/cert-manager@v1.18.2"


def module(name):
    """The folder of a Go module, fetched when it is not there."""
    done = subprocess.run(["go", "mod", "download", "-json", name], cwd="/", capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stdout[-300:]}{done.stderr[-300:]}")
    return json.loads(done.stdout)["Dir"]


def strict(node):
    """Nothing but what is named, wherever something is named and nothing says otherwise."""
    if isinstance(node, dict):
        for name, child in node.items():
            if name not in ("enum", "default", "example", "x-kubernetes-validations"):
                strict(child)
        named = isinstance(node.get("properties"), dict) and node.get("type", "object") == "object"
        if named and "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node["additionalProperties"] = False
        if node.pop("x-kubernetes-int-or-string", False) or node.get("format") == "int-or-string":
            for member in ("type", "format", "anyOf"):
                node.pop(member, None)
            node["type"] = ["integer", "string"]
    elif isinstance(node, list):
        for child in node:
            strict(child)


def write(folder, group, version, kind, schema):
    name = f"{kind.lower()}-{group.split('.')[0] + '-' if group else ''}{version}.json"
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        # Named, since kubeconform takes what names none for a draft in which half of this is an error.
        json.dump({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, file)


def of_kubernetes(folder):
    with open(os.path.join(module(KUBERNETES), "api/openapi-spec/swagger.json"), encoding="utf-8") as file:
        definitions = json.load(file)["definitions"]
    quantity = definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"]
    quantity["type"] = ["string", "number"]
    kinds = [(of, kind) for of in definitions.values() for kind in of.get("x-kubernetes-group-version-kind", [])]
    json_types = [of for name, of in definitions.items() if name.endswith((".JSON", ".JSONSchemaProps", ".JSONSchemaPropsOrBool",
                                                                            ".JSONSchemaPropsOrArray", ".JSONSchemaPropsOrStringArray"))]
    for of in definitions.values():
        strict(of)
    for of in json_types:
        # Schemas within a resource definition are judged by the API server alone: they may hold anything.
        of.clear()
    with open(os.path.join(folder, "definitions.json"), "w", encoding="utf-8") as file:
        json.dump({"definitions": definitions}, file)
    place = "file://" + os.path.join(folder, "definitions.json")
    by_ref = json.loads(json.dumps(definitions).replace('"#/definitions/', f'"{place}#/definitions/'))
    for name, of in definitions.items():
        for kind in of.get("x-kubernetes-group-version-kind", []):
            schema = copy.deepcopy(by_ref[name])
            schema["properties"]["apiVersion"] = {"const": "/".join(x for x in (kind["group"], kind["version"]) if x)}
            schema["properties"]["kind"] = {"const": kind["kind"]}
            schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"} & set(schema["properties"]))
            write(folder, kind["group"], kind["version"], kind["kind"], schema)
    return len(kinds)


def of_resource_definitions(folder, files):
    count = 0
    for path in files:
        with open(path, encoding="utf-8") as file:
            crd = yaml.safe_load(file)
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            strict(schema)
            # These the API server adds to every type.
            schema["properties"].update({"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}})
            write(folder, crd["spec"]["group"], version["name"], crd["spec"]["names"]["kind"], schema)
            count += 1
    return count


def make(cache, root):
    """The folder of all schemas. Kubernetes' are made once; ours each time, which takes a moment."""
    folder = os.path.join(cache, "schemas-" + KUBERNETES.split("@")[1])
    os.makedirs(folder, exist_ok=True)
    with open(__file__, encoding="utf-8") as file:
        made_by = file.read()
    stamp = os.path.join(folder, "made-by")
    if not os.path.exists(stamp) or open(stamp, encoding="utf-8").read() != made_by:
        of_kubernetes(folder)
        crds = os.path.join(module(PROMETHEUS_OPERATOR), "example/prometheus-operator-crd")
        of_resource_definitions(folder, [os.path.join(crds, f"monitoring.coreos.com_{n}.yaml")
                                         for n in ("podmonitors", "servicemonitors", "prometheusrules")])
        of_resource_definitions(folder, [os.path.join(module(CERT_MANAGER), "deploy/crds/crd-certificates.yaml")])
        with open(stamp, "w", encoding="utf-8") as file:
            file.write(made_by)
    if of_resource_definitions(folder, sorted(glob.glob(os.path.join(root, "charts/penstock/files/crds/*.yaml")))) == 0:
        raise RuntimeError("charts/penstock/files/crds holds no resource definition")
    return folder
