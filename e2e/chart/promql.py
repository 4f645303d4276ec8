"""What an expression of PromQL names, and whether the book says that it is there. No parser: promtool judges the grammar; this only
takes strings, label matchers, grouping clauses and durations away and looks at the words that are left.
"""
import re

# What Prometheus and the kubelet say themselves, and the labels that a scrape puts on everything.
FOREIGN = {"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
TARGET_LABELS = {"namespace", "streamingjob", "pod", "persistentvolumeclaim", "le"}
WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right", "inf", "nan"}
HISTOGRAM = ("_bucket", "_sum", "_count")


def documented(pages):
    """{name: (labels with their values, None where they are free; whether it is a histogram)}"""
    metrics = {}
    for page in pages:
        with open(page, encoding="utf-8") as file:
            rows = [line for line in file if line.startswith("| `")]
        for row in rows:
            name, labels, meaning = [cell.strip() for cell in row.strip().strip("|").split("|")][:3]
            names, _, values = labels.partition(":")
            labels = {label: None for label in re.findall(r"`(\w+)`", names)}
            if values:
                labels[list(labels)[-1]] = set(re.findall(r"`([\w+]+)`", values))
            metrics["penstock_" + name.strip("`")] = (labels, meaning.startswith("histogram"))
    return metrics


def known(name, metrics):
    """The entry of a series' name, or None."""
    if name in metrics and not metrics[name][1]:
        return metrics[name]
    for suffix in HISTOGRAM:
        base = name.removesuffix(suffix)
        if base != name and base in metrics and metrics[base][1]:
            return metrics[base]
    return None


def faults(expression, metrics):
    """What is wrong with the names in it."""
    found = []
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", expression):
        entry = known(name, metrics)
        if entry is None:
            continue                                    # told below, or not ours
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            values = entry[0].get(label)
            if label not in entry[0] and label not in TARGET_LABELS:
                found.append(f"{name} has no label {label}")
            elif values and operator in ("=", "!=") and value not in values:
                found.append(f"{label} of {name} is never {value!r}")
    bare = re.sub(r'"[^"]*"', "", expression)
    labels = TARGET_LABELS.union(*(entry[0] for entry in metrics.values()))
    for clause in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", bare):
        found += [f"no metric has the label {label}" for label in re.findall(r"\w+", clause) if label not in labels]
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    for name, call in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(\s*\()?", bare):
        if not call and name.lower() not in WORDS and name not in FOREIGN and known(name, metrics) is None and not re.fullmatch(r"sum|min|max|count|avg|topk", name):
            found.append(f"there is no metric {name}")
    return found
