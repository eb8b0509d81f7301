"""Checks what Prometheus and Grafana are given: that every file parses, that the files fit each other, and that the dashboard
shows the metrics that the services have, all of them and no others. Then breaks it in many ways, each of which must be noticed.

    python3 tests/system/monitoring.py deploy/monitoring crates/service/src/metrics.rs
"""

import copy
import itertools
import json
import pathlib
import re
import shutil
import sys
import tempfile

import yaml

SERVICES = ["coordinator", "extractor", "clusterer", "trainer"]
ROWS = ["Runs", "Extraction", "Training", "Clustering", "Services"]
PORT = 9090
INTERVAL = "5s"
URL = "http://prometheus:9090"
INSIDE = pathlib.PurePosixPath("/etc/grafana")  # where Grafana sees the folder grafana/
WIDTH = 24  # columns of a dashboard
OLDEST = 39  # schema of a dashboard
EVERYWHERE = {"service", "instance", "job"}  # labels that Prometheus adds
PROMETHEUS = "prometheus.yml"
SOURCE = "grafana/provisioning/datasources/prometheus.yml"
PROVIDER = "grafana/provisioning/dashboards/deepcluster.yml"
DASHBOARD = "grafana/dashboards/deepcluster.json"


def documented(text):
    """The metrics of the table in metrics.rs, each with its labels."""
    cells = re.findall(r"^//! \|([^|]*)\|", text, re.MULTILINE)
    found = re.findall(r"`(deepcluster_\w+)(?:\{([\w,]*)\})?`", " ".join(cells))
    return {name: set(filter(None, labels.split(","))) for name, labels in found}


def series(metrics):
    """The names that Prometheus knows them by, each with its metric and labels."""
    for name, labels in metrics.items():
        if name.endswith("_seconds"):
            yield f"{name}_bucket", (name, labels | {"le"})
            yield from ((f"{name}_{end}", (name, labels)) for end in ("sum", "count"))
        else:
            yield name, (name, labels)


def differences(where, *triples):
    yield from (f"{where}: {what} is {is_!r}, not {wanted!r}" for what, is_, wanted in triples if is_ != wanted)


def check_prometheus(config):
    jobs = config.get("scrape_configs") or [{}]
    names = [(found.get("names"), found.get("type"), found.get("port")) for found in jobs[0].get("dns_sd_configs", [])]
    labels = [(rule.get("source_labels"), rule.get("target_label")) for rule in jobs[0].get("relabel_configs", [])]
    yield from differences(
        PROMETHEUS,
        ("jobs", len(jobs), 1),
        ("interval", jobs[0].get("scrape_interval", config.get("global", {}).get("scrape_interval")), INTERVAL),
        ("names", names, [(SERVICES, "A", PORT)]),
        ("labels", labels, [(["__meta_dns_name"], "service")]),
    )


def check_provisioning(folder, sources, providers):
    (source, *others), options = sources.get("datasources") or [{}], source_options(sources)
    yield from differences(
        SOURCE,
        ("version", sources.get("apiVersion"), 1),
        ("other sources", others, []),
        ("type", source.get("type"), "prometheus"),
        ("url", source.get("url"), URL),
        ("interval", options.get("timeInterval"), INTERVAL),
    )
    yield from differences(PROVIDER, ("version", providers.get("apiVersion"), 1))
    if not providers.get("providers"):
        yield f"{PROVIDER}: provides nothing"
    for provider in providers.get("providers") or []:
        path = pathlib.PurePosixPath(provider.get("options", {}).get("path", ""))
        if provider.get("type") != "file" or not path.is_relative_to(INSIDE):
            yield f"{PROVIDER}: {path} is no folder in {INSIDE}"
        elif not list((folder / "grafana" / path.relative_to(INSIDE)).glob("*.json")):
            yield f"{PROVIDER}: {path} has no dashboards"


def source_options(sources):
    return (sources.get("datasources") or [{}])[0].get("jsonData") or {}


def panels_of(board):
    """All panels, those in collapsed rows too."""
    for panel in board.get("panels", []):
        yield panel
        yield from panel.get("panels", [])


def cells(panel):
    place = panel.get("gridPos", {})
    x, y, w, h = (place.get(key, 0) for key in "xywh")
    return set(itertools.product(range(x, x + w), range(y, y + h)))


def check_layout(board):
    panels = list(panels_of(board))
    yield from differences(
        DASHBOARD,
        ("uid", board.get("uid"), "deepcluster"),
        ("rows", [panel.get("title") for panel in panels if panel.get("type") == "row"], ROWS),
        ("the first panel", panels[0].get("type") if panels else None, "row"),
    )
    if board.get("schemaVersion", 0) < OLDEST:
        yield f"{DASHBOARD}: schema {board.get('schemaVersion')} is too old"
    for panel, other in itertools.combinations(panels, 2):
        names = f"panels {panel.get('title')!r} and {other.get('title')!r}"
        if panel.get("id") == other.get("id"):
            yield f"{DASHBOARD}: {names} have the same id"
        if cells(panel) & cells(other):
            yield f"{DASHBOARD}: {names} overlap"
    for panel in panels:
        places = cells(panel)
        if not places or any(x not in range(WIDTH) or y < 0 for x, y in places):
            yield f"{DASHBOARD}: panel {panel.get('title')!r} lies outside"
        if not isinstance(panel.get("id"), int) or not panel.get("title"):
            yield f"{DASHBOARD}: panel {panel.get('id')!r} {panel.get('title')!r} lacks an id or a title"


def check_sources(board, uid):
    """Whatever asks a data source asks the one that is provisioned."""
    variables = board.get("templating", {}).get("list", [])
    variables = [one for one in variables if one.get("type") == "datasource"]
    values = {f"${{{one.get('name')}}}": one.get("current", {}).get("value") for one in variables}
    for panel in panels_of(board):
        for asks in [panel, *panel.get("targets", [])] if panel.get("type") != "row" else []:
            asked = asks.get("datasource") or {}
            yield from differences(
                f"{DASHBOARD}: panel {panel.get('title')!r}",
                ("type of the data source", asked.get("type"), "prometheus"),
                ("data source", values.get(asked.get("uid"), asked.get("uid")), uid or "one with a uid"),
            )


def check_query(where, query, known):
    """Its metrics and labels exist."""
    plain = re.sub(r'"[^"]*"', '""', query)
    for opening, closing in ("()", "[]", "{}"):
        if plain.count(opening) != plain.count(closing):
            yield f"{where}: {opening} and {closing} do not match"
    names = set(re.findall(r"\bdeepcluster_\w+", plain))
    yield from (f"{where}: no service has {name}" for name in sorted(names - known.keys()))
    if not names and not re.search(r"\bup\b", plain):
        yield f"{where}: asks for nothing of ours"
    labels = EVERYWHERE.union(*(known[name][1] for name in names & known.keys()))
    matched = {label for inner in re.findall(r"\{([^}]*)\}", plain) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner)}
    grouped = {label for inner in re.findall(r"\bby\s*\(([^)]*)\)", plain) for label in re.findall(r"\w+", inner)}
    yield from (f"{where}: no metric in it has the label {label}" for label in sorted((matched | grouped) - labels))
    for value in re.findall(r'\bservice\s*(?:=~|!~|!=|=)\s*"([^"]*)"', query):
        yield from (f"{where}: there is no service {name!r}" for name in value.split("|") if name not in SERVICES)
    if "histogram_quantile" in plain and not ("le" in grouped and any(name.endswith("_bucket") for name in names)):
        yield f"{where}: a quantile needs buckets by le"


def check_queries(board, metrics):
    known, shown = dict(series(metrics)), set()
    for panel in panels_of(board):
        where, targets = f"{DASHBOARD}: panel {panel.get('title')!r}", panel.get("targets", [])
        if panel.get("type") == "row":
            continue
        if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
            yield f"{where} has no unit"
        ids = [target.get("refId") for target in targets]
        if not ids or None in ids or len(set(ids)) < len(ids):
            yield f"{where}: queries {ids} are none, or not told apart"
        for target in targets:
            query, legend = target.get("expr", ""), target.get("legendFormat", "")
            yield from check_query(where, query, known)
            shown |= {known[name][0] for name in re.findall(r"\bdeepcluster_\w+", query) if name in known}
            grouped = re.findall(r"\w+", " ".join(re.findall(r"\bby\s*\(([^)]*)\)", query)))
            if not legend and target.get("format") != "table":
                yield f"{where}: a query has no legend"
            named = re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
            yield from (f"{where}: {label} is gone before the legend" for label in named if label not in grouped)
    yield from (f"{DASHBOARD}: {name} is shown nowhere" for name in metrics if name not in shown)


def load(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def complaints(folder, metrics):
    """Everything that is wrong."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".yml", ".yaml", ".json")):
        name = path.relative_to(folder).as_posix()
        try:
            files[name] = load(path)
        except (ValueError, yaml.YAMLError) as error:
            yield f"{name}: {error}"
        else:
            if not isinstance(files[name], dict):
                yield f"{name}: is no object"
                del files[name]
    missing = [name for name in (PROMETHEUS, SOURCE, PROVIDER, DASHBOARD) if name not in files]
    yield from (f"{name}: cannot be read" for name in missing)
    if not metrics:
        yield "metrics.rs: documents nothing"
    if missing:
        return
    sources, board = files[SOURCE], files[DASHBOARD]
    yield from check_prometheus(files[PROMETHEUS])
    yield from check_provisioning(folder, sources, files[PROVIDER])
    yield from check_layout(board)
    yield from check_sources(board, (sources.get("datasources") or [{}])[0].get("uid"))
    yield from check_queries(board, metrics)


GONE = object()
SHARDS = ("panels", "Shard time")
STEPS = ("panels", "Step time")
CALLS = ("panels", "Failed calls per second, by method and code")
# File, what in it (the text, or the path to it: entries of lists by title or position), and what is put there.
BREAKAGES = [
    (PROMETHEUS, "scrape_configs:", "scrape_configs: ["),
    (PROMETHEUS, "scrape_interval: 5s", "scrape_interval: 15s"),
    (PROMETHEUS, "extractor, ", ""),
    (PROMETHEUS, "trainer]", "trainers]"),
    (PROMETHEUS, "type: A", "type: SRV"),
    (PROMETHEUS, "port: 9090", "port: 9091"),
    (PROMETHEUS, "__meta_dns_name", "__meta_dns_srv_record_target"),
    (PROMETHEUS, "target_label: service", "target_label: name"),
    (SOURCE, "datasources:", "datasources: {"),
    (SOURCE, "uid: deepcluster-prometheus", "uid: prometheus"),
    (SOURCE, "    uid: deepcluster-prometheus\n", ""),
    (SOURCE, "type: prometheus", "type: loki"),
    (SOURCE, "url: http://prometheus:9090", "url: http://prometheus:9091"),
    (SOURCE, "timeInterval: 5s", "timeInterval: 15s"),
    (PROVIDER, "path: /etc/grafana/dashboards", "path: /etc/grafana/dashboard"),
    (PROVIDER, "path: /etc/grafana/dashboards", "path: /var/lib/grafana/dashboards"),
    (PROVIDER, "providers:", "provider:"),
    (DASHBOARD, '"panels": [', '"panels": [,'),
    (DASHBOARD, ("uid",), "deepclusters"),
    (DASHBOARD, ("schemaVersion",), 36),
    (DASHBOARD, ("templating", "list", 0, "current", "value"), "prometheus"),
    (DASHBOARD, ("templating", "list"), []),
    (DASHBOARD, ("panels", "Training", "title"), "Trainings"),
    (DASHBOARD, (*SHARDS, "id"), 1),
    (DASHBOARD, (*SHARDS, "id"), GONE),
    (DASHBOARD, (*SHARDS, "title"), ""),
    (DASHBOARD, (*SHARDS, "gridPos", "w"), 13),
    (DASHBOARD, (*SHARDS, "gridPos", "h"), 9),
    (DASHBOARD, (*SHARDS, "gridPos"), GONE),
    (DASHBOARD, ("panels", "GPU memory", "gridPos", "w"), 13),
    (DASHBOARD, (*SHARDS, "datasource", "uid"), "another"),
    (DASHBOARD, (*SHARDS, "targets", 1, "datasource", "uid"), "${source}"),
    (DASHBOARD, (*SHARDS, "targets", 1, "datasource"), GONE),
    (DASHBOARD, (*SHARDS, "fieldConfig", "defaults", "unit"), GONE),
    (DASHBOARD, (*SHARDS, "targets", 1, "refId"), "A"),
    (DASHBOARD, (*SHARDS, "targets", 1, "legendFormat"), GONE),
    (DASHBOARD, (*SHARDS, "targets"), []),
    (DASHBOARD, (*SHARDS, "targets", 0, "expr"), "histogram_quantile(0.5, rate(deepcluster_shard_seconds_bucket[10m]))"),
    (DASHBOARD, (*SHARDS, "targets", 0, "expr"), "histogram_quantile(0.5, sum by (le) (deepcluster_shard_seconds_sum))"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), "deepcluster_step_seconds"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), "rate(deepcluster_steps_seconds_sum[1m])"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), "deepcluster_loss_sum"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), "sum(deepcluster_loss"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), "vector(1)"),
    (DASHBOARD, (*STEPS, "targets", 0, "expr"), 'deepcluster_loss{service="trainers"}'),
    (DASHBOARD, (*STEPS, "targets"), [{"refId": "A", "expr": "deepcluster_loss"}]),
    (DASHBOARD, (*CALLS, "targets", 0, "expr"), 'sum by (method, code) (rate(deepcluster_rpcs_total{status!="Ok"}[1m]))'),
    (DASHBOARD, (*CALLS, "targets", 0, "expr"), 'sum by (method, status) (rate(deepcluster_rpcs_total{code!="Ok"}[1m]))'),
    (DASHBOARD, (*CALLS, "targets", 0, "expr"), 'sum by (method) (rate(deepcluster_rpcs_total{code!="Ok"}[1m]))'),
    (DASHBOARD, ("panels", "GPU memory"), GONE),
    ("metrics.rs", "`deepcluster_gpu_memory_bytes{gpu}`", "`deepcluster_gpu_memory_mib{gpu}`"),
    ("metrics.rs", "`deepcluster_gpu_memory_bytes{gpu}`", "`deepcluster_gpu_memory_bytes{card}`"),
    ("metrics.rs", "`deepcluster_jobs_waiting`", "`deepcluster_jobs_waiting`, `deepcluster_jobs_done`"),
    ("metrics.rs", "//! |", "// |"),
]


def put(data, path, new):
    """A copy with one thing changed."""
    data = copy.deepcopy(data)
    place = data
    for step in path[:-1]:
        place = place[at(place, step)]
    key = at(place, path[-1])
    if new is GONE:
        del place[key]
    elif place[key] == new:
        raise ValueError(f"{path} is {new!r} already")
    else:
        place[key] = new
    return data


def at(place, step):
    if isinstance(place, list) and isinstance(step, str):
        return [entry["title"] for entry in place].index(step)
    return step


def broken(text, what, new):
    if not isinstance(what, str):
        return json.dumps(put(json.loads(text), what, new))
    if what not in text:
        raise ValueError(f"there is no {what!r} to break")
    return text.replace(what, new)


def main(folder, source):
    text = source.read_text()
    metrics = documented(text)
    found = list(complaints(folder, metrics))
    if found:
        sys.exit("\n".join([f"{len(found)} complaints", *found]))
    with tempfile.TemporaryDirectory() as place:
        worse = pathlib.Path(place) / "monitoring"
        shutil.copytree(folder, worse)
        for name, what, new in BREAKAGES:
            if name == source.name:
                noticed = any(complaints(worse, documented(broken(text, what, new))))
            else:
                well = (folder / name).read_text()
                (worse / name).write_text(broken(well, what, new))
                noticed = any(complaints(worse, metrics))
                (worse / name).write_text(well)
            if not noticed:
                sys.exit(f"nothing notices {name}: {what} {'gone' if new is GONE else new}")
        for name in (PROMETHEUS, SOURCE, PROVIDER, DASHBOARD):
            (worse / name).rename(worse / "away")
            if not any(complaints(worse, metrics)):
                sys.exit(f"nothing notices that {name} is gone")
            (worse / "away").rename(worse / name)
        if any(complaints(worse, metrics)):
            sys.exit("what was broken is not whole again")
    print(f"{len(metrics)} metrics are shown, {len(BREAKAGES) + 4} breakages are noticed")
    print("all is well")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
